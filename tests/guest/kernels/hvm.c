/*
 * hvm_op: which parameters a guest may read and write, and the smaller commands.
 */
#include "guest.h"

static uint8_t page[PAGE_SIZE] PAGE_ALIGNED;

static long set_vector(uint32_t vcpu, uint8_t vector)
{
    struct xen_hvm_evtchn_upcall_vector op = {.vcpu = vcpu, .vector = vector};
    return hvm_op(HVMOP_set_evtchn_upcall_vector, &op);
}

TEST(ring_parameters)
{
    uint64_t store_gfn, store_port, console_gfn, console_port;
    CHECK_OK(get_param(HVM_PARAM_STORE_PFN, &store_gfn));
    CHECK_OK(get_param(HVM_PARAM_STORE_EVTCHN, &store_port));
    CHECK_OK(get_param(HVM_PARAM_CONSOLE_PFN, &console_gfn));
    CHECK_OK(get_param(HVM_PARAM_CONSOLE_EVTCHN, &console_port));
    CHECK(store_gfn && console_gfn && store_gfn != console_gfn);
    CHECK(store_port && console_port && store_port != console_port);
}

TEST(ring_parameters_are_the_toolstacks)
{
    CHECK_ERR(set_param(HVM_PARAM_STORE_PFN, 1), XEN_EPERM);
    CHECK_ERR(set_param(HVM_PARAM_CONSOLE_PFN, 1), XEN_EPERM);
}

TEST(ports_are_set_once)
{
    uint64_t port;
    REQUIRE(get_param(HVM_PARAM_STORE_EVTCHN, &port) == 0);
    CHECK_ERR(set_param(HVM_PARAM_STORE_EVTCHN, port + 1), XEN_EEXIST);
    CHECK_OK(set_param(HVM_PARAM_STORE_EVTCHN, port));
}

TEST(parameters_of_the_device_model)
{
    uint64_t value;
    CHECK_ERR(get_param(HVM_PARAM_IOREQ_PFN, &value), XEN_EPERM);
    CHECK_ERR(set_param(HVM_PARAM_IOREQ_PFN, 1), XEN_EPERM);
    CHECK_ERR(get_param(HVM_PARAM_IDENT_PT, &value), XEN_EPERM);
    CHECK_ERR(get_param(HVM_PARAM_TRIPLE_FAULT_REASON, &value), XEN_EPERM);
}

TEST(no_such_parameter)
{
    uint64_t value;
    CHECK_ERR(get_param(HVM_NR_PARAMS, &value), XEN_EINVAL);
    CHECK_ERR(get_param(0xffffffff, &value), XEN_EINVAL);
    CHECK_ERR(set_param(HVM_NR_PARAMS, 0), XEN_EINVAL);
}

TEST(callback_irq_is_kept)
{
    uint64_t value, via = (uint64_t)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | 0xf3;
    CHECK_OK(set_param(HVM_PARAM_CALLBACK_IRQ, via));
    CHECK_OK(get_param(HVM_PARAM_CALLBACK_IRQ, &value));
    CHECK(value == via);
    CHECK_OK(set_param(HVM_PARAM_CALLBACK_IRQ, 0));
}

TEST(other_domain)
{
    struct xen_hvm_param param = {.domid = 0x7000, .index = HVM_PARAM_STORE_PFN};
    CHECK_ERR(hvm_op(HVMOP_get_param, &param), XEN_ESRCH);
    CHECK_ERR(hvm_op(HVMOP_set_param, &param), XEN_ESRCH);
    param.domid = own_domid();
    CHECK_OK(hvm_op(HVMOP_get_param, &param));
}

TEST(get_time_is_monotonic)
{
    uint64_t last = system_time();
    for (int i = 0; i < 50; i++) {
        uint64_t now = system_time();
        CHECK(now >= last);
        last = now;
    }
}

TEST(get_mem_type)
{
    struct xen_hvm_get_mem_type op = {.domid = DOMID_SELF, .pfn = gfn_of(page), .mem_type = 0xff};
    CHECK_OK(hvm_op(HVMOP_get_mem_type, &op));
    CHECK_EQ(op.mem_type, HVMMEM_ram_rw);
    op.pfn = UNPOPULATED_GFN;
    CHECK_OK(hvm_op(HVMOP_get_mem_type, &op));
    CHECK_EQ(op.mem_type, HVMMEM_mmio_dm);
    op.domid = 0x7000;
    CHECK_ERR(hvm_op(HVMOP_get_mem_type, &op), XEN_ESRCH);
}

TEST(upcall_vector_of_no_vcpu)
{
    CHECK_ERR(set_vector(1, 0xf3), XEN_ENOENT);
    CHECK_ERR(set_vector(0xffffffff, 0xf3), XEN_ENOENT);
}

TEST(upcall_vector_of_an_exception)
{
    CHECK_ERR(set_vector(0, 0), XEN_EINVAL);
    CHECK_ERR(set_vector(0, 0xf), XEN_EINVAL);
    CHECK_OK(set_vector(0, 0x10));
}

TEST(flush_tlbs)
{
    CHECK_OK(hvm_op(HVMOP_flush_tlbs, 0));
    CHECK_ERR(hvm_op(HVMOP_flush_tlbs, page), XEN_EINVAL);
}

/* Guests try it with a gpa of 0 to learn whether it exists; any error is a fine answer, a success is not. */
TEST(pagetable_dying_is_refused)
{
    struct xen_hvm_pagetable_dying op = {.domid = DOMID_SELF};
    CHECK(hvm_op(HVMOP_pagetable_dying, &op) < 0);
}

TEST(bad_pointer)
{
    static const unsigned cmds[] = {HVMOP_get_param, HVMOP_set_param, HVMOP_get_time, HVMOP_get_mem_type,
                                    HVMOP_set_evtchn_upcall_vector};
    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++)
        CHECK_ERR(hvm_op(cmds[i], BAD_POINTER), XEN_EFAULT);
}

TEST(unknown_command)
{
    CHECK_ERR(hvm_op(99, page), XEN_ENOSYS);
}
