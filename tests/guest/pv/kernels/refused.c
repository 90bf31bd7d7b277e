/*
 * What a domU may not ask for is refused by the errno that Xen has for it; and how wide the arguments of hypercalls are.
 */
#include "pv.h"

/* Of Xen 4.17, whose headers show them to tools only. Ref: xen/include/public/platform.h, sysctl.h, domctl.h, arch-x86/xen-mca.h */
#define XENPF_INTERFACE_VERSION 0x03000001
#define XEN_SYSCTL_INTERFACE_VERSION 0x15
#define XEN_DOMCTL_INTERFACE_VERSION 0x15
#define __HYPERVISOR_mca __HYPERVISOR_arch_0

#define UPPER (0xabcdul << 32)

static long versioned(long hypercall_number, uint32_t version, uint32_t domid)
{
    uint32_t head[64] = {1, version, domid};
    return CALL1(hypercall_number, head);
}

TEST(toolstacks_are_elsewhere)
{
    CHECK_ERR(versioned(__HYPERVISOR_platform_op, XENPF_INTERFACE_VERSION, 0), XEN_EPERM);
    CHECK_ERR(versioned(__HYPERVISOR_platform_op, 1, 0), XEN_EACCES);
    CHECK_ERR(versioned(__HYPERVISOR_sysctl, XEN_SYSCTL_INTERFACE_VERSION, 0), XEN_EPERM);
    CHECK_ERR(versioned(__HYPERVISOR_sysctl, 1, 0), XEN_EACCES);
    CHECK_ERR(versioned(__HYPERVISOR_domctl, XEN_DOMCTL_INTERFACE_VERSION, 0), XEN_EPERM);
    CHECK_ERR(versioned(__HYPERVISOR_domctl, XEN_DOMCTL_INTERFACE_VERSION, 0x7000), XEN_ESRCH);
    CHECK_ERR(versioned(__HYPERVISOR_domctl, 1, 0x7000), XEN_EACCES);
    CHECK_ERR(CALL1(__HYPERVISOR_sysctl, BAD_PTR), XEN_EFAULT);
    CHECK_ERR(CALL1(__HYPERVISOR_domctl, BAD_PTR), XEN_EFAULT);
    CHECK_ERR(CALL1(__HYPERVISOR_platform_op, BAD_PTR), XEN_EFAULT);
    CHECK_ERR(CALL2(__HYPERVISOR_kexec_op, 0, NULL), XEN_EPERM);
    CHECK_ERR(CALL1(__HYPERVISOR_mca, NULL), XEN_EPERM);
    CHECK_ERR(CALL2(__HYPERVISOR_hypfs_op, 0, NULL), XEN_EPERM);
    CHECK_ERR(CALL2(__HYPERVISOR_xenpmu_op, 0, NULL), XEN_EOPNOTSUPP);
}

TEST(there_is_no_such_hypercall)
{
    CHECK_ERR(CALL1(63, 0), XEN_ENOSYS);
}

/* A command is an int: what is above it in the register does not count. */
TEST(commands_are_32_bits_wide)
{
    struct evtchn_close op = {.port = 0};
    struct vcpu_runstate_info info;
    CHECK_OK(CALL2(__HYPERVISOR_sched_op, SCHEDOP_yield | UPPER, 0));
    CHECK_ERR(CALL2(__HYPERVISOR_event_channel_op, EVTCHNOP_close | UPPER, &op), XEN_EINVAL);
    CHECK_OK(CALL3(__HYPERVISOR_vcpu_op, VCPUOP_get_runstate_info | UPPER, UPPER, &info));
    CHECK_OK(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_disable | UPPER, VMASST_TYPE_4gb_segments | UPPER));
    CHECK(CALL2(__HYPERVISOR_xen_version, XENVER_pagesize | UPPER, NULL) == PAGE_SIZE);
    CHECK_OK(CALL1(__HYPERVISOR_fpu_taskswitch, UPPER));
    CHECK_ERR(CALL2(__HYPERVISOR_set_debugreg, 9 | UPPER, 0), XEN_ENODEV);
    CHECK_OK(CALL2(__HYPERVISOR_set_debugreg, 1 | UPPER, 0));
}
