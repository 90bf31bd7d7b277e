/*
 * Three hypercalls in the form that they had before Xen 3.2, and the assists that only 32-bit kernels have a use for.
 * Ref: xen/include/public/event_channel.h, physdev.h, sched.h
 */
#include "pv.h"

static long old_sched_op(long cmd, unsigned long arg)
{
    return CALL2(__HYPERVISOR_sched_op_compat, cmd, arg);
}

static long old_event_channel_op(struct evtchn_op *op)
{
    return CALL1(__HYPERVISOR_event_channel_op_compat, op);
}

static long old_physdev_op(struct physdev_op *op)
{
    return CALL1(__HYPERVISOR_physdev_op_compat, op);
}

TEST(assists_of_32_bit_kernels)
{
    static const unsigned types[] = {VMASST_TYPE_4gb_segments, VMASST_TYPE_4gb_segments_notify, VMASST_TYPE_pae_extended_cr3};
    for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
        CHECK_OK(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, types[i]));
        CHECK_OK(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_disable, types[i]));
    }
    CHECK_ERR(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, 6), XEN_EINVAL);
    CHECK_ERR(CALL2(__HYPERVISOR_vm_assist, 9, VMASST_TYPE_writable_pagetables), XEN_ENOSYS);
    CHECK_ERR(CALL2(__HYPERVISOR_vm_assist, 9, 6), XEN_EINVAL);
}

TEST(old_event_channel_op)
{
    struct evtchn_op op = {.cmd = EVTCHNOP_bind_ipi, .u.bind_ipi.vcpu = 0};
    CHECK_OK(old_event_channel_op(&op));
    uint32_t port = op.u.bind_ipi.port;
    CHECK(port);
    op = (struct evtchn_op){.cmd = EVTCHNOP_status, .u.status = {.dom = DOMID_SELF, .port = port}};
    CHECK_OK(old_event_channel_op(&op));
    CHECK_EQ(op.u.status.status, EVTCHNSTAT_ipi);
    op = (struct evtchn_op){.cmd = EVTCHNOP_send, .u.send.port = port};
    CHECK_OK(old_event_channel_op(&op));
    CHECK(port_pending(port));
    op = (struct evtchn_op){.cmd = EVTCHNOP_close, .u.close.port = port};
    CHECK_OK(old_event_channel_op(&op));
    CHECK_ERR(old_event_channel_op(&op), XEN_EINVAL);
    op = (struct evtchn_op){.cmd = EVTCHNOP_reset};
    CHECK_ERR(old_event_channel_op(&op), XEN_ENOSYS);
    CHECK_ERR(old_event_channel_op(BAD_PTR), XEN_EFAULT);
}

TEST(old_physdev_op)
{
    struct physdev_op op = {.cmd = PHYSDEVOP_set_iopl, .u.set_iopl.iopl = 1};
    CHECK_OK(old_physdev_op(&op));
    op.u.set_iopl.iopl = 4;
    CHECK_ERR(old_physdev_op(&op), XEN_EINVAL);
    op = (struct physdev_op){.cmd = PHYSDEVOP_irq_status_query, .u.irq_status_query.irq = 1};
    struct physdev_irq_status_query query = {.irq = 1};
    CHECK_EQ(old_physdev_op(&op), CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_irq_status_query, &query));
    op.cmd = 99;
    CHECK_ERR(old_physdev_op(&op), XEN_ENOSYS);
    CHECK_ERR(old_physdev_op(BAD_PTR), XEN_EFAULT);
}

static bool called;

static void upcall(struct trap_frame *frame)
{
    (void)frame;
    called = true;
    vcpu_info(0)->evtchn_upcall_pending = 0;
}

TEST(old_sched_op)
{
    on_trap(ENTRY_EVENT, upcall);
    CHECK_OK(old_sched_op(SCHEDOP_yield, 0));
    struct evtchn_op op = {.cmd = EVTCHNOP_bind_ipi, .u.bind_ipi.vcpu = 0};
    REQUIRE(old_event_channel_op(&op) == 0);
    uint32_t port = op.u.bind_ipi.port;
    op = (struct evtchn_op){.cmd = EVTCHNOP_send, .u.send.port = port};
    REQUIRE(old_event_channel_op(&op) == 0);
    CHECK_OK(old_sched_op(SCHEDOP_block, 0)); /* with events on; one is there to end it */
    CHECK(called);
    CHECK_ERR(old_sched_op(SCHEDOP_poll, 0), XEN_ENOSYS);
    CHECK_ERR(old_sched_op(-1, 0), XEN_ENOSYS);
    op = (struct evtchn_op){.cmd = EVTCHNOP_close, .u.close.port = port};
    CHECK_OK(old_event_channel_op(&op));
}
