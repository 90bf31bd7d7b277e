/* Events as a PV kernel gets them, timers, and NMIs. Ref: xen/include/public/event_channel.h, vcpu.h, nmi.h */
#include "pv.h"

#include <xen/io/console.h>

#define SECOND (1000 * MS)

static unsigned upcalls, nmis;
static bool masked_in_upcall;
static unsigned long pending_in_upcall;

/* Acknowledges all, and notes what there was. */
static void upcall(struct trap_frame *frame)
{
    (void)frame;
    upcalls++;
    masked_in_upcall = vcpu_info(0)->evtchn_upcall_mask;
    vcpu_info(0)->evtchn_upcall_pending = 0;
    unsigned long selected = __sync_lock_test_and_set(&vcpu_info(0)->evtchn_pending_sel, 0);
    for (int word = 0; word < BITS; word++)
        if (selected >> word & 1)
            pending_in_upcall |= __sync_lock_test_and_set(&shared_info->evtchn_pending[word], 0);
}

static void quiet(void)
{
    vcpu_info(0)->evtchn_upcall_mask = 1;
    upcall(NULL);
    upcalls = 0;
    pending_in_upcall = 0;
    on_trap(ENTRY_EVENT, upcall);
}

static evtchn_port_t to_self(void)
{
    static evtchn_port_t port;
    if (!port) {
        struct evtchn_bind_ipi bind = {.vcpu = 0};
        if (event_channel_op(EVTCHNOP_bind_ipi, &bind) == 0)
            port = bind.port;
    }
    return port;
}

static long send(evtchn_port_t port)
{
    struct evtchn_send op = {.port = port};
    return event_channel_op(EVTCHNOP_send, &op);
}

static void force_check(void)
{
    xen_version(XENVER_version, 0);
}

TEST(an_event_to_oneself)
{
    quiet();
    REQUIRE(to_self());
    vcpu_info(0)->evtchn_upcall_mask = 0;
    CHECK_OK(send(to_self()));
    CHECK_EQ(upcalls, 1);
    CHECK(pending_in_upcall & 1ul << to_self());
    CHECK(masked_in_upcall);
    CHECK_EQ(vcpu_info(0)->evtchn_upcall_mask, 0);
}

TEST(a_masked_upcall_waits)
{
    quiet();
    CHECK_OK(send(to_self()));
    force_check();
    CHECK_EQ(upcalls, 0);
    CHECK(vcpu_info(0)->evtchn_upcall_pending);
    vcpu_info(0)->evtchn_upcall_mask = 0;
    force_check();
    CHECK_EQ(upcalls, 1);
}

TEST(a_masked_port_waits)
{
    quiet();
    shared_info->evtchn_mask[0] |= 1ul << to_self();
    vcpu_info(0)->evtchn_upcall_mask = 0;
    CHECK_OK(send(to_self()));
    CHECK_EQ(upcalls, 0);
    CHECK(port_pending(to_self()));
    struct evtchn_unmask op = {.port = to_self()};
    CHECK_OK(event_channel_op(EVTCHNOP_unmask, &op));
    CHECK_EQ(upcalls, 1);
}

static unsigned long ticks;

static void __attribute__((noreturn)) user_sends(unsigned long argument)
{
    for (;;)
        if (*(volatile unsigned long *)argument)
            user_exit(*(volatile unsigned long *)argument);
}

static void upcall_in_user(struct trap_frame *frame)
{
    upcall(frame);
    if (frame->cs & RPL)
        ticks = 0x100 + (frame->cs >> 32 & 0xff) + (frame->flags & FLAGS_IF ? 0x10 : 0);
}

static long set_timer(uint64_t when)
{
    struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = when};
    return vcpu_op(VCPUOP_set_singleshot_timer, 0, &op);
}

static evtchn_port_t timer_port(void)
{
    static evtchn_port_t port;
    if (!port) {
        struct evtchn_bind_virq bind = {.virq = VIRQ_TIMER, .vcpu = 0};
        if (event_channel_op(EVTCHNOP_bind_virq, &bind) == 0)
            port = bind.port;
    }
    return port;
}

TEST(a_timer_interrupts_the_kernel)
{
    quiet();
    REQUIRE(timer_port());
    vcpu_info(0)->evtchn_upcall_mask = 0;
    uint64_t before = system_time();
    CHECK_OK(set_timer(before + 5 * MS));
    while (!*(volatile unsigned *)&upcalls && system_time() < before + 5 * SECOND)
        ;
    CHECK_EQ(upcalls, 1);
    CHECK(pending_in_upcall & 1ul << timer_port());
    CHECK(system_time() >= before + 5 * MS);
}

TEST(a_timer_interrupts_user_mode)
{
    quiet();
    REQUIRE(timer_port());
    on_trap(ENTRY_EVENT, upcall_in_user);
    ticks = 0;
    CHECK_OK(set_timer(system_time() + 5 * MS));
    const struct trap_frame *frame = run_user(user_sends, (unsigned long)&ticks);
    vcpu_info(0)->evtchn_upcall_mask = 1;
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK_EQ(frame->rax, 0x110); /* from user mode, events were not masked, IF was set */
}

/* Code of user mode's where a kick may find it as it must not be changed: it has to be stopped all the same. */
extern const uint8_t behind_int3[], reads_port[];
__asm__(".pushsection .text\n"
        ".byte 0xcc\n"
        "behind_int3: jmp behind_int3\n"
        "reads_port: in $0xe0, %al; jmp reads_port\n"
        ".popsection");

static void leave_user(struct trap_frame *frame)
{
    upcall(frame);
    if (frame->cs & RPL)
        frame->rip = (unsigned long)user_echo;
}

static const struct trap_frame *run_until_timer(const uint8_t *code)
{
    quiet();
    on_trap(ENTRY_EVENT, leave_user);
    if (!timer_port() || set_timer(system_time() + 5 * MS))
        return NULL;
    const struct trap_frame *frame = run_user((user_function)code, 0x55);
    vcpu_info(0)->evtchn_upcall_mask = 1;
    vcpu_op(VCPUOP_stop_singleshot_timer, 0, 0); /* where it was an exception that ended it */
    return frame;
}

TEST(a_timer_interrupts_a_loop_behind_int3)
{
    for (unsigned i = 0; i < 5; i++) {
        const struct trap_frame *frame = run_until_timer(behind_int3);
        REQUIRE(frame);
        CHECK_EQ(frame->vector, ENTRY_SYSCALL);
        CHECK_EQ(frame->rax, 0x55);
        CHECK_EQ(upcalls, 1);
    }
}

TEST(a_timer_interrupts_a_loop_of_reads_of_a_port)
{
    for (unsigned i = 0; i < 5; i++) {
        const struct trap_frame *frame = run_until_timer(reads_port);
        REQUIRE(frame);
        if (frame->vector == 13)
            SKIP("the shim needs no port that user mode could read");
        CHECK_EQ(frame->vector, ENTRY_SYSCALL);
        CHECK_EQ(frame->rax, 0x55);
        CHECK_EQ(upcalls, 1);
    }
}

TEST(a_timer_in_the_past_fires_at_once)
{
    quiet();
    vcpu_info(0)->evtchn_upcall_mask = 0;
    CHECK_OK(set_timer(1));
    uint64_t end = system_time() + 5 * SECOND;
    while (!*(volatile unsigned *)&upcalls && system_time() < end)
        ;
    CHECK_EQ(upcalls, 1);
    CHECK_OK(vcpu_op(VCPUOP_stop_singleshot_timer, 0, 0));
}

TEST(block_sleeps_until_an_event)
{
    quiet();
    uint64_t before = system_time();
    CHECK_OK(set_timer(before + 20 * MS));
    CHECK_OK(sched_op(SCHEDOP_block, 0));
    CHECK_EQ(upcalls, 1);
    CHECK_EQ(vcpu_info(0)->evtchn_upcall_mask, 0); /* block unmasks */
    CHECK(system_time() >= before + 20 * MS);
}

TEST(block_does_not_sleep_with_an_event_pending)
{
    quiet();
    CHECK_OK(send(to_self()));
    CHECK_OK(sched_op(SCHEDOP_block, 0));
    CHECK_EQ(upcalls, 1);
}

TEST(poll_returns_on_an_event)
{
    quiet();
    evtchn_port_t port = timer_port();
    struct sched_poll poll = {.nr_ports = 1, .timeout = 0};
    set_xen_guest_handle(poll.ports, &port);
    shared_info->evtchn_mask[0] |= 1ul << port;
    uint64_t before = system_time();
    CHECK_OK(set_timer(before + 10 * MS));
    CHECK_OK(sched_op(SCHEDOP_poll, &poll));
    CHECK(port_pending(port));
    CHECK(system_time() >= before + 10 * MS);
    shared_info->evtchn_pending[0] &= ~(1ul << port);
    shared_info->evtchn_mask[0] &= ~(1ul << port);
    CHECK_EQ(upcalls, 0);
}

TEST(poll_gives_up)
{
    quiet();
    evtchn_port_t port = to_self();
    struct sched_poll poll = {.nr_ports = 1, .timeout = system_time() + 10 * MS};
    set_xen_guest_handle(poll.ports, &port);
    CHECK_OK(sched_op(SCHEDOP_poll, &poll));
    CHECK(!port_pending(port));
    CHECK(system_time() >= poll.timeout);
}

static void nmi(struct trap_frame *frame)
{
    (void)frame;
    nmis++;
    if (nmis == 1)
        vcpu_op(VCPUOP_send_nmi, 0, 0); /* held back until this one is done */
    if (nmis == 1)
        force_check();
}

TEST(nmi)
{
    struct xennmi_callback callback = {.handler_address = (unsigned long)trap_entries[ENTRY_NMI]};
    quiet();
    CHECK_OK(CALL2(__HYPERVISOR_nmi_op, XENNMI_register_callback, &callback));
    on_trap(ENTRY_NMI, nmi);
    CHECK_OK(vcpu_op(VCPUOP_send_nmi, 0, 0));
    force_check();
    on_trap(ENTRY_NMI, NULL);
    CHECK_EQ(nmis, 2);
    CHECK_EQ(vcpu_info(0)->evtchn_upcall_mask, 1);
}

TEST(callbacks_are_checked)
{
    struct callback_register op = {.type = CALLBACKTYPE_event, .address = 0x8000000000000000};
    CHECK_ERR(callback_op(CALLBACKOP_register, &op), XEN_EINVAL);
    op.type = 99;
    op.address = (unsigned long)trap_entries[0];
    CHECK_ERR(callback_op(CALLBACKOP_register, &op), XEN_ENOSYS);
    CHECK_ERR(callback_op(CALLBACKOP_register, BAD_PTR), XEN_EFAULT);
}

TEST(ten_thousand_events)
{
    quiet();
    vcpu_info(0)->evtchn_upcall_mask = 0;
    for (unsigned i = 1; i <= 10000; i++) {
        CHECK_OK(send(to_self()));
        CHECK_EQ(upcalls, i);
    }
}

/* In pieces, as a kernel writes its messages; it does not wait for each, and nothing of its own makes it stop. */
TEST(output_reaches_the_console_while_the_kernel_spins)
{
    static const char piece[] = "sixteen letters\n";
    quiet();
    volatile struct xencons_interface *ring =
        (void *)(VIRT_BASE + m2p[xen_start->console.domU.mfn] * PAGE_SIZE);
    for (unsigned round = 0; round < 10; round++) {
        for (unsigned i = 0; i < 50; i++) {
            for (unsigned at = 0; at < sizeof piece - 1; at++)
                ring->out[MASK_XENCONS_IDX(ring->out_prod + at, ring->out)] = piece[at];
            barrier();
            ring->out_prod += sizeof piece - 1;
            CHECK_OK(send(xen_start->console.domU.evtchn));
        }
        for (uint64_t end = system_time() + 10 * SECOND; ring->out_cons != ring->out_prod && system_time() < end;)
            ;
        CHECK_EQ(ring->out_cons, ring->out_prod);
    }
}

TEST(an_event_of_a_console_that_is_closed)
{
    struct evtchn_close close = {.port = xen_start->console.domU.evtchn};
    for (unsigned i = 0; i < 50; i++)
        CHECK_OK(send(close.port));
    CHECK_OK(event_channel_op(EVTCHNOP_close, &close));
    CHECK_ERR(send(close.port), XEN_EINVAL);
    CHECK_ERR(send(close.port), XEN_EINVAL);
}

TEST(a_poll_does_not_sleep_over_an_upcall)
{
    quiet();
    REQUIRE(to_self());
    CHECK_OK(send(to_self()));
    vcpu_info(0)->evtchn_upcall_mask = 0; /* it has come before, and nobody has looked */
    uint64_t start = system_time();
    struct sched_poll poll = {.timeout = start + 20 * SECOND};
    CHECK_OK(sched_op(SCHEDOP_poll, &poll));
    CHECK(system_time() < start + 10 * SECOND);
    CHECK_EQ(upcalls, 1);
}

TEST(closed_ports_are_not_polled)
{
    evtchn_port_t ports[] = {0, 900};
    for (unsigned i = 0; i < ARRAY_SIZE(ports); i++) {
        struct sched_poll poll = {.nr_ports = 1, .timeout = system_time() + 20 * SECOND};
        set_xen_guest_handle(poll.ports, &ports[i]);
        CHECK_ERR(sched_op(SCHEDOP_poll, &poll), XEN_EINVAL);
    }
}

TEST(event_words_do_not_go_into_page_tables)
{
    struct evtchn_init_control op = {.control_gfn = mfn_of(entry_of(&upcalls, 1)), .vcpu = 0};
    CHECK_ERR(event_channel_op(EVTCHNOP_init_control, &op), XEN_EINVAL);
}
