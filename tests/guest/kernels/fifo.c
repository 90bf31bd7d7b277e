/*
 * event_channel_op under the FIFO ABI: events are linked into the queue of their priority, in order, once.
 */
#include "guest.h"

#define WORD(bit) (1u << (bit))
#define LINK(word) ((word) & ((1u << EVTCHN_FIFO_LINK_BITS) - 1))

static struct evtchn_fifo_control_block control PAGE_ALIGNED;
static volatile event_word_t words[PAGE_SIZE / 4] PAGE_ALIGNED;
static volatile event_word_t more_words[PAGE_SIZE / 4] PAGE_ALIGNED;

static long op_port(unsigned cmd, evtchn_port_t port)
{
    struct evtchn_send op = {.port = port};
    return event_channel_op(cmd, &op);
}

static evtchn_port_t ipi_port(void)
{
    struct evtchn_bind_ipi op = {.vcpu = 0};
    return event_channel_op(EVTCHNOP_bind_ipi, &op) ? 0 : op.port;
}

static long init_control(unsigned long gfn, uint32_t offset, uint32_t vcpu)
{
    struct evtchn_init_control op = {.control_gfn = gfn, .offset = offset, .vcpu = vcpu};
    long rc = event_channel_op(EVTCHNOP_init_control, &op);
    return rc ? rc : op.link_bits;
}

static long set_priority(evtchn_port_t port, uint32_t priority)
{
    struct evtchn_set_priority op = {.port = port, .priority = priority};
    return event_channel_op(EVTCHNOP_set_priority, &op);
}

static long expand(unsigned long gfn)
{
    struct evtchn_expand_array op = {.array_gfn = gfn};
    return event_channel_op(EVTCHNOP_expand_array, &op);
}

/* Takes the head of a queue off it, as a guest does; 0 if the queue has been found empty. */
static evtchn_port_t take(unsigned priority)
{
    volatile uint32_t *head = &control.head[priority];
    evtchn_port_t port = *head;
    if (!port)
        return 0;
    *head = LINK(words[port]);
    words[port] &= ~(WORD(EVTCHN_FIFO_LINKED) | ((1u << EVTCHN_FIFO_LINK_BITS) - 1));
    words[port] &= ~WORD(EVTCHN_FIFO_PENDING);
    return port;
}

static void drain(void)
{
    for (unsigned priority = 0; priority < EVTCHN_FIFO_MAX_QUEUES; priority++)
        while (take(priority))
            ;
    control.ready = 0;
    vcpu_info(0)->evtchn_upcall_pending = 0;
}

TEST(control_block_must_lie_right)
{
    REQUIRE(map_shared_info());
    CHECK_ERR(init_control(gfn_of(&control), 4, 0), XEN_EINVAL);
    CHECK_ERR(init_control(gfn_of(&control), PAGE_SIZE - 64, 0), XEN_EINVAL);
    CHECK_ERR(init_control(gfn_of(&control), 0, 1), XEN_ENOENT);
    CHECK_ERR(init_control(UNPOPULATED_GFN, 0, 0), XEN_EINVAL);
}

TEST(init_control)
{
    CHECK_EQ(init_control(gfn_of(&control), 0, 0), EVTCHN_FIFO_LINK_BITS);
}

TEST(expand_array)
{
    CHECK_ERR(expand(UNPOPULATED_GFN), XEN_EINVAL);
    CHECK_OK(expand(gfn_of((void *)words)));
    CHECK_OK(expand(gfn_of((void *)more_words)));
    drain();
}

TEST(event_is_linked)
{
    evtchn_port_t port = ipi_port();
    REQUIRE(port);
    drain();
    CHECK_OK(op_port(EVTCHNOP_send, port));
    CHECK_EQ(words[port], WORD(EVTCHN_FIFO_PENDING) | WORD(EVTCHN_FIFO_LINKED));
    CHECK_EQ(control.ready, WORD(EVTCHN_FIFO_PRIORITY_DEFAULT));
    CHECK_EQ(control.head[EVTCHN_FIFO_PRIORITY_DEFAULT], port);
    CHECK(vcpu_info(0)->evtchn_upcall_pending);
}

TEST(event_is_linked_once)
{
    evtchn_port_t port = ipi_port();
    REQUIRE(port);
    drain();
    CHECK_OK(op_port(EVTCHNOP_send, port));
    CHECK_OK(op_port(EVTCHNOP_send, port));
    CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), port);
    CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), 0);
}

TEST(queue_keeps_the_order)
{
    evtchn_port_t ports[4];
    for (int i = 0; i < 4; i++)
        REQUIRE((ports[i] = ipi_port()));
    drain();
    for (int i = 3; i >= 0; i--)
        CHECK_OK(op_port(EVTCHNOP_send, ports[i]));
    for (int i = 3; i >= 0; i--)
        CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), ports[i]);
    CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), 0);
}

TEST(queue_refills_after_it_was_emptied)
{
    evtchn_port_t a = ipi_port(), b = ipi_port();
    REQUIRE(a && b);
    for (int round = 0; round < 3; round++) {
        drain();
        CHECK_OK(op_port(EVTCHNOP_send, a));
        CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), a);
        CHECK_OK(op_port(EVTCHNOP_send, b));
        CHECK_OK(op_port(EVTCHNOP_send, a));
        CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), b);
        CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), a);
    }
}

TEST(priorities_have_queues_of_their_own)
{
    evtchn_port_t urgent = ipi_port(), idle = ipi_port();
    REQUIRE(urgent && idle);
    drain();
    CHECK_OK(set_priority(urgent, EVTCHN_FIFO_PRIORITY_MAX));
    CHECK_OK(set_priority(idle, EVTCHN_FIFO_PRIORITY_MIN));
    CHECK_OK(op_port(EVTCHNOP_send, idle));
    CHECK_OK(op_port(EVTCHNOP_send, urgent));
    CHECK_EQ(control.ready, WORD(EVTCHN_FIFO_PRIORITY_MAX) | WORD(EVTCHN_FIFO_PRIORITY_MIN));
    CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_MAX), urgent);
    CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_MIN), idle);
}

TEST(priority_errors)
{
    evtchn_port_t port = ipi_port();
    REQUIRE(port);
    CHECK_ERR(set_priority(port, EVTCHN_FIFO_PRIORITY_MIN + 1), XEN_EINVAL);
    CHECK_ERR(set_priority(1 << 20, 3), XEN_EINVAL);
}

TEST(mask_keeps_an_event_out_of_its_queue)
{
    evtchn_port_t port = ipi_port();
    REQUIRE(port);
    drain();
    words[port] = WORD(EVTCHN_FIFO_MASKED);
    CHECK_OK(op_port(EVTCHNOP_send, port));
    CHECK_EQ(words[port], WORD(EVTCHN_FIFO_MASKED) | WORD(EVTCHN_FIFO_PENDING));
    CHECK(!vcpu_info(0)->evtchn_upcall_pending);
    CHECK_OK(op_port(EVTCHNOP_unmask, port));
    CHECK_EQ(words[port], WORD(EVTCHN_FIFO_PENDING) | WORD(EVTCHN_FIFO_LINKED));
    CHECK_EQ(take(EVTCHN_FIFO_PRIORITY_DEFAULT), port);
}

TEST(poll_sees_a_pending_word)
{
    evtchn_port_t port = ipi_port();
    struct sched_poll poll = {.nr_ports = 1, .timeout = system_time() + 5000 * MS};
    REQUIRE(port);
    set_xen_guest_handle(poll.ports, &port);
    CHECK_OK(op_port(EVTCHNOP_send, port));
    CHECK_OK(sched_op(SCHEDOP_poll, &poll));
    CHECK(system_time() < poll.timeout);
}

TEST(control_block_is_given_once)
{
    CHECK(init_control(gfn_of(&control), 128, 0) < 0);
}

TEST(reset_goes_back_to_2_level)
{
    struct evtchn_reset op = {.dom = DOMID_SELF};
    evtchn_port_t port;
    CHECK_OK(event_channel_op(EVTCHNOP_reset, &op));
    CHECK(expand(gfn_of((void *)words)) < 0);
    REQUIRE((port = ipi_port()));
    memset((void *)words, 0, PAGE_SIZE);
    shared_info->evtchn_pending[0] = 0;
    CHECK_OK(op_port(EVTCHNOP_send, port));
    CHECK(port_pending(port));
    CHECK_EQ(words[port], 0);
}
