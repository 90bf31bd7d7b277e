/* Exceptions in a PV kernel. Ref: xen-doc guest-guide, pv-traps; xen/include/public/arch-x86/xen.h */
#include "pv.h"

#define ERROR_INT 2
#define PF_PRESENT 1
#define PF_WRITE 2
#define PF_USER 4
#define PF_FETCH 0x10
#define DR6_STEP 0x4000
#define MARK_C 0x1111222233334444
#define MARK_11 0x5555666677778888

static unsigned seen;
static unsigned long seen_flags, seen_cs;
static bool seen_mask;

TEST(ud2)
{
    CHECK_EQ(TRAP_OF("ud2"), 6);
    CHECK_EQ(last_trap.cs & 0xffffffff, CS64 & ~RPL);
    CHECK_EQ(last_trap.ss, SS);
    CHECK_EQ(*(uint16_t *)last_trap.rip, 0x0b0f);
    CHECK(last_trap.flags & FLAGS_IF || vcpu_info(0)->evtchn_upcall_mask);
    CHECK_EQ(last_trap.flags & FLAGS_IOPL, 0);
    CHECK_EQ(last_trap.rsp % 8, 0);
}

TEST(frame_has_what_syscall_destroys)
{
    CHECK_EQ(TRAP_OF("movabs $0x1111222233334444, %%rcx; movabs $0x5555666677778888, %%r11; ud2"), 6);
    CHECK_EQ(last_trap.rcx, MARK_C);
    CHECK_EQ(last_trap.r11, MARK_11);
}

static unsigned long frame_end[2];

static void note_frame(struct trap_frame *frame)
{
    frame_end[seen++ & 1] = (unsigned long)(frame + 1);
    frame->rip += 2;
}

TEST(frame_is_aligned)
{
    on_trap(6, note_frame);
    seen = 0;
    __asm__ volatile("ud2; push %%rax; ud2; pop %%rax" ::: "memory");
    on_trap(6, NULL);
    CHECK_EQ(seen, 2);
    CHECK_EQ(frame_end[0] % 16, 0);
    CHECK_EQ(frame_end[1] % 16, 0);
}

TEST(frame_tells_whether_events_were_masked)
{
    for (int masked = 0; masked < 2; masked++) {
        vcpu_info(0)->evtchn_upcall_mask = masked;
        int vector = TRAP_OF("ud2");
        bool after = vcpu_info(0)->evtchn_upcall_mask;
        vcpu_info(0)->evtchn_upcall_mask = 1;
        CHECK_EQ(vector, 6);
        CHECK_EQ(last_trap.cs >> 32 & 0xff, masked);
        CHECK_EQ(last_trap.flags & FLAGS_IF, masked ? 0 : FLAGS_IF);
        CHECK_EQ(after, masked); /* iret put it back */
    }
}

TEST(page_fault_of_a_read)
{
    CHECK_EQ(read_trap((void *)(BAD_ADDRESS + 0x123)), 14);
    CHECK_EQ(last_cr2, BAD_ADDRESS + 0x123);
    CHECK_EQ(last_trap.error, 0);
}

TEST(page_fault_of_a_write)
{
    CHECK_EQ(write_trap((void *)(BAD_ADDRESS + 0x1000), 1), 14);
    CHECK_EQ(last_cr2, BAD_ADDRESS + 0x1000);
    CHECK_EQ(last_trap.error, PF_WRITE);
}

static uint64_t read_only[512] PAGE_ALIGNED;

TEST(page_fault_of_a_write_to_what_is_read_only)
{
    REQUIRE(protect(read_only, PTE_RO_PAGE) == 0);
    CHECK_EQ(write_trap(&read_only[3], 1), 14);
    CHECK_EQ(last_cr2, (unsigned long)&read_only[3]);
    CHECK_EQ(last_trap.error, PF_PRESENT | PF_WRITE);
    CHECK_EQ(read_only[3], 0);
    REQUIRE(protect(read_only, PTE_RW_PAGE) == 0);
    CHECK_EQ(write_trap(&read_only[3], 1), NO_TRAP);
    CHECK_EQ(read_only[3], 1);
}

TEST(page_fault_of_a_fetch)
{
    static uint8_t code[PAGE_SIZE] PAGE_ALIGNED;
    code[0] = 0xc3;
    struct regs regs = {.d = (unsigned long)code};
    CHECK_EQ(TRAP_WITH("call *%%rdx", regs), NO_TRAP);
    REQUIRE(protect(code, PTE_RW_PAGE | PTE_NX) == 0);
    regs.d = (unsigned long)code;
    CHECK_EQ(TRAP_WITH("jmp *%%rdx", regs), 14);
    CHECK_EQ(last_cr2, (unsigned long)code);
    CHECK_EQ(last_trap.error, PF_PRESENT | PF_FETCH);
    CHECK_EQ(last_trap.rip, (unsigned long)code);
}

TEST(page_fault_of_the_hypervisors_part)
{
    CHECK_EQ(read_trap((void *)0xffff87fffffff000), 14);
    CHECK_EQ(last_cr2, 0xffff87fffffff000);
}

TEST(address_that_is_none)
{
    struct regs regs = {.d = 0x8000000000000000};
    CHECK_EQ(TRAP_WITH("mov (%%rdx), %%rax", regs), 13);
    CHECK_EQ(last_trap.error, 0);
}

TEST(divide_error)
{
    struct regs regs = {.a = 1};
    CHECK_EQ(TRAP_WITH("xor %%ecx, %%ecx; xor %%edx, %%edx; div %%ecx", regs), 0);
}

TEST(int3)
{
    CHECK_EQ(TRAP_OF("int3"), 3);
    CHECK_EQ(*(uint8_t *)(last_trap.rip - 1), 0xcc);
}

TEST(int_n)
{
    CHECK_EQ(TRAP_OF("int $0x80"), INT_USER);
    CHECK_EQ(*(uint16_t *)(last_trap.rip - 2), 0x80cd);
    CHECK_EQ(TRAP_OF("int $0x83"), INT_KERNEL);
    CHECK_EQ(*(uint16_t *)(last_trap.rip - 2), 0x83cd);
}

TEST(int_n_without_handler_is_a_gp)
{
    CHECK_EQ(TRAP_OF("int $0x84"), 13);
    CHECK_EQ(last_trap.error, INT_NONE << 3 | ERROR_INT);
    CHECK_EQ(*(uint16_t *)last_trap.rip, 0x84cd);
}

TEST(int_n_that_only_the_hypervisor_may_use_is_a_gp)
{
    CHECK_EQ(TRAP_OF("int $0x20"), 13);
    CHECK_EQ(last_trap.error, 0x20 << 3 | ERROR_INT);
}

static void note(struct trap_frame *frame)
{
    seen++;
    seen_flags = flags_now();
    seen_cs = frame->cs;
    seen_mask = vcpu_info(0)->evtchn_upcall_mask;
}

TEST(handler_may_mask_events)
{
    static const unsigned vectors[] = {INT_MASKING, INT_USER};
    for (unsigned i = 0; i < 2; i++) {
        on_trap(vectors[i], note);
        seen = 0;
        vcpu_info(0)->evtchn_upcall_mask = 0;
        if (i == 0)
            __asm__ volatile("int $0x81");
        else
            __asm__ volatile("int $0x80");
        bool after = vcpu_info(0)->evtchn_upcall_mask;
        vcpu_info(0)->evtchn_upcall_mask = 1;
        on_trap(vectors[i], NULL);
        CHECK_EQ(seen, 1);
        CHECK_EQ(seen_mask, vectors[i] == INT_MASKING);
        CHECK_EQ(after, 0);
    }
}

TEST(handler_starts_with_clean_flags)
{
    on_trap(6, NULL);
    CHECK_EQ(TRAP_OF("pushfq; orq $0x44000, (%%rsp); popfq; ud2; pushfq; andq $~0x44000, (%%rsp); popfq"), 6);
    CHECK_EQ(flags_now() & 0x4000, 0);
    on_trap(INT_USER, note);
    __asm__ volatile("pushfq; orq $0x4000, (%%rsp); popfq; int $0x80; pushfq; andq $~0x44000, (%%rsp); popfq" ::: "memory");
    on_trap(INT_USER, NULL);
    CHECK_EQ(seen_flags & 0x44000, 0); /* AC, NT */
}

static unsigned steps;
static unsigned long first_step, last_step, step_dr6;

static void step(struct trap_frame *frame)
{
    if (!steps++) {
        first_step = frame->rip;
        step_dr6 = (unsigned long)get_debugreg(6);
    }
    last_step = frame->rip;
}

TEST(single_step)
{
    on_trap(1, step);
    steps = 0;
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; nop; nop; pushfq; andq $~0x100, (%%rsp); popfq; nop" ::: "memory");
    on_trap(1, NULL);
    CHECK_EQ(steps, 6);
    CHECK(step_dr6 & DR6_STEP);
    CHECK_EQ(*(uint8_t *)(first_step - 1), 0x90);
    CHECK_EQ(*(uint8_t *)last_step, 0x90);
}

TEST(kernel_gs_by_swapgs_is_refused)
{
    CHECK_EQ(TRAP_OF("swapgs"), 13);
}

TEST(traps_can_be_taken_away)
{
    static struct trap_info only_ud[2] = {{.vector = 13, .cs = CS64}, {0}};
    only_ud[0].address = (unsigned long)trap_entries[13];
    CHECK_OK(set_trap_table(0));
    CHECK_OK(set_trap_table(only_ud));
    int vector = TRAP_OF("int $0x80");
    CHECK_OK(set_traps());
    CHECK_EQ(vector, 13);
    CHECK_EQ(TRAP_OF("int $0x80"), INT_USER);
}

TEST(trap_table_is_checked)
{
    static struct trap_info bad[2] = {{.vector = INT_NONE, .cs = CS64, .address = 0x8000000000000000}, {0}};
    CHECK_ERR(set_trap_table(bad), XEN_EINVAL);
    CHECK_ERR(set_trap_table(BAD_PTR), XEN_EFAULT);
}

TEST(a_hypercall_without_a_stack)
{
    register unsigned long saved __asm__("r12");
    long result = __HYPERVISOR_xen_version;
    __asm__ volatile("mov %%rsp, %1; mov $64, %%esp; syscall; mov %1, %%rsp"
                     : "+a"(result), "=&r"(saved)
                     : "D"(XENVER_version), "S"(0)
                     : "rcx", "r11", "memory");
    CHECK_EQ(result, CALL2(__HYPERVISOR_xen_version, XENVER_version, 0));
}
