/* Privileged instructions of a PV kernel: which are emulated. Ref: xen/include/public/arch-x86/xen.h, physdev.h */
#include "pv.h"

#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_EFER 0xc0000080
#define MSR_APIC_BASE 0x1b
#define MSR_NONE 0x12345
#define EFER_LMA 0x400
#define CR0_TS 8
#define CR0_PE_PG 0x80000001
#define CR4_PAE 0x20

static uint64_t word = 0x0123456789abcdef;

TEST(msr_bases)
{
    static const struct { uint32_t msr; } bases[] = {{MSR_FS_BASE}, {MSR_GS_BASE}, {MSR_KERNEL_GS_BASE}};
    for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
        unsigned long base = (unsigned long)&word - i * 8;
        struct regs regs = {.c = bases[i].msr, .a = (uint32_t)base, .d = base >> 32};
        CHECK_EQ(TRAP_WITH("wrmsr", regs), NO_TRAP);
        regs = (struct regs){.c = bases[i].msr};
        CHECK_EQ(TRAP_WITH("rdmsr", regs), NO_TRAP);
        CHECK_EQ(regs.d << 32 | regs.a, base);
    }
    uint64_t by_fs, by_gs;
    __asm__("mov %%fs:0, %0; mov %%gs:8, %1" : "=r"(by_fs), "=r"(by_gs));
    CHECK_EQ(by_fs, word);
    CHECK_EQ(by_gs, word);
    struct regs regs = {.c = MSR_FS_BASE, .d = 0x80000000};
    CHECK_EQ(TRAP_WITH("wrmsr", regs), 13);
    wrmsr(MSR_FS_BASE, 0);
    wrmsr(MSR_GS_BASE, 0);
    wrmsr(MSR_KERNEL_GS_BASE, 0);
}

TEST(msr_that_is_not_there)
{
    struct regs regs = {.c = MSR_NONE};
    CHECK_EQ(TRAP_WITH("rdmsr", regs), 13);
    CHECK_EQ(last_trap.error, 0);
}

TEST(msr_efer)
{
    uint64_t efer = rdmsr(MSR_EFER);
    CHECK(efer & EFER_LMA);
    struct regs regs = {.c = MSR_EFER, .a = (uint32_t)efer ^ 0x800, .d = 0};
    CHECK_EQ(TRAP_WITH("wrmsr", regs), 13);
    regs = (struct regs){.c = MSR_EFER, .a = (uint32_t)efer};
    CHECK_EQ(TRAP_WITH("wrmsr", regs), NO_TRAP);
}

TEST(control_registers)
{
    struct regs regs = {0};
    CHECK_EQ(TRAP_WITH("mov %%cr0, %%rax; mov %%cr2, %%rcx; mov %%cr3, %%rdx; mov %%cr4, %%rdi", regs), NO_TRAP);
    CHECK_EQ(regs.a & CR0_PE_PG, CR0_PE_PG);
    CHECK_EQ(regs.d / PAGE_SIZE, mfn_of((void *)xen_start->pt_base));
    CHECK(regs.di & CR4_PAE);
    CHECK_EQ(TRAP_OF("mov %%cr8, %%rax"), 13);
}

TEST(cr2_is_in_vcpu_info)
{
    struct regs regs = {.a = 0x1234567};
    CHECK_EQ(TRAP_WITH("mov %%rax, %%cr2; mov %%cr2, %%rdx", regs), NO_TRAP);
    CHECK_EQ(regs.d, 0x1234567);
    CHECK_EQ(vcpu_info(0)->arch.cr2, 0x1234567);
}

TEST(task_switched)
{
    struct regs regs = {0};
    CHECK_EQ(TRAP_WITH("mov %%cr0, %%rax; or $8, %%rax; mov %%rax, %%cr0; mov %%cr0, %%rdx", regs), NO_TRAP);
    CHECK(regs.d & CR0_TS);
    if (TRAP_OF("fninit") == NO_TRAP)
        SKIP("CR0.TS is set and has no effect: KVM hosts in user mode pass over it");
    CHECK_EQ(caught, 7);
    CHECK_EQ(TRAP_OF("fninit"), NO_TRAP); /* Xen clears TS when it tells of #NM */
    CHECK_OK(CALL1(__HYPERVISOR_fpu_taskswitch, 1));
    CHECK_EQ(TRAP_OF("clts"), NO_TRAP);
    CHECK_EQ(TRAP_OF("fninit"), NO_TRAP);
    CHECK_OK(CALL1(__HYPERVISOR_fpu_taskswitch, 1));
    CHECK_OK(CALL1(__HYPERVISOR_fpu_taskswitch, 0));
    CHECK_EQ(TRAP_OF("fninit"), NO_TRAP);
}

static long set_iopl(unsigned iopl)
{
    struct physdev_set_iopl op = {.iopl = iopl};
    return CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, &op);
}

TEST(interrupt_flag_is_not_ours)
{
    vcpu_info(0)->evtchn_upcall_mask = 1;
    CHECK_EQ(TRAP_OF("cli"), 13);
    CHECK_EQ(TRAP_OF("sti"), 13);
    CHECK_OK(set_iopl(1));
    CHECK_EQ(TRAP_OF("cli"), NO_TRAP);
    CHECK_EQ(TRAP_OF("sti"), NO_TRAP);
    CHECK_OK(set_iopl(0));
    CHECK_EQ(TRAP_OF("sti"), 13);
    CHECK_ERR(set_iopl(4), XEN_EINVAL);
    CHECK_EQ(vcpu_info(0)->evtchn_upcall_mask, 1);
    CHECK(flags_now() & FLAGS_IF);
}

TEST(ports_need_privilege)
{
    struct regs regs = {.d = 0x1234};
    CHECK_EQ(TRAP_WITH("in %%dx, %%eax", regs), 13);
    CHECK_EQ(TRAP_WITH("out %%al, %%dx", regs), 13);
    REQUIRE(set_iopl(1) == 0);
    regs = (struct regs){.d = 0x1234};
    CHECK_EQ(TRAP_WITH("in %%dx, %%eax", regs), NO_TRAP);
    CHECK_EQ((uint32_t)regs.a, 0xffffffff);
    regs = (struct regs){.d = 0x1234, .a = 0x77};
    CHECK_EQ(TRAP_WITH("out %%al, %%dx", regs), NO_TRAP);
    REQUIRE(set_iopl(0) == 0);
}

TEST(ports_behind_which_is_nothing)
{
    static const uint16_t ports[] = {0x10, 0x3e, 0x3f, 0x71, 0x80, 0x3f8, 0xcf6, 0xcf9, 0xcfc, 0xffff};
    const unsigned long before = 0x1122334455667788;
    REQUIRE(set_iopl(1) == 0);
    for (unsigned i = 0; i < ARRAY_SIZE(ports); i++) {
        struct regs regs = {.d = ports[i] | 0xabcd0000, .a = before};
        CHECK_EQ(TRAP_WITH("in %%dx, %%al", regs), NO_TRAP);
        CHECK_EQ(regs.a, 0x11223344556677ff);
        CHECK_EQ(regs.d, ports[i] | 0xabcd0000);
        regs.a = before;
        CHECK_EQ(TRAP_WITH("out %%al, %%dx", regs), NO_TRAP);
        CHECK_EQ(TRAP_WITH("out %%ax, %%dx", regs), NO_TRAP);
        CHECK_EQ(TRAP_WITH("out %%eax, %%dx", regs), NO_TRAP);
        CHECK_EQ(regs.a, before);
        CHECK_EQ(TRAP_WITH("in %%dx, %%ax", regs), NO_TRAP);
        CHECK_EQ(regs.a, ports[i] == 0x3f ? regs.a : 0x112233445566ffff);
        regs.a = before;
        CHECK_EQ(TRAP_WITH("in %%dx, %%eax", regs), NO_TRAP);
        CHECK_EQ(regs.a, ports[i] == 0x3f ? regs.a : 0xffffffff);
    }
    struct regs regs = {.d = 0x42, .a = before};
    CHECK_EQ(TRAP_WITH("in $0x80, %%al; mov %%rax, %%rcx; in $0xf0, %%ax; mov %%rax, %%rdi; in $0x80, %%eax", regs), NO_TRAP);
    CHECK_EQ(regs.c, 0x11223344556677ff);
    CHECK_EQ(regs.di, 0x112233445566ffff);
    CHECK_EQ(regs.a, 0xffffffff);
    CHECK_EQ(TRAP_WITH("out %%al, $0x80; out %%ax, $0x80; out %%eax, $0x80", regs), NO_TRAP);
    REQUIRE(set_iopl(0) == 0);
    CHECK_EQ(TRAP_OF("in $0x80, %%al"), 13);
}

TEST(the_address_of_pci_reads_back)
{
    REQUIRE(set_iopl(1) == 0);
    struct regs regs = {.d = 0xcf8, .a = 0xffffffff80001234};
    CHECK_EQ(TRAP_WITH("out %%eax, %%dx; mov $-1, %%rax; in %%dx, %%eax", regs), NO_TRAP);
    CHECK_EQ(regs.a, 0x80001234);
    regs.a = 0;
    CHECK_EQ(TRAP_WITH("out %%al, %%dx; in %%dx, %%al", regs), NO_TRAP);
    CHECK_EQ(regs.a, 0xff);
    CHECK_EQ(TRAP_WITH("in %%dx, %%eax", regs), NO_TRAP);
    CHECK_EQ(regs.a, 0x80001234);
    REQUIRE(set_iopl(0) == 0);
}

/* One that is emulated, in the middle of code that minds. */
TEST(all_else_is_as_it_was)
{
    unsigned long wrong = 1, flags = 0;
    REQUIRE(set_iopl(1) == 0);
    __asm__ volatile(
        "mov %%rsp, %%r15\n\t"
        "push %%rbp\n\t"
        "mov $3, %%ebx\n\tmov $5, %%ebp\n\tmov $6, %%esi\n\tmov $7, %%edi\n\tmov $8, %%r8d\n\tmov $9, %%r9d\n\t"
        "mov $10, %%r10d\n\tmov $11, %%r11d\n\tmov $12, %%r12d\n\tmov $13, %%r13d\n\tmov $14, %%r14d\n\tmov $1, %%ecx\n\t"
        "mov $0x1234, %%edx\n\tmov $0x77, %%eax\n\t"
        "std\n\tstc\n\t"
        "in %%dx, %%al\n\t"
        "pushfq\n\tcld\n\t"
        "xor $3, %%rbx\n\txor $5, %%rbp\n\txor $6, %%rsi\n\txor $7, %%rdi\n\txor $8, %%r8\n\txor $9, %%r9\n\t"
        "xor $10, %%r10\n\txor $11, %%r11\n\txor $12, %%r12\n\txor $13, %%r13\n\txor $14, %%r14\n\txor $1, %%rcx\n\t"
        "xor $0x1234, %%rdx\n\txor $0xff, %%rax\n\t"
        "or %%rbx, %%rax\n\tor %%rbp, %%rax\n\tor %%rsi, %%rax\n\tor %%rdi, %%rax\n\tor %%r8, %%rax\n\tor %%r9, %%rax\n\t"
        "or %%r10, %%rax\n\tor %%r11, %%rax\n\tor %%r12, %%rax\n\tor %%r13, %%rax\n\tor %%r14, %%rax\n\tor %%rcx, %%rax\n\t"
        "or %%rdx, %%rax\n\t"
        "pop %%rcx\n\tpop %%rbp\n\txor %%rsp, %%r15\n\tor %%r15, %%rax\n\t"
        : "=a"(wrong), "=c"(flags)
        :
        : "rbx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc");
    CHECK_EQ(wrong, 0);
    CHECK_EQ(flags & (FLAGS_DF | 1), FLAGS_DF | 1);
    REQUIRE(set_iopl(0) == 0);
}

TEST(cpuid_answers_the_same_again)
{
    static const uint32_t leaves[][2] = {{0, 0}, {1, 0}, {7, 0}, {7, 1}, {7, 0xffffffff}, {7, 0}, {1, 0xffffffff}, {0xd, 0}, {0xd, 1}, {0x40000000, 0}, {0x40000003, 1}, {0x40000100, 0}, {0x4000ff00, 1}, {0x4fffffff, 0}, {0x50000000, 0}, {0x80000000, 0}, {0x99999, 3}};
    for (unsigned round = 0; round < 20; round++)
        for (unsigned i = 0; i < ARRAY_SIZE(leaves); i++) {
            struct regs first = {.a = leaves[i][0], .c = leaves[i][1]}, again;
            first.a |= 0x5555ul << 32;
            again = first;
            CHECK_EQ(TRAP_WITH("ud2a; .ascii \"xen\"; cpuid; mov %%rbx, %%rdi", first), NO_TRAP);
            CHECK_EQ(TRAP_WITH("ud2a; .ascii \"xen\"; cpuid; mov %%rbx, %%rdi", again), NO_TRAP);
            CHECK_EQ(first.a, again.a);
            CHECK_EQ(first.c, again.c);
            CHECK_EQ(first.d, again.d);
            CHECK_EQ(first.di, again.di);
            CHECK_EQ((first.a | first.c | first.d | first.di) >> 32, 0);
        }
}

TEST(ports_by_bitmap)
{
    static uint8_t bitmap[PAGE_SIZE * 2];
    struct physdev_set_iobitmap op = {.nr_ports = 65536};
    struct regs regs = {.d = 0x1234};
    memset(bitmap, 0xff, sizeof bitmap);
    bitmap[0x1234 / 8] &= ~(1 << 0x1234 % 8);
    set_xen_guest_handle(op.bitmap, bitmap);
    CHECK_OK(CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, &op));
    CHECK_EQ(TRAP_WITH("in %%dx, %%al", regs), NO_TRAP);
    CHECK_EQ((uint8_t)regs.a, 0xff);
    regs = (struct regs){.d = 0x1235};
    CHECK_EQ(TRAP_WITH("in %%dx, %%al", regs), 13);
    regs = (struct regs){.d = 0x1234};
    CHECK_EQ(TRAP_WITH("in %%dx, %%ax", regs), 13); /* the second port is closed */
    bitmap[0x1237 / 8] = bitmap[0x1238 / 8] = 0;
    regs = (struct regs){.d = 0x1236};
    CHECK_EQ(TRAP_WITH("in %%dx, %%eax", regs), NO_TRAP); /* across two bytes of the map */
    regs = (struct regs){.d = 0x1236};
    CHECK_EQ(TRAP_WITH("out %%eax, %%dx", regs), NO_TRAP);
    op.nr_ports = 0x1238;
    CHECK_OK(CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, &op));
    regs = (struct regs){.d = 0x1236};
    CHECK_EQ(TRAP_WITH("in %%dx, %%eax", regs), 13); /* beyond the map */
    regs = (struct regs){.d = 0x1236};
    CHECK_EQ(TRAP_WITH("in %%dx, %%ax", regs), NO_TRAP);
    set_xen_guest_handle(op.bitmap, BAD_PTR);
    CHECK_OK(CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, &op));
    regs = (struct regs){.d = 0x1234};
    CHECK_EQ(TRAP_WITH("in %%dx, %%al", regs), 13); /* nothing to be read there */
    set_xen_guest_handle(op.bitmap, bitmap);
    op.nr_ports = 0;
    CHECK_OK(CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, &op));
    regs = (struct regs){.d = 0x1234};
    CHECK_EQ(TRAP_WITH("in %%dx, %%al", regs), 13);
    op.nr_ports = 65537;
    CHECK_ERR(CALL2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, &op), XEN_EINVAL);
}

TEST(what_is_not_emulated)
{
    CHECK_EQ(TRAP_OF("hlt"), 13);
    CHECK_EQ(last_trap.error, 0);
    CHECK_EQ(*(uint8_t *)last_trap.rip, 0xf4);
    CHECK_EQ(TRAP_OF("lidt (%%rsp)"), 13);
    CHECK_EQ(TRAP_OF("lgdt (%%rsp)"), 13);
    CHECK_EQ(TRAP_OF("ltr %%ax"), 13);
    CHECK_EQ(TRAP_OF("invlpg (%%rsp)"), 13);
    CHECK_EQ(TRAP_OF("sysretq"), 13);
}

TEST(wbinvd)
{
    CHECK_EQ(TRAP_OF("wbinvd"), NO_TRAP);
}

TEST(prefixed_ud2_is_one_unless_cpuid_follows)
{
    CHECK_EQ(TRAP_OF("ud2a; .ascii \"xen\"; nop"), 6);
    CHECK_EQ(TRAP_OF("ud2a; .ascii \"xfn\"; cpuid"), 6);
}
