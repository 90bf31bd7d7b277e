/*
 * A kernel that is forked at work: every vCPU counts, takes its timer's events by upcalls, and keeps values where only the processor has
 * them. It says "ready" when all is going, and the verdict falls when every vCPU has taken LAST events. The command line says how many
 * vCPUs there are and how upcalls come: "one" or "two", by the vector for all; "two lapic", by a vector of each one's own.
 */
#include "guest.h"

#define UPCALL_VECTOR 0xf3
#define PERIOD (20 * MS)
#define READY 5
#define LAST 60
#define SECOND_VCPU 1
#define DR0_MARK 0x123450ul
#define KERNEL_GS_BASE 0xc0000102
#define GS_MARK 0x7654321000ull
#define PAT 0x277
#define PAT_MARK 0x0007010600070406ull

static uint8_t grants[PAGE_SIZE] PAGE_ALIGNED;
static volatile unsigned ticks[2], pings, wrong, second_ended;
static volatile bool two, by_lapic;
static evtchn_port_t timers[2], ping;

static bool take(evtchn_port_t port)
{
    return __sync_fetch_and_and(&shared_info->evtchn_pending[port / BITS], ~(1ul << port % BITS)) >> port % BITS & 1;
}

static void arm(unsigned vcpu)
{
    struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = system_time() + PERIOD};
    if (vcpu_op(VCPUOP_set_singleshot_timer, vcpu, &op))
        wrong++;
}

static void on_upcall(struct frame *frame)
{
    unsigned vcpu = own_vcpu();
    (void)frame;
    vcpu_info(vcpu)->evtchn_upcall_pending = 0;
    __sync_fetch_and_and(&vcpu_info(vcpu)->evtchn_pending_sel, 0);
    if (vcpu == 0 && take(ping))
        pings++;
    if (take(timers[vcpu])) {
        ticks[vcpu]++;
        if (vcpu) {
            struct evtchn_send send = {.port = ping};
            if (event_channel_op(EVTCHNOP_send, &send))
                wrong++;
        }
        arm(vcpu);
    }
    if (by_lapic)
        lapic_eoi();
}

static void set_marks(unsigned vcpu)
{
    unsigned long mark = DR0_MARK + vcpu;
    __asm__ volatile("mov %0, %%dr0" ::"r"(mark));
    wrmsr(PAT, PAT_MARK);
    if (BITS == 64)
        wrmsr(KERNEL_GS_BASE, GS_MARK + vcpu);
}

static void check_marks(unsigned vcpu)
{
    unsigned long mark;
    __asm__ volatile("mov %%dr0, %0" : "=r"(mark));
    if (mark != DR0_MARK + vcpu || rdmsr(PAT) != PAT_MARK || (BITS == 64 && rdmsr(KERNEL_GS_BASE) != GS_MARK + vcpu))
        wrong++;
}

static void work(unsigned vcpu)
{
    uint64_t last_tsc = rdtsc(), last_time = system_time();
    set_marks(vcpu);
    if (by_lapic) {
        struct xen_hvm_evtchn_upcall_vector op = {.vcpu = vcpu, .vector = UPCALL_VECTOR};
        lapic_enable();
        if (hvm_op(HVMOP_set_evtchn_upcall_vector, &op))
            wrong++;
    }
    arm(vcpu);
    for (unsigned done = 0; done < LAST; done = ticks[vcpu]) {
        wait_for_interrupt();
        check_marks(vcpu);
        uint64_t tsc = rdtsc(), time = system_time();
        if (tsc < last_tsc || time < last_time)
            wrong++;
        last_tsc = tsc, last_time = time;
        if (vcpu == 0 && done < READY && ticks[0] >= READY)
            say("ready");
    }
}

static void second(void)
{
    work(SECOND_VCPU);
    second_ended = 1;
    for (;;)
        wait_for_interrupt();
}

TEST(forked)
{
    struct evtchn_bind_ipi bind = {.vcpu = 0};
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 0};
    REQUIRE(map_shared_info());
    two = starts_with(command_line(), "two");
    by_lapic = streq(command_line(), "two lapic");
    on_vector(UPCALL_VECTOR, on_upcall);
    REQUIRE(by_lapic || set_param(HVM_PARAM_CALLBACK_IRQ, (uint64_t)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | UPCALL_VECTOR) == 0);
    REQUIRE(event_channel_op(EVTCHNOP_bind_ipi, &bind) == 0);
    ping = bind.port;
    for (unsigned vcpu = 0; vcpu < 1u + two; vcpu++) {
        struct evtchn_bind_virq virq = {.virq = VIRQ_TIMER, .vcpu = vcpu};
        REQUIRE(event_channel_op(EVTCHNOP_bind_virq, &virq) == 0);
        timers[vcpu] = virq.port;
    }
    REQUIRE(grant_table_op(GNTTABOP_setup_table, &setup, 1) == 0);
    REQUIRE(add_to_physmap(XENMAPSPACE_grant_table, 0, gfn_of(grants)) == 0);
    volatile grant_entry_v1_t *entry = (void *)grants;
    entry[9].frame = gfn_of(grants);
    if (two) {
        struct vcpu_hvm_context context = second_vcpu(second);
        REQUIRE(vcpu_op(VCPUOP_initialise, SECOND_VCPU, &context) == 0);
        REQUIRE(vcpu_op(VCPUOP_up, SECOND_VCPU, 0) == 0);
    }
    work(0);
    for (uint64_t end = system_time() + 60000 * MS; two && !second_ended && system_time() < end;)
        wait_for_interrupt();
    CHECK_EQ(wrong, 0);
    CHECK(!two || (second_ended && pings > READY));
    CHECK_EQ(entry[9].frame, gfn_of(grants));
    struct gnttab_query_size size = {.dom = DOMID_SELF};
    CHECK_OK(grant_table_op(GNTTABOP_query_size, &size, 1));
    CHECK(size.nr_frames >= 1);
}
