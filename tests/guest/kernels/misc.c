/*
 * The small hypercalls: console_io, multicall, vm_assist, and those that an HVM guest is told do not exist.
 */
#include "guest.h"

#define CONSOLE_TEXT "text: written by console_io\n"

static struct multicall_entry calls[4];

static long multicall(struct multicall_entry *list, unsigned count)
{
    return CALL2(__HYPERVISOR_multicall, list, count);
}

TEST(console_write)
{
    CHECK_OK(CALL3(__HYPERVISOR_console_io, CONSOLEIO_write, strlen(CONSOLE_TEXT), CONSOLE_TEXT));
    CHECK_OK(CALL3(__HYPERVISOR_console_io, CONSOLEIO_write, 0, CONSOLE_TEXT));
}

TEST(console_write_errors)
{
    CHECK_ERR(CALL3(__HYPERVISOR_console_io, CONSOLEIO_write, 4, BAD_POINTER), XEN_EFAULT);
    CHECK_ERR(CALL3(__HYPERVISOR_console_io, CONSOLEIO_write, 0x80000000, CONSOLE_TEXT), XEN_EINVAL);
    CHECK_ERR(CALL3(__HYPERVISOR_console_io, 9, 1, CONSOLE_TEXT), XEN_ENOSYS);
}

TEST(console_read_is_dom0s)
{
    char c;
    CHECK_ERR(CALL3(__HYPERVISOR_console_io, CONSOLEIO_read, 1, &c), XEN_EPERM);
}

TEST(debug_port_answers)
{
    CHECK_EQ(inb(0xe9), 0xe9);
    debug_port("text: written to the debug port\n");
}

TEST(multicall_results)
{
    struct sched_watchdog op = {.id = 3, .timeout = 1};
    memset(calls, 0, sizeof calls);
    calls[0].op = __HYPERVISOR_xen_version;
    calls[0].args[0] = XENVER_version;
    calls[1].op = __HYPERVISOR_sched_op;
    calls[1].args[0] = SCHEDOP_watchdog;
    calls[1].args[1] = (unsigned long)&op;
    calls[2].op = 60;
    calls[3].op = __HYPERVISOR_xen_version;
    calls[3].args[0] = XENVER_pagesize;
    CHECK_OK(multicall(calls, 4));
    CHECK_EQ(calls[0].result, xen_version(XENVER_version, 0));
    CHECK_EQ(calls[1].result, -XEN_EINVAL);
    CHECK_EQ(calls[2].result, -XEN_ENOSYS);
    CHECK_EQ(calls[3].result, PAGE_SIZE);
}

TEST(multicall_of_nothing)
{
    CHECK_OK(multicall(calls, 0));
}

TEST(multicall_does_not_nest)
{
    memset(calls, 0, sizeof calls);
    calls[0].op = __HYPERVISOR_multicall;
    calls[0].args[0] = (unsigned long)&calls[1];
    calls[0].args[1] = 1;
    calls[1].op = __HYPERVISOR_xen_version;
    calls[1].result = 0x55;
    long rc = multicall(calls, 1);
    CHECK(rc == -XEN_EINVAL || (rc == 0 && (long)calls[0].result == -XEN_EINVAL));
    CHECK_EQ(calls[1].result, 0x55);
}

TEST(multicall_from_a_bad_pointer)
{
    CHECK_ERR(multicall(BAD_POINTER, 1), XEN_EFAULT);
}

TEST(vm_assist)
{
    CHECK_OK(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_runstate_update_flag));
    CHECK_OK(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_disable, VMASST_TYPE_runstate_update_flag));
}

TEST(vm_assists_of_pv)
{
    CHECK_ERR(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_4gb_segments), XEN_EINVAL);
    CHECK_ERR(CALL2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, 60), XEN_EINVAL);
    CHECK_ERR(CALL2(__HYPERVISOR_vm_assist, 9, VMASST_TYPE_runstate_update_flag), XEN_ENOSYS);
}

TEST(physdev_op_is_not_there)
{
    struct physdev_set_iopl op = {.iopl = 1};
    CHECK_ERR(CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, &op), XEN_ENOSYS);
    CHECK_ERR(CALL2(__HYPERVISOR_physdev_op, 99, &op), XEN_ENOSYS);
}

TEST(callback_op_is_not_there)
{
    struct callback_register op = {.type = CALLBACKTYPE_event};
    CHECK_ERR(CALL2(__HYPERVISOR_callback_op, CALLBACKOP_register, &op), XEN_ENOSYS);
}

TEST(hypercalls_of_pv_are_not_there)
{
    static const unsigned numbers[] = {
        __HYPERVISOR_set_trap_table, __HYPERVISOR_mmu_update,       __HYPERVISOR_set_gdt,
        __HYPERVISOR_stack_switch,   __HYPERVISOR_set_callbacks,    __HYPERVISOR_fpu_taskswitch,
        __HYPERVISOR_set_debugreg,   __HYPERVISOR_get_debugreg,     __HYPERVISOR_update_descriptor,
        __HYPERVISOR_update_va_mapping, __HYPERVISOR_set_segment_base,
    };
    for (unsigned i = 0; i < ARRAY_SIZE(numbers); i++)
        CHECK_ERR(hypercall(numbers[i], 0, 0, 0, 0, 0), XEN_ENOSYS);
}

TEST(unknown_hypercalls)
{
    for (unsigned number = 60; number < 128; number += 13)
        CHECK_ERR(hypercall(number, 1, 2, 3, 4, 5), XEN_ENOSYS);
}

/* Where a hypercall of that number would return to, an HVM guest has no such thing: the stub faults by design. */
TEST(hypercall_page_has_no_iret)
{
    const uint8_t *stub = hypercall_page + 32 * __HYPERVISOR_iret;
    CHECK_EQ(stub[0], 0x0f);
    CHECK_EQ(stub[1], 0x0b);
}

