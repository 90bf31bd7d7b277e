/* User mode of a PV guest: how it is left and come back to. Ref: xen/include/public/arch-x86/xen-x86_64.h, struct iret_context */
#include "pv.h"

#define PF_USER 4
#define PF_WRITE 2
#define ERROR_INT 2
#define MARK 0x123456789abcdef0
#define LOW_CODE PLAYGROUND
#define LOW_STACK (PLAYGROUND + 2 * PAGE_SIZE)

TEST(syscall_from_user_mode)
{
    const struct trap_frame *frame = run_user(user_echo, MARK);
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
    struct trap_frame start = user_frame((unsigned long)user_echo, MARK);
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
    run_user(user_echo, 0);
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

TEST(page_faults_from_user_mode)
{
    const struct trap_frame *frame = run_user(user_read, BAD_ADDRESS + 8);
    CHECK_EQ(frame->vector, 14);
    CHECK_EQ(frame->error, PF_USER);
    CHECK_EQ(last_cr2, BAD_ADDRESS + 8);
    CHECK_EQ(frame->rdi, BAD_ADDRESS + 8);
    frame = run_user(user_write, BAD_ADDRESS + 16);
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
    const struct trap_frame *frame = run_user(user_read, PLAYGROUND + 0x100000);
    on_trap(14, NULL);
    CHECK_EQ(resolved, 1);
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK_EQ(frame->rax, MARK + 7);
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
    CHECK_ERR(callback_op(CALLBACKOP_unregister, &op), XEN_EINVAL);
    struct callback_register none = {.type = CALLBACKTYPE_sysenter};
    CHECK_OK(callback_op(CALLBACKOP_register, &none));
    none.type = CALLBACKTYPE_sysenter_deprecated;
    CHECK_ERR(callback_op(CALLBACKOP_register, &none), XEN_ENOSYS);
    CHECK(run_32(code32_sysenter)->vector != ENTRY_SYSENTER);
}

static void __attribute__((naked)) tells_rcx_and_r11(void)
{
    __asm__("mov %rcx, %rax; xor %r11, %rax; 1: syscall; jmp 1b");
}

/* The kernel says that it answers a system call: Xen does it by SYSRET. */
TEST(rcx_and_r11_after_a_system_call)
{
    unsigned long rip = (unsigned long)tells_rcx_and_r11;
    struct trap_frame start = user_frame(rip, 0);
    start.rcx = start.r11 = 0x1234;
    user_vgcf = VGCF_in_syscall;
    unsigned long got = run_user_frame(&start)->rax;
    user_vgcf = 0;
    CHECK_EQ((got ^ rip) & ~0xffful, 0);
    CHECK_EQ((got ^ rip) & FLAGS_IF, FLAGS_IF); /* R11 holds RFLAGS */
    CHECK_EQ(run_user_frame(&start)->rax, 0);
}
