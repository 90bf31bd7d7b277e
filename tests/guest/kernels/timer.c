/*
 * Timers and the ways to sleep: a timer that is due raises VIRQ_TIMER, never early, whether the vCPU polls, blocks or runs.
 */
#include "guest.h"

#define SECOND (1000 * MS)

static evtchn_port_t timer_port;

static void clear_event(void)
{
    shared_info->evtchn_pending[timer_port / BITS] &= ~(1ul << timer_port % BITS);
    vcpu_info(0)->evtchn_upcall_pending = 0;
    vcpu_info(0)->evtchn_pending_sel = 0;
}

static long poll(evtchn_port_t *ports, unsigned count, uint64_t until)
{
    struct sched_poll op = {.nr_ports = count, .timeout = until};
    set_xen_guest_handle(op.ports, ports);
    return sched_op(SCHEDOP_poll, &op);
}

static long singleshot(uint64_t at, uint32_t flags)
{
    struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = at, .flags = flags};
    return vcpu_op(VCPUOP_set_singleshot_timer, 0, &op);
}

static long set_timer_op(uint64_t at)
{
    if (BITS == 64)
        return CALL1(__HYPERVISOR_set_timer_op, at);
    return CALL2(__HYPERVISOR_set_timer_op, (uint32_t)at, (uint32_t)(at >> 32));
}

TEST(bind_timer)
{
    struct evtchn_bind_virq bind = {.virq = VIRQ_TIMER, .vcpu = 0};
    REQUIRE(map_shared_info());
    CHECK_OK(event_channel_op(EVTCHNOP_bind_virq, &bind));
    timer_port = bind.port;
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_virq, &bind), XEN_EEXIST);
}

TEST(poll_times_out)
{
    uint64_t until = system_time() + 10 * MS;
    clear_event();
    CHECK_OK(poll(&timer_port, 1, until));
    CHECK(system_time() >= until);
    CHECK(system_time() < until + SECOND);
    CHECK(!port_pending(timer_port));
}

TEST(poll_without_ports_times_out)
{
    uint64_t until = system_time() + 5 * MS;
    CHECK_OK(poll(NULL, 0, until));
    CHECK(system_time() >= until);
}

TEST(singleshot_ends_a_poll)
{
    uint64_t at = system_time() + 10 * MS;
    clear_event();
    CHECK_OK(singleshot(at, 0));
    CHECK_OK(poll(&timer_port, 1, at + 10 * SECOND));
    CHECK(port_pending(timer_port));
    CHECK(system_time() >= at);
    CHECK(system_time() < at + SECOND);
}

TEST(set_timer_op_ends_a_poll)
{
    uint64_t at = system_time() + 10 * MS;
    clear_event();
    CHECK_OK(set_timer_op(at));
    CHECK_OK(poll(&timer_port, 1, at + 10 * SECOND));
    CHECK(port_pending(timer_port));
    CHECK(system_time() >= at && system_time() < at + SECOND);
}

TEST(poll_of_a_pending_port_returns)
{
    uint64_t before = system_time();
    CHECK(port_pending(timer_port));
    CHECK_OK(poll(&timer_port, 1, before + 10 * SECOND));
    CHECK(system_time() < before + SECOND);
}

TEST(timer_in_the_past_fires_at_once)
{
    uint64_t now = system_time();
    clear_event();
    CHECK_OK(singleshot(now, 0));
    CHECK_OK(poll(&timer_port, 1, now + 10 * SECOND));
    CHECK(port_pending(timer_port));
    CHECK(system_time() < now + SECOND);
}

TEST(timer_in_the_past_fires_even_if_asked_not_to) /* as Xen's has since 2023 */
{
    clear_event();
    CHECK_OK(singleshot(1, VCPU_SSHOTTMR_future));
    CHECK_OK(poll(&timer_port, 1, system_time() + 10 * SECOND));
    CHECK(port_pending(timer_port));
}

TEST(stopped_timers_do_not_fire)
{
    clear_event();
    CHECK_OK(singleshot(system_time() + 5 * MS, 0));
    CHECK_OK(vcpu_op(VCPUOP_stop_singleshot_timer, 0, 0));
    CHECK_OK(set_timer_op(system_time() + 5 * MS));
    CHECK_OK(set_timer_op(0));
    CHECK_OK(poll(&timer_port, 1, system_time() + 15 * MS));
    CHECK(!port_pending(timer_port));
}

TEST(timer_fires_while_the_vcpu_runs)
{
    uint64_t at = system_time() + 5 * MS;
    clear_event();
    CHECK_OK(singleshot(at, 0));
    for (uint64_t end = rdtsc() + 20000000000ull; !port_pending(timer_port) && rdtsc() < end;)
        __asm__ volatile("pause");
    CHECK(port_pending(timer_port));
    CHECK(system_time() >= at);
    CHECK(vcpu_info(0)->evtchn_upcall_pending);
}

TEST(periodic_timer)
{
    struct vcpu_set_periodic_timer op = {.period_ns = 5 * MS};
    uint64_t start = system_time();
    CHECK_OK(vcpu_op(VCPUOP_set_periodic_timer, 0, &op));
    for (int tick = 1; tick <= 3; tick++) {
        clear_event();
        CHECK_OK(poll(&timer_port, 1, start + 10 * SECOND));
        CHECK(port_pending(timer_port));
        CHECK(system_time() >= start + tick * op.period_ns);
    }
    CHECK_OK(vcpu_op(VCPUOP_stop_periodic_timer, 0, 0));
    clear_event();
    CHECK_OK(poll(&timer_port, 1, system_time() + 15 * MS));
    CHECK(!port_pending(timer_port));
}

TEST(periods_too_short_or_long)
{
    struct vcpu_set_periodic_timer op = {.period_ns = 1000};
    CHECK_ERR(vcpu_op(VCPUOP_set_periodic_timer, 0, &op), XEN_EINVAL);
    op.period_ns = ~0ull;
    CHECK_ERR(vcpu_op(VCPUOP_set_periodic_timer, 0, &op), XEN_EINVAL);
}

static volatile unsigned upcalls;

static void count_upcall(struct frame *frame)
{
    (void)frame;
    upcalls++;
    vcpu_info(0)->evtchn_upcall_pending = 0;
}

#define UPCALL_VECTOR 0xf3

TEST(timer_ends_a_block)
{
    uint64_t at;
    on_vector(UPCALL_VECTOR, count_upcall);
    REQUIRE(set_param(HVM_PARAM_CALLBACK_IRQ, (uint64_t)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | UPCALL_VECTOR) == 0);
    clear_event();
    upcalls = 0;
    at = system_time() + 10 * MS;
    CHECK_OK(singleshot(at, 0));
    sti();
    CHECK_OK(sched_op(SCHEDOP_block, 0));
    cli();
    CHECK(port_pending(timer_port));
    CHECK(system_time() >= at);
    CHECK_EQ(upcalls, 1);
}

TEST(timer_ends_a_halt)
{
    uint64_t at = system_time() + 10 * MS;
    clear_event();
    upcalls = 0;
    CHECK_OK(singleshot(at, 0));
    wait_for_interrupt();
    CHECK(port_pending(timer_port));
    CHECK(system_time() >= at);
    CHECK_EQ(upcalls, 1);
}

TEST(block_with_an_event_pending_returns)
{
    vcpu_info(0)->evtchn_upcall_pending = 1;
    CHECK_OK(sched_op(SCHEDOP_block, 0));
    vcpu_info(0)->evtchn_upcall_pending = 0;
}

TEST(poll_with_bad_arguments)
{
    static evtchn_port_t ports[200];
    CHECK_ERR(poll(ports, 129, 1), XEN_EINVAL);
    CHECK_ERR(poll(BAD_POINTER, 1, 1), XEN_EFAULT);
    ports[0] = 1 << 20;
    CHECK_ERR(poll(ports, 1, 1), XEN_EINVAL);
    CHECK_ERR(sched_op(SCHEDOP_poll, BAD_POINTER), XEN_EFAULT);
}
