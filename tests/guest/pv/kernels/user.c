/*
 * User mode of a PV guest: how it is left and come back to, and what it cannot reach: the hypervisor's part of the address space, the
 * ports that in-guest code uses, hypercalls. Ref: xen/include/public/arch-x86/xen-x86_64.h, struct iret_context
 */
#include "pv.h"

#define PF_USER 4
#define PF_WRITE 2
#define ERROR_INT 2
#define SLOT_SHIFT 39
#define CANONICAL 0xffff000000000000
#define PROBES 64
#define MARK 0x123456789abcdef0
#define XEN_SLOT_FIRST 256
#define XEN_SLOT_END 272
#define LOW_CODE PLAYGROUND
#define LOW_STACK (PLAYGROUND + 2 * PAGE_SIZE)
#define EFLAGS_IF 0x200

static void __attribute__((noreturn)) says_its_argument(unsigned long argument)
{
    user_exit(argument);
}

TEST(syscall_from_user_mode)
{
    const struct trap_frame *frame = run_user(says_its_argument, MARK);
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK_EQ(frame->rax, MARK);
    CHECK_EQ(frame->cs & 0xffff, CS64);
    CHECK_EQ(frame->ss, SS);
    CHECK_EQ(*(uint16_t *)(frame->rip - 2), 0x050f);
    CHECK_EQ(frame->rcx, frame->rip);
    CHECK(frame->flags & FLAGS_IF || frame->cs >> 32);
    CHECK((unsigned long)frame->rsp % 8 == 0 && frame->rsp != 0);
}

TEST(registers_survive)
{
    struct trap_frame start = user_frame((unsigned long)says_its_argument, MARK);
    start.rdx = MARK + 1;
    start.rsi = MARK + 2;
    start.flags |= 0x8d5 | FLAGS_DF;
    const struct trap_frame *frame = run_user_frame(&start);
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK_EQ(frame->rdx, MARK + 1);
    CHECK_EQ(frame->rsi, MARK + 2);
    CHECK_EQ(frame->rdi, MARK);
    CHECK_EQ(frame->flags & FLAGS_DF, FLAGS_DF);
}

TEST(kernel_stack_is_used)
{
    run_user(says_its_argument, 0);
    /* take_trap's frame is in last_trap; where it was is the trap stack, whose highest words still hold it. */
    const unsigned long *top = (const unsigned long *)trap_stack_top;
    CHECK_EQ(top[-1], last_trap.ss);
    CHECK_EQ(top[-2], last_trap.rsp);
    CHECK_EQ(top[-4], last_trap.cs);
    CHECK_EQ(top[-5], last_trap.rip);
}

static void __attribute__((noreturn)) interrupts(unsigned long which)
{
    if (which == INT_USER)
        __asm__ volatile("int $0x80");
    if (which == INT_KERNEL)
        __asm__ volatile("int $0x83");
    if (which == 3)
        __asm__ volatile("int3");
    if (which == 6)
        __asm__ volatile("ud2");
    if (which == 13)
        __asm__ volatile("hlt");
    if (which == 0)
        __asm__ volatile("xor %%ecx, %%ecx; div %%ecx" ::: "eax", "ecx", "edx");
    user_exit(0);
}

TEST(exceptions_from_user_mode)
{
    static const unsigned vectors[] = {INT_USER, 3, 6, 13, 0};
    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++) {
        const struct trap_frame *frame = run_user(interrupts, vectors[i]);
        CHECK_EQ(frame->vector, vectors[i]);
        CHECK_EQ(frame->cs & 0xffff, CS64);
        CHECK_EQ(frame->error, 0);
        CHECK_EQ(frame->rdi, vectors[i]);
    }
}

TEST(int_of_the_kernels_is_a_gp)
{
    const struct trap_frame *frame = run_user(interrupts, INT_KERNEL);
    CHECK_EQ(frame->vector, 13);
    CHECK_EQ(frame->error, INT_KERNEL << 3 | ERROR_INT);
}

static void __attribute__((noreturn)) reads(unsigned long va)
{
    user_exit(*(volatile unsigned long *)va);
}

static void __attribute__((noreturn)) writes(unsigned long va)
{
    *(volatile unsigned long *)va = MARK;
    user_exit(MARK);
}

static void __attribute__((noreturn)) executes(unsigned long va)
{
    ((void (*)(void))va)();
    user_exit(MARK);
}

TEST(page_faults_from_user_mode)
{
    const struct trap_frame *frame = run_user(reads, BAD_ADDRESS + 8);
    CHECK_EQ(frame->vector, 14);
    CHECK_EQ(frame->error, PF_USER);
    CHECK_EQ(last_cr2, BAD_ADDRESS + 8);
    CHECK_EQ(frame->rdi, BAD_ADDRESS + 8);
    frame = run_user(writes, BAD_ADDRESS + 16);
    CHECK_EQ(frame->vector, 14);
    CHECK_EQ(frame->error, PF_USER | PF_WRITE);
    CHECK_EQ(last_cr2, BAD_ADDRESS + 16);
}

static unsigned long resolved;

static void resolve(struct trap_frame *frame)
{
    static uint8_t page[PAGE_SIZE] PAGE_ALIGNED;
    resolved++;
    *(unsigned long *)page = MARK + 7;
    if (!(frame->cs & RPL) || !map_at(PLAYGROUND + 0x100000, pte(page, PTE_RW_PAGE)))
        shutdown(SHUTDOWN_crash);
    for (unsigned slot = 0; slot < 256; slot++) { /* where the kernel's tables have got something new */
        uint64_t entry = ((const uint64_t *)xen_start->pt_base)[slot];
        if (entry != user_l4[slot])
            mmu_update(maddr_of(&user_l4[slot]), entry);
    }
}

TEST(page_fault_that_is_resolved)
{
    on_trap(14, resolve);
    const struct trap_frame *frame = run_user(reads, PLAYGROUND + 0x100000);
    on_trap(14, NULL);
    CHECK_EQ(resolved, 1);
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK_EQ(frame->rax, MARK + 7);
}

/* -- isolation --------------------------------------------------------------------------------------------------------- */

/* Whether user mode faults wherever it reads, writes and executes at an address. */
static bool out_of_reach(unsigned long va, const char **how)
{
    *how = "read";
    if (run_user(reads, va)->vector != 14 || last_cr2 != va)
        return false;
    *how = "write";
    if (run_user(writes, va)->vector != 14 || last_cr2 != va)
        return false;
    *how = "execute";
    const struct trap_frame *frame = run_user(executes, va);
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
    CHECK_OUT_OF_REACH((unsigned long)&m2p[mfn_of(&resolved)]);
}

TEST(every_slot_of_the_hypervisor_is_out_of_reach)
{
    static const unsigned long offsets[] = {0,         1ul << 20, 1ul << 29,                1ul << 30,
                                            3ul << 29, 1ul << 31, (1ul << 31) + 0x200000, 1ul << 38};
    for (unsigned long slot = XEN_SLOT_FIRST; slot < XEN_SLOT_END; slot++)
        for (unsigned i = 0; i < ARRAY_SIZE(offsets); i++)
            CHECK_OUT_OF_REACH(CANONICAL | slot << SLOT_SHIFT | offsets[i]);
}

/* The slot that holds the M2P holds all the rest: look through it in steps. */
TEST(windows_are_out_of_reach_page_by_page)
{
    unsigned long slot = (unsigned long)m2p & ~((1ul << SLOT_SHIFT) - 1);
    unsigned entry_pages = 0;
    for (unsigned long page = 0; page < PROBES; page++) {
        unsigned long va = slot + (1ul << 30) + page * PAGE_SIZE;
        if (run_user(reads, va)->vector != 14)
            entry_pages++; /* the one that SYSCALL leads to may be read: its code is no secret */
        const struct trap_frame *frame = run_user(writes, va);
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
        CHECK_EQ(run_user(reads, slot + (gigabyte << 30))->vector, 14);
        CHECK_EQ(run_user(writes, slot + (gigabyte << 30) + mfn_of(&resolved) * 8 % (1ul << 30))->vector, 14);
    }
}

TEST(tables_that_kernel_and_user_mode_share_hide_it_too)
{
    unsigned long slot = (unsigned long)m2p & ~((1ul << SLOT_SHIFT) - 1);
    run_user(says_its_argument, 0);
    REQUIRE(mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of((void *)xen_start->pt_base), 0) == 0);
    int vector = (int)run_user(says_its_argument, 0)->vector;
    int read = (int)run_user(reads, slot + (1ul << 31))->vector;
    int write = (int)run_user(writes, slot + (1ul << 31))->vector;
    REQUIRE(mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(user_l4), 0) == 0);
    CHECK_EQ(vector, ENTRY_SYSCALL);
    CHECK_EQ(read, 14);
    CHECK_EQ(write, 14);
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

/* -- segment bases ----------------------------------------------------------------------------------------------------- */

static uint64_t of_kernel = MARK + 1, of_user = MARK + 2;

static void __attribute__((noreturn)) reads_gs(unsigned long argument)
{
    unsigned long value;
    (void)argument;
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    user_exit(value);
}

TEST(gs_is_exchanged)
{
    uint64_t value;
    REQUIRE(set_segment_base(SEGBASE_GS_KERNEL, &of_kernel) == 0);
    REQUIRE(set_segment_base(SEGBASE_GS_USER, &of_user) == 0);
    for (int round = 0; round < 3; round++) {
        CHECK_EQ(run_user(reads_gs, 0)->rax, of_user);
        __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
        CHECK_EQ(value, of_kernel);
    }
    CHECK_OK(set_segment_base(SEGBASE_GS_USER, &of_kernel));
    CHECK_EQ(run_user(reads_gs, 0)->rax, of_kernel);
}

/* -- 32-bit code ------------------------------------------------------------------------------------------------------- */

extern const uint8_t code32[], code32_syscall[], code32_sysenter[], code32_end[];
__asm__(".pushsection .text\n"
        ".code32\n"
        "code32: mov $0x11223344, %eax; mov $0x55667788, %ebx; int $0x80; ud2\n"
        "code32_syscall: mov $0x11223344, %eax; syscall; ud2\n"
        "code32_sysenter: mov $0x11223344, %eax; sysenter; ud2\n"
        "code32_end:\n"
        ".code64\n"
        ".popsection");

static const struct trap_frame *run_32(const uint8_t *from)
{
    static uint8_t code[PAGE_SIZE] PAGE_ALIGNED, stack[PAGE_SIZE] PAGE_ALIGNED;
    static bool mapped;
    if (!mapped) {
        memcpy(code, code32, code32_end - code32);
        mapped = map_at(LOW_CODE, pte(code, PTE_RW_PAGE)) && map_at(LOW_STACK - PAGE_SIZE, pte(stack, PTE_RW_PAGE));
        resolve(&(struct trap_frame){.cs = RPL}); /* shows user mode what is new */
    }
    struct trap_frame start = user_frame(LOW_CODE + (from - code32), 0);
    start.cs = CS32;
    start.rsp = LOW_STACK - 16;
    return run_user_frame(&start);
}

TEST(code_of_32_bits)
{
    const struct trap_frame *frame = run_32(code32);
    CHECK_EQ(frame->vector, INT_USER);
    CHECK_EQ(frame->cs & 0xffff, CS32);
    CHECK_EQ(frame->rax, 0x11223344);
    CHECK_EQ(frame->rbx, 0x55667788);
    CHECK_EQ(frame->rip, LOW_CODE + (code32_syscall - code32) - 2);
    CHECK_EQ(frame->rsp, LOW_STACK - 16);
}

TEST(sysenter_of_32_bits)
{
    const struct trap_frame *frame = run_32(code32_sysenter);
    CHECK_EQ(frame->rax, 0x11223344);
    if (frame->vector == 6)
        SKIP("the processor has no SYSENTER");
    CHECK_EQ(frame->vector, ENTRY_SYSENTER);
}

TEST(syscall_of_32_bits)
{
    const struct trap_frame *frame = run_32(code32_syscall);
    CHECK_EQ(frame->rax, 0x11223344);
    if (frame->vector == 6)
        SKIP("the processor has no SYSCALL in 32-bit code");
    CHECK_EQ(frame->vector, ENTRY_SYSCALL32);
    CHECK_EQ(frame->cs & 0xffff, CS32);
}

TEST(no_callback_makes_it_an_invalid_opcode)
{
    struct callback_unregister op = {.type = CALLBACKTYPE_syscall};
    CHECK_ERR(callback_op(CALLBACKOP_unregister, &op), XEN_EINVAL);
    op.type = CALLBACKTYPE_sysenter;
    CHECK_OK(callback_op(CALLBACKOP_unregister, &op));
    CHECK(run_32(code32_sysenter)->vector != ENTRY_SYSENTER);
}
