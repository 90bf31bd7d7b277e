/*
 * Upcalls: an event interrupts the vCPU, by the vector set for all or by that of its own through the LAPIC, once it takes
 * interrupts, and again if it left events unseen.
 */
#include "guest.h"

#define CALLBACK_VECTOR 0xf3
#define OWN_VECTOR 0xe7
#define SECOND (1000 * MS)

static volatile unsigned callbacks, own_upcalls;
static evtchn_port_t port;
static uint8_t info_page[PAGE_SIZE] PAGE_ALIGNED;
static volatile vcpu_info_t *placed;

static void acknowledge(void)
{
    volatile vcpu_info_t *info = placed ? placed : vcpu_info(0);
    info->evtchn_upcall_pending = 0;
    info->evtchn_pending_sel = 0;
    shared_info->evtchn_pending[port / BITS] &= ~(1ul << port % BITS);
}

static void on_callback(struct frame *frame)
{
    (void)frame;
    callbacks++;
    acknowledge();
}

static void on_own(struct frame *frame)
{
    (void)frame;
    own_upcalls++;
    acknowledge();
    lapic_eoi();
}

static long send(void)
{
    struct evtchn_send op = {.port = port};
    return event_channel_op(EVTCHNOP_send, &op);
}

/* Runs with interrupts on until one has come, for a second at most. */
static void take_interrupts(volatile unsigned *counter, unsigned until)
{
    uint64_t end = system_time() + SECOND;
    sti();
    while (*counter < until && system_time() < end)
        __asm__ volatile("pause");
    cli();
}

TEST(nothing_before_a_vector_is_set)
{
    struct evtchn_bind_ipi bind = {.vcpu = 0};
    REQUIRE(map_shared_info());
    REQUIRE(event_channel_op(EVTCHNOP_bind_ipi, &bind) == 0);
    port = bind.port;
    on_vector(CALLBACK_VECTOR, on_callback);
    on_vector(OWN_VECTOR, on_own);
    acknowledge();
    CHECK_OK(send());
    sti();
    for (int i = 0; i < 10; i++)
        system_time();
    cli();
    CHECK_EQ(callbacks + own_upcalls, 0);
    CHECK(vcpu_info(0)->evtchn_upcall_pending);
    acknowledge();
}

TEST(callback_vector)
{
    REQUIRE(set_param(HVM_PARAM_CALLBACK_IRQ, (uint64_t)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | CALLBACK_VECTOR) == 0);
    CHECK_OK(send());
    CHECK_EQ(callbacks, 0);
    take_interrupts(&callbacks, 1);
    CHECK_EQ(callbacks, 1);
    CHECK_EQ(own_upcalls, 0);
}

TEST(callback_comes_again)
{
    unsigned before = callbacks;
    for (unsigned i = 1; i <= 5; i++) {
        CHECK_OK(send());
        take_interrupts(&callbacks, before + i);
        CHECK_EQ(callbacks, before + i);
    }
}

TEST(callback_for_an_event_sent_with_interrupts_on)
{
    unsigned before = callbacks;
    sti();
    CHECK_OK(send());
    take_interrupts(&callbacks, before + 1);
    CHECK_EQ(callbacks, before + 1);
}

TEST(masked_events_do_not_interrupt)
{
    unsigned before = callbacks;
    shared_info->evtchn_mask[port / BITS] |= 1ul << port % BITS;
    CHECK_OK(send());
    sti();
    for (int i = 0; i < 10; i++)
        system_time();
    cli();
    CHECK_EQ(callbacks, before);
    struct evtchn_unmask op = {.port = port};
    CHECK_OK(event_channel_op(EVTCHNOP_unmask, &op));
    take_interrupts(&callbacks, before + 1);
    CHECK_EQ(callbacks, before + 1);
}

TEST(own_vector)
{
    struct xen_hvm_evtchn_upcall_vector op = {.vcpu = 0, .vector = OWN_VECTOR};
    unsigned before = callbacks;
    lapic_enable();
    CHECK_OK(hvm_op(HVMOP_set_evtchn_upcall_vector, &op));
    CHECK_OK(send());
    take_interrupts(&own_upcalls, 1);
    CHECK_EQ(own_upcalls, 1);
    CHECK_EQ(callbacks, before);
}

TEST(own_vector_comes_again)
{
    unsigned before = own_upcalls;
    for (unsigned i = 1; i <= 5; i++) {
        CHECK_OK(send());
        take_interrupts(&own_upcalls, before + i);
        CHECK_EQ(own_upcalls, before + i);
    }
}

TEST(own_vector_ends_a_halt)
{
    unsigned before = own_upcalls;
    struct evtchn_bind_virq bind = {.virq = VIRQ_TIMER, .vcpu = 0};
    struct vcpu_set_singleshot_timer timer = {.timeout_abs_ns = system_time() + 10 * MS};
    REQUIRE(event_channel_op(EVTCHNOP_bind_virq, &bind) == 0);
    CHECK_OK(vcpu_op(VCPUOP_set_singleshot_timer, 0, &timer));
    wait_for_interrupt();
    CHECK_EQ(own_upcalls, before + 1);
    CHECK(system_time() >= timer.timeout_abs_ns);
}

/* It is marked as pending when it is placed: that must be told, or nothing ever is again. */
TEST(a_placed_vcpu_info_is_told_of)
{
    struct vcpu_register_vcpu_info op = {.mfn = gfn_of(info_page)};
    unsigned before = own_upcalls;
    CHECK_OK(vcpu_op(VCPUOP_register_vcpu_info, 0, &op));
    placed = (void *)info_page;
    take_interrupts(&own_upcalls, before + 1);
    CHECK_EQ(own_upcalls, before + 1);
    before = own_upcalls;
    CHECK_OK(send());
    take_interrupts(&own_upcalls, before + 1);
    CHECK_EQ(own_upcalls, before + 1);
}
