/*
 * What user mode of a PV guest cannot reach: the hypervisor's part of the address space, the ports that in-guest code uses, hypercalls,
 * privileged instructions.
 */
#include "pv.h"

#define SLOT_SHIFT 39
#define CANONICAL 0xffff000000000000
#define PROBES 64
#define MARK USER_DONE
#define XEN_SLOT_FIRST 256
#define XEN_SLOT_END 272

static int probed;

/* Whether user mode faults wherever it reads, writes and executes at an address. */
static bool out_of_reach(unsigned long va, const char **how)
{
    *how = "read";
    if (run_user(user_read, va)->vector != 14 || last_cr2 != va)
        return false;
    *how = "write";
    if (run_user(user_write, va)->vector != 14 || last_cr2 != va)
        return false;
    *how = "execute";
    const struct trap_frame *frame = run_user(user_execute, va);
    return frame->vector == 14 && last_cr2 == va;
}

#define CHECK_OUT_OF_REACH(va)                                                                               \
    do {                                                                                                     \
        const char *how_;                                                                                    \
        if (!out_of_reach(va, &how_)) {                                                                      \
            verdict("FAILURE", "user mode can %s at %x: vector %d, cr2 %x", how_, (unsigned long)(va),       \
                    last_trap.vector, last_cr2);                                                             \
            return;                                                                                          \
        }                                                                                                    \
    } while (0)

TEST(m2p_is_out_of_reach)
{
    CHECK_OUT_OF_REACH((unsigned long)m2p);
    CHECK_OUT_OF_REACH((unsigned long)&m2p[mfn_of(&probed)]);
}

TEST(every_slot_of_the_hypervisor_is_out_of_reach)
{
    static const unsigned long offsets[] = {0,         1ul << 20, 1ul << 29,                1ul << 30,
                                            3ul << 29, 1ul << 31, (1ul << 31) + 0x200000, 1ul << 38};
    for (unsigned long slot = XEN_SLOT_FIRST; slot < XEN_SLOT_END; slot++)
        for (unsigned i = 0; i < ARRAY_SIZE(offsets); i++)
            CHECK_OUT_OF_REACH(CANONICAL | slot << SLOT_SHIFT | offsets[i]);
}

/* What the hypervisor writes to by itself must be the guest's own memory, and none that is checked. */
TEST(vcpu_info_is_in_plain_memory)
{
    const unsigned long frames[] = {mfn_of((void *)xen_start->pt_base), 0x40000, xen_start->shared_info / PAGE_SIZE, NO_MFN};
    for (unsigned i = 0; i < ARRAY_SIZE(frames); i++) {
        struct vcpu_register_vcpu_info op = {.mfn = frames[i]};
        CHECK_EQ(vcpu_op(VCPUOP_register_vcpu_info, 0, &op), -(long)XEN_EINVAL);
    }
}

/* The slot that holds the M2P holds all the rest: look through it in steps. */
TEST(windows_are_out_of_reach_page_by_page)
{
    unsigned long slot = (unsigned long)m2p & ~((1ul << SLOT_SHIFT) - 1);
    unsigned entry_pages = 0;
    for (unsigned long page = 0; page < PROBES; page++) {
        unsigned long va = slot + (1ul << 30) + page * PAGE_SIZE;
        if (run_user(user_read, va)->vector != 14)
            entry_pages++; /* the one that SYSCALL leads to may be read: its code is no secret */
        const struct trap_frame *frame = run_user(user_write, va);
        if (frame->vector != 14) {
            verdict("FAILURE", "user mode can write page %d of the window", page);
            return;
        }
    }
    CHECK(entry_pages <= 1);
}

TEST(guest_memory_is_out_of_reach_by_any_map_of_it)
{
    unsigned long slot = (unsigned long)m2p & ~((1ul << SLOT_SHIFT) - 1);
    for (unsigned long gigabyte = 0; gigabyte < 512; gigabyte++) {
        if (gigabyte == 1)
            continue; /* the windows: see above */
        CHECK_EQ(run_user(user_read, slot + (gigabyte << 30))->vector, 14);
        CHECK_EQ(run_user(user_write, slot + (gigabyte << 30) + mfn_of(&probed) * 8 % (1ul << 30))->vector, 14);
    }
}

/* Xen lets one L4 serve both modes; where the kernel's view shows more than user mode's it must not, whichever comes first. */
TEST(kernels_tables_are_not_user_modes)
{
    unsigned long kernel = mfn_of((void *)xen_start->pt_base);
    run_user(user_echo, 0);
    CHECK_EQ(mmuext(MMUEXT_NEW_USER_BASEPTR, kernel, 0), -(long)XEN_EINVAL);
    CHECK_EQ(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(user_l4), 0), -(long)XEN_EINVAL);
    CHECK_EQ(run_user(user_echo, 0)->vector, ENTRY_SYSCALL);
}

static void __attribute__((noreturn)) talks_to_port(unsigned long port)
{
    __asm__ volatile("mov $23, %%eax; mov $0, %%edi; out %%eax, %%dx; out %%al, %%dx" ::"d"(port) : "rax", "rdi");
    user_exit(MARK);
}

static void __attribute__((noreturn)) listens_to_port(unsigned long port)
{
    unsigned value = 0x5a5a5a5a;
    __asm__ volatile("in %%dx, %%eax" : "+a"(value) : "d"(port));
    user_exit(value);
}

TEST(ports_of_in_guest_code_do_nothing_for_user_mode)
{
    for (unsigned long port = 0xe0; port < 0xe8; port++) {
        const struct trap_frame *frame = run_user(talks_to_port, port);
        CHECK(frame->vector == 13 || (frame->vector == ENTRY_SYSCALL && frame->rax == MARK));
        frame = run_user(listens_to_port, port);
        CHECK(frame->vector == 13 || (frame->vector == ENTRY_SYSCALL && (uint32_t)frame->rax == 0xffffffff));
    }
    CHECK_EQ(run_user(talks_to_port, 0xdf)->vector, 13);
    CHECK_EQ(run_user(talks_to_port, 0xe8)->vector, 13);
    CHECK_EQ(run_user(talks_to_port, 0x0e)->vector, 13);
}

static void __attribute__((noreturn)) calls_xen(unsigned long number)
{
    struct sched_shutdown op = {.reason = SHUTDOWN_crash};
    unsigned long result = number;
    __asm__ volatile("syscall" : "+a"(result) : "D"((unsigned long)SCHEDOP_shutdown), "S"(&op) : "rcx", "r11", "memory");
    user_exit(result);
}

TEST(hypercalls_are_the_kernels)
{
    const struct trap_frame *frame = run_user(calls_xen, __HYPERVISOR_sched_op);
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK_EQ(frame->rax, __HYPERVISOR_sched_op);
}

static void __attribute__((noreturn)) jumps_into_the_entry(unsigned long va)
{
    struct sched_shutdown op = {.reason = SHUTDOWN_crash};
    unsigned long result = __HYPERVISOR_sched_op;
    __asm__ volatile("lea 1f(%%rip), %%rcx; mov $0x202, %%r11d; jmp *%%rdx; 1:"
                     : "+a"(result)
                     : "d"(va), "D"((unsigned long)SCHEDOP_shutdown), "S"(&op)
                     : "rcx", "r11", "memory");
    user_exit(MARK);
}

/* Whoever jumps to the code that SYSCALL leads to gets no more than by SYSCALL: its kernel is called, or faults. */
TEST(jumping_to_where_syscall_leads_is_a_system_call)
{
    unsigned long slot = (unsigned long)m2p & ~((1ul << SLOT_SHIFT) - 1);
    for (unsigned long page = 0; page < PROBES; page++)
        for (unsigned long offset = 0; offset < 48; offset += page == 20 ? 1 : 16) {
            const struct trap_frame *frame = run_user(jumps_into_the_entry, slot + (1ul << 30) + page * PAGE_SIZE + offset);
            CHECK(frame->vector != ENTRY_EVENT);
            CHECK(frame->cs & RPL);
        }
}

static void __attribute__((noreturn)) is_privileged(unsigned long which)
{
    unsigned long value = MARK;
    switch (which) {
    case 0:
        __asm__ volatile("mov %%cr3, %0" : "=r"(value));
        break;
    case 1:
        __asm__ volatile("mov %0, %%cr3" ::"r"(value));
        break;
    case 2:
        __asm__ volatile("rdmsr" : "=a"(value) : "c"(0xc0000100) : "rdx");
        break;
    case 3:
        __asm__ volatile("wrmsr" ::"a"(0), "d"(0), "c"(0xc0000100));
        break;
    case 4:
        __asm__ volatile("cli");
        break;
    case 5:
        __asm__ volatile("clts");
        break;
    case 6:
        __asm__ volatile("mov %0, %%dr7" ::"r"(value));
        break;
    default:
        __asm__ volatile("out %%al, $0xe9" ::"a"(0));
        break;
    }
    user_exit(value);
}

TEST(privileged_instructions_are_refused)
{
    for (unsigned which = 0; which < 8; which++) {
        const struct trap_frame *frame = run_user(is_privileged, which);
        CHECK_EQ(frame->vector, 13);
        CHECK_EQ(frame->error, 0);
        CHECK_EQ(frame->rdi, which);
    }
}

static void __attribute__((noreturn)) asks_cpuid(unsigned long leaf)
{
    unsigned a = (unsigned)leaf, b, c = 0, d;
    __asm__ volatile("ud2a; .ascii \"xen\"; cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    user_exit(b);
}

TEST(cpuid_by_prefix_works_in_user_mode)
{
    const struct trap_frame *frame = run_user(asks_cpuid, 0x40000000);
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK_EQ(frame->rax, 0x566e6558);
}
