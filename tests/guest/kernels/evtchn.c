/*
 * event_channel_op under the 2-level ABI: an event sent on one end is pending on the other, a mask holds the upcall back
 * but not the event, and what cannot be bound is refused. The last test closes everything.
 */
#include "guest.h"

static long op_port(unsigned cmd, evtchn_port_t port)
{
    struct evtchn_send op = {.port = port}; /* close, send and unmask all take one port */
    return event_channel_op(cmd, &op);
}

static long status(evtchn_port_t port, struct evtchn_status *op)
{
    memset(op, 0, sizeof *op);
    op->dom = DOMID_SELF;
    op->port = port;
    return event_channel_op(EVTCHNOP_status, op);
}

static evtchn_port_t unbound_to_self(void)
{
    struct evtchn_alloc_unbound op = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    return event_channel_op(EVTCHNOP_alloc_unbound, &op) ? 0 : op.port;
}

/* Both ends of a channel to ourselves; the second is pending, as a fresh binding is. */
static bool loopback(evtchn_port_t ends[2])
{
    struct evtchn_bind_interdomain op = {.remote_dom = DOMID_SELF};
    ends[0] = op.remote_port = unbound_to_self();
    if (!ends[0] || event_channel_op(EVTCHNOP_bind_interdomain, &op))
        return false;
    ends[1] = op.local_port;
    return true;
}

static void clear(evtchn_port_t port)
{
    shared_info->evtchn_pending[port / BITS] &= ~(1ul << port % BITS);
    vcpu_info(0)->evtchn_upcall_pending = 0;
    vcpu_info(0)->evtchn_pending_sel = 0;
}

static void mask(evtchn_port_t port)
{
    shared_info->evtchn_mask[port / BITS] |= 1ul << port % BITS;
}

static bool masked(evtchn_port_t port)
{
    return shared_info->evtchn_mask[port / BITS] >> port % BITS & 1;
}

static bool upcall_for(evtchn_port_t port)
{
    return vcpu_info(0)->evtchn_upcall_pending && vcpu_info(0)->evtchn_pending_sel >> port / BITS & 1;
}

TEST(binding_is_pending_at_once)
{
    evtchn_port_t ends[2];
    REQUIRE(map_shared_info());
    CHECK(loopback(ends));
    CHECK(port_pending(ends[1]));
    CHECK(!port_pending(ends[0]));
}

TEST(send_reaches_the_other_end)
{
    evtchn_port_t ends[2];
    REQUIRE(loopback(ends));
    for (int from = 0; from < 2; from++) {
        clear(ends[0]);
        clear(ends[1]);
        CHECK_OK(op_port(EVTCHNOP_send, ends[from]));
        CHECK(port_pending(ends[!from]));
        CHECK(!port_pending(ends[from]));
        CHECK(upcall_for(ends[!from]));
    }
}

TEST(mask_holds_the_upcall_back)
{
    evtchn_port_t ends[2];
    REQUIRE(loopback(ends));
    clear(ends[1]);
    mask(ends[1]);
    CHECK_OK(op_port(EVTCHNOP_send, ends[0]));
    CHECK(port_pending(ends[1]));
    CHECK(!upcall_for(ends[1]));
    CHECK_OK(op_port(EVTCHNOP_unmask, ends[1]));
    CHECK(!masked(ends[1]));
    CHECK(upcall_for(ends[1]));
}

TEST(unmask_without_an_event)
{
    evtchn_port_t ends[2];
    REQUIRE(loopback(ends));
    clear(ends[1]);
    mask(ends[1]);
    CHECK_OK(op_port(EVTCHNOP_unmask, ends[1]));
    CHECK(!masked(ends[1]) && !upcall_for(ends[1]));
}

TEST(status_of_each_kind)
{
    struct evtchn_status is;
    struct evtchn_bind_virq virq = {.virq = VIRQ_DEBUG, .vcpu = 0};
    struct evtchn_bind_ipi ipi = {.vcpu = 0};
    evtchn_port_t ends[2], port = unbound_to_self();
    CHECK_OK(status(port, &is));
    CHECK_EQ(is.status, EVTCHNSTAT_unbound);
    CHECK_EQ(is.u.unbound.dom, own_domid());
    REQUIRE(loopback(ends));
    CHECK_OK(status(ends[0], &is));
    CHECK_EQ(is.status, EVTCHNSTAT_interdomain);
    CHECK_EQ(is.u.interdomain.dom, own_domid());
    CHECK_EQ(is.u.interdomain.port, ends[1]);
    CHECK_OK(event_channel_op(EVTCHNOP_bind_virq, &virq));
    CHECK_OK(status(virq.port, &is));
    CHECK_EQ(is.status, EVTCHNSTAT_virq);
    CHECK_EQ(is.u.virq, VIRQ_DEBUG);
    CHECK_OK(event_channel_op(EVTCHNOP_bind_ipi, &ipi));
    CHECK_OK(status(ipi.port, &is));
    CHECK_EQ(is.status, EVTCHNSTAT_ipi);
    CHECK_EQ(is.vcpu, 0);
    CHECK_OK(op_port(EVTCHNOP_close, ipi.port));
    CHECK_OK(status(ipi.port, &is));
    CHECK_EQ(is.status, EVTCHNSTAT_closed);
}

TEST(status_of_the_toolstacks_channels)
{
    struct evtchn_status is;
    uint64_t port;
    REQUIRE(get_param(HVM_PARAM_STORE_EVTCHN, &port) == 0);
    CHECK_OK(status(port, &is));
    CHECK_EQ(is.status, EVTCHNSTAT_interdomain);
    CHECK_EQ(is.u.interdomain.dom, 0);
}

TEST(close_leaves_the_other_end_unbound)
{
    struct evtchn_status is;
    evtchn_port_t ends[2];
    REQUIRE(loopback(ends));
    CHECK_OK(op_port(EVTCHNOP_close, ends[1]));
    CHECK_OK(status(ends[0], &is));
    CHECK_EQ(is.status, EVTCHNSTAT_unbound);
    CHECK_EQ(is.u.unbound.dom, own_domid());
    CHECK_OK(op_port(EVTCHNOP_send, ends[0]));
    CHECK_ERR(op_port(EVTCHNOP_close, ends[1]), XEN_EINVAL);
}

TEST(closed_ports_are_not_pending)
{
    evtchn_port_t ends[2];
    REQUIRE(loopback(ends));
    CHECK(port_pending(ends[1]));
    CHECK_OK(op_port(EVTCHNOP_close, ends[1]));
    CHECK(!port_pending(ends[1]));
}

TEST(ipi)
{
    struct evtchn_bind_ipi bind = {.vcpu = 0};
    CHECK_OK(event_channel_op(EVTCHNOP_bind_ipi, &bind));
    clear(bind.port);
    CHECK_OK(op_port(EVTCHNOP_send, bind.port));
    CHECK(port_pending(bind.port) && upcall_for(bind.port));
    bind.vcpu = 1;
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_ipi, &bind), XEN_ENOENT);
}

TEST(virq_errors)
{
    struct evtchn_bind_virq bind = {.virq = NR_VIRQS, .vcpu = 0};
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_virq, &bind), XEN_EINVAL);
    bind.virq = VIRQ_CONSOLE;
    bind.vcpu = 1;
    CHECK(event_channel_op(EVTCHNOP_bind_virq, &bind) < 0);
    bind.virq = VIRQ_TIMER;
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_virq, &bind), XEN_ENOENT);
    bind.vcpu = 0;
    CHECK_OK(event_channel_op(EVTCHNOP_bind_virq, &bind));
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_virq, &bind), XEN_EEXIST);
    CHECK_ERR(op_port(EVTCHNOP_send, bind.port), XEN_EINVAL);
    CHECK_OK(op_port(EVTCHNOP_close, bind.port));
    CHECK_OK(event_channel_op(EVTCHNOP_bind_virq, &bind));
}

TEST(pirqs_are_not_ours)
{
    struct evtchn_bind_pirq bind = {.pirq = 1};
    CHECK(event_channel_op(EVTCHNOP_bind_pirq, &bind) < 0);
}

TEST(bind_vcpu)
{
    struct evtchn_bind_ipi ipi = {.vcpu = 0};
    struct evtchn_bind_vcpu bind;
    evtchn_port_t ends[2];
    REQUIRE(loopback(ends));
    REQUIRE(event_channel_op(EVTCHNOP_bind_ipi, &ipi) == 0);
    bind = (struct evtchn_bind_vcpu){.port = ends[0], .vcpu = 0};
    CHECK_OK(event_channel_op(EVTCHNOP_bind_vcpu, &bind));
    bind.vcpu = 1;
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_vcpu, &bind), XEN_ENOENT);
    bind = (struct evtchn_bind_vcpu){.port = ipi.port, .vcpu = 0};
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_vcpu, &bind), XEN_EINVAL);
}

TEST(binding_errors)
{
    struct evtchn_alloc_unbound alloc = {.dom = DOMID_SELF, .remote_dom = 0};
    struct evtchn_bind_interdomain bind = {.remote_dom = DOMID_SELF};
    evtchn_port_t ends[2];
    CHECK_OK(event_channel_op(EVTCHNOP_alloc_unbound, &alloc));
    bind.remote_port = alloc.port; /* is for domain 0 */
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_interdomain, &bind), XEN_EINVAL);
    REQUIRE(loopback(ends));
    bind.remote_port = ends[0]; /* is bound */
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_interdomain, &bind), XEN_EINVAL);
    bind.remote_port = 1 << 30;
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_interdomain, &bind), XEN_EINVAL);
    bind.remote_dom = 0x7000;
    CHECK_ERR(event_channel_op(EVTCHNOP_bind_interdomain, &bind), XEN_ESRCH);
    alloc.dom = 0x7000;
    CHECK_ERR(event_channel_op(EVTCHNOP_alloc_unbound, &alloc), XEN_ESRCH);
}

TEST(no_such_port)
{
    static const evtchn_port_t ports[] = {0, 1000, 4096, 1 << 17, 0xffffffff};
    struct evtchn_status is;
    for (unsigned i = 0; i < ARRAY_SIZE(ports); i++) {
        CHECK_ERR(op_port(EVTCHNOP_send, ports[i]), XEN_EINVAL);
        CHECK_ERR(op_port(EVTCHNOP_close, ports[i]), XEN_EINVAL);
    }
    CHECK_ERR(op_port(EVTCHNOP_unmask, 1 << 17), XEN_EINVAL);
    CHECK_ERR(status(0xffffffff, &is), XEN_EINVAL);
}

TEST(priorities_need_fifo)
{
    struct evtchn_set_priority op = {.port = unbound_to_self(), .priority = 3};
    struct evtchn_expand_array expand = {.array_gfn = 1};
    CHECK_ERR(event_channel_op(EVTCHNOP_set_priority, &op), XEN_ENOSYS);
    CHECK(event_channel_op(EVTCHNOP_expand_array, &expand) < 0);
}

TEST(bad_pointer)
{
    for (unsigned cmd = EVTCHNOP_bind_interdomain; cmd <= EVTCHNOP_set_priority; cmd++)
        CHECK_ERR(event_channel_op(cmd, BAD_POINTER), XEN_EFAULT);
}

TEST(unknown_command)
{
    struct evtchn_send op = {0};
    CHECK_ERR(event_channel_op(99, &op), XEN_ENOSYS);
}

/* xl gives a guest 1023 ports unless its configuration says otherwise. */
TEST(ports_run_out)
{
    struct evtchn_alloc_unbound op = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    evtchn_port_t last = 0;
    long rc;
    while (!(rc = event_channel_op(EVTCHNOP_alloc_unbound, &op)) && op.port > last && last < 5000)
        last = op.port;
    CHECK_EQ(rc, -XEN_ENOSPC);
    CHECK_EQ(last, 1023);
    CHECK_OK(op_port(EVTCHNOP_close, 700));
    CHECK_OK(event_channel_op(EVTCHNOP_alloc_unbound, &op));
    CHECK_EQ(op.port, 700);
}

TEST(reset_closes_all)
{
    struct evtchn_reset op = {.dom = DOMID_SELF};
    struct evtchn_status is;
    uint64_t port;
    REQUIRE(get_param(HVM_PARAM_CONSOLE_EVTCHN, &port) == 0);
    CHECK_OK(event_channel_op(EVTCHNOP_reset, &op));
    CHECK_OK(status(port, &is));
    CHECK_EQ(is.status, EVTCHNSTAT_closed);
    CHECK_OK(status(700, &is));
    CHECK_EQ(is.status, EVTCHNSTAT_closed);
    op.dom = 0x7000;
    CHECK_ERR(event_channel_op(EVTCHNOP_reset, &op), XEN_ESRCH);
}
