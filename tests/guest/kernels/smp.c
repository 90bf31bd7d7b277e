/*
 * vcpu_op for a second vCPU: it starts with the context it is given, takes events of its own, and goes down and up.
 * Needs 2 vCPUs.
 */
#include "guest.h"

#define SECOND (1000 * MS)
#define MARK 0x1234

static volatile unsigned runs, asked, seen_id;
static evtchn_port_t port;

/* What the second vCPU does: says who it is, then polls its port and counts. */
static void second(void)
{
    seen_id = MARK + own_vcpu();
    runs++;
    for (;;) {
        struct sched_poll poll = {.nr_ports = 1};
        set_xen_guest_handle(poll.ports, &port);
        sched_op(SCHEDOP_poll, &poll);
        __sync_fetch_and_and(&shared_info->evtchn_pending[port / BITS], ~(1ul << port % BITS));
        asked++;
    }
}

static bool wait_for(volatile unsigned *counter, unsigned value)
{
    for (uint64_t end = system_time() + 5 * SECOND; *counter < value && system_time() < end;)
        sched_op(SCHEDOP_yield, 0);
    return *counter >= value;
}

TEST(starts_offline)
{
    REQUIRE(map_shared_info());
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 0);
    CHECK_ERR(vcpu_op(VCPUOP_is_up, 2, 0), XEN_ENOENT);
}

TEST(cannot_go_up_uninitialised)
{
    CHECK_ERR(vcpu_op(VCPUOP_up, 1, 0), XEN_EINVAL);
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 0);
}

TEST(refuses_a_bad_context)
{
    struct vcpu_hvm_context context = second_vcpu(second);
    context.mode = 7;
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, BAD_POINTER), XEN_EFAULT);
}

TEST(initialise)
{
    struct vcpu_hvm_context context = second_vcpu(second);
    CHECK_OK(vcpu_op(VCPUOP_initialise, 1, &context));
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EEXIST);
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 0);
    CHECK_EQ(runs, 0);
}

TEST(up)
{
    struct evtchn_bind_ipi bind = {.vcpu = 1};
    REQUIRE(event_channel_op(EVTCHNOP_bind_ipi, &bind) == 0);
    port = bind.port;
    CHECK_OK(vcpu_op(VCPUOP_up, 1, 0));
    CHECK(wait_for(&runs, 1));
    CHECK_EQ(seen_id, MARK + 1);
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 1);
}

TEST(events_reach_it)
{
    struct evtchn_send send = {.port = port};
    for (unsigned i = 1; i <= 5; i++) {
        CHECK_OK(event_channel_op(EVTCHNOP_send, &send));
        CHECK(wait_for(&asked, i));
    }
    CHECK(vcpu_info(1)->evtchn_upcall_pending);
    CHECK(!vcpu_info(0)->evtchn_upcall_pending);
}

TEST(virqs_are_each_vcpus_own)
{
    struct evtchn_bind_virq bind = {.virq = VIRQ_TIMER, .vcpu = 0};
    CHECK_OK(event_channel_op(EVTCHNOP_bind_virq, &bind));
    bind.vcpu = 1;
    CHECK_OK(event_channel_op(EVTCHNOP_bind_virq, &bind));
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_virq, &bind), XEN_EEXIST);
    bind = (struct evtchn_bind_virq){.virq = VIRQ_CONSOLE, .vcpu = 1};
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_virq, &bind), XEN_EINVAL);
}

TEST(timers_of_another_vcpu)
{
    struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = system_time() + SECOND};
    CHECK_ERR(vcpu_op(VCPUOP_set_singleshot_timer, 1, &op), XEN_EINVAL);
    CHECK_ERR(vcpu_op(VCPUOP_stop_singleshot_timer, 1, 0), XEN_EINVAL);
    CHECK_OK(vcpu_op(VCPUOP_stop_periodic_timer, 1, 0));
}

TEST(its_runstate)
{
    struct vcpu_runstate_info info;
    CHECK_OK(vcpu_op(VCPUOP_get_runstate_info, 1, &info));
    CHECK(info.time[RUNSTATE_running] > 0);
}

TEST(down_and_up)
{
    struct evtchn_send send = {.port = port};
    unsigned before = asked;
    for (unsigned i = 0; i < 200; i++) { /* whatever it does just then */
        CHECK_OK(vcpu_op(VCPUOP_down, 1, 0));
        CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 0);
        CHECK_OK(vcpu_op(VCPUOP_up, 1, 0));
        CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 1);
    }
    CHECK_OK(event_channel_op(EVTCHNOP_send, &send));
    CHECK(wait_for(&asked, before + 1));
}
