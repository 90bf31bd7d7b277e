/* Descriptors, segment bases and debug registers. Ref: xen/include/public/arch-x86/xen.h */
#include "pv.h"

#define DATA_32 0x00cff3000000fffful /* flat, of ring 3 */
#define DATA_RING0 0x00cf93000000fffful
#define CODE_32 0x00cffb000000fffful
#define TSS_64 0x00008b0000000067ul
#define CALL_GATE 0x00008c0000000000ul
#define TRAP_GATE 0x00008f0000000000ul
#define LDT_SYSTEM 0x0000820000000000ul
#define DPL_SHIFT 45
#define BASE(base) (((base) & 0xfffffful) << 16 | ((base) >> 24 & 0xff) << 56)
#define GDT_ENTRIES_MAX (14 * 512)
#define DR7_WATCH_WRITE_8 0x00090002ul /* DR0: writes of 8 bytes, globally */
#define DR7_WATCH_WRITE_1 0x00010002ul
#define DR7_EXECUTE 0x2ul
#define ERROR_SELECTOR(selector) ((selector) & ~3ul)

static uint64_t gdt[512] PAGE_ALIGNED, ldt[512] PAGE_ALIGNED, plain[512] PAGE_ALIGNED;
static uint64_t words[2] = {0x1111, 0x2222};

static long set_gdt(const unsigned long *frames, unsigned entries)
{
    return CALL2(__HYPERVISOR_set_gdt, frames, entries);
}

static long use_gdt(void)
{
    unsigned long frame = mfn_of(gdt);
    long rc = protect(gdt, PTE_RO_PAGE);
    return rc ? rc : set_gdt(&frame, 512);
}

static int load_trap(unsigned long selector)
{
    struct regs regs = {.a = selector};
    return TRAP_WITH("mov %%ax, %%fs", regs);
}

TEST(set_gdt)
{
    unsigned long frame = mfn_of(gdt);
    gdt[1] = DATA_32;
    gdt[2] = DATA_RING0;
    CHECK_ERR(set_gdt(&frame, 512), XEN_EINVAL); /* it is mapped writable */
    CHECK_OK(use_gdt());
    CHECK_EQ(gdt[1] & ~(1ul << 40), DATA_32 & ~(1ul << 40));
    CHECK_EQ(gdt[2] >> DPL_SHIFT & 3, 3); /* no descriptor of the guest's is for more privilege */
    CHECK_EQ(load_trap(8 | RPL), NO_TRAP);
    CHECK_EQ(load_trap(16 | RPL), NO_TRAP);
    CHECK_EQ(load_trap(0), NO_TRAP);
}

TEST(a_descriptor_page_cannot_be_mapped_writable)
{
    CHECK_ERR(protect(gdt, PTE_RW_PAGE), XEN_EBUSY);
    CHECK_EQ(write_trap(&gdt[1], 0), 14);
}

TEST(set_gdt_that_cannot_be)
{
    unsigned long bad = NO_MFN;
    CHECK_ERR(set_gdt(&bad, 512), XEN_EINVAL);
    CHECK_ERR(set_gdt(&bad, GDT_ENTRIES_MAX + 1), XEN_EINVAL);
    CHECK_ERR(set_gdt(BAD_PTR, 1), XEN_EFAULT);
    CHECK_EQ(load_trap(8 | RPL), NO_TRAP); /* what was there still is */
    CHECK_EQ(load_trap(0), NO_TRAP);
}

TEST(selector_without_descriptor)
{
    CHECK_EQ(load_trap(3 * 8 | RPL), 13);
    CHECK_EQ(last_trap.error, ERROR_SELECTOR(3 * 8));
    CHECK_EQ(load_trap(600 * 8 | RPL), 13);
}

TEST(update_descriptor)
{
    CHECK_OK(update_descriptor(maddr_of(&gdt[3]), DATA_32 | BASE((unsigned long)words & 0xffffffff)));
#ifndef HYPERCALL_PAGE /* where the kernel is reached by 32-bit bases */
    CHECK_EQ(load_trap(3 * 8 | RPL), NO_TRAP);
    uint64_t value;
    __asm__ volatile("mov %%fs:8, %0" : "=r"(value));
    CHECK_EQ(value, 0x2222);
#endif
    CHECK_EQ(load_trap(0), NO_TRAP);
    CHECK_OK(update_descriptor(maddr_of(&gdt[3]), 0));
    CHECK_EQ(load_trap(3 * 8 | RPL), 13);
}

TEST(descriptors_that_are_refused)
{
    CHECK_ERR(update_descriptor(maddr_of(&gdt[4]), TSS_64), XEN_EINVAL);
    CHECK_ERR(update_descriptor(maddr_of(&gdt[4]), LDT_SYSTEM), XEN_EINVAL);
    CHECK_ERR(update_descriptor(maddr_of(&gdt[4]), TRAP_GATE), XEN_EINVAL);
    CHECK_EQ(gdt[4], 0);
    CHECK_ERR(update_descriptor(maddr_of(&gdt[4]) + 4, DATA_32), XEN_EINVAL);
    CHECK_ERR(update_descriptor(NO_MFN * PAGE_SIZE, DATA_32), XEN_EINVAL);
    CHECK_ERR(update_descriptor(mfn_of((void *)xen_start->pt_base) * PAGE_SIZE, DATA_32), XEN_EINVAL);
}

TEST(update_descriptor_of_plain_memory)
{
    CHECK_OK(update_descriptor(maddr_of(&plain[7]), DATA_32));
    CHECK_EQ(plain[7] & ~(1ul << 40), DATA_32 & ~(1ul << 40));
}

TEST(ring_0_is_not_to_be_had)
{
    CHECK_OK(update_descriptor(maddr_of(&gdt[5]), DATA_RING0));
    CHECK_EQ(gdt[5] >> DPL_SHIFT & 3, 3);
    CHECK_OK(update_descriptor(maddr_of(&gdt[5]), 0));
    CHECK_EQ(load_trap(0xe008), 13);
    CHECK_EQ(load_trap(0xe010), 13);
    CHECK_EQ(load_trap(0xe040), 13);
}

static long set_ldt(void *table, unsigned entries)
{
    return mmuext(MMUEXT_SET_LDT, (unsigned long)table, entries);
}

TEST(ldt)
{
    ldt[0] = DATA_32;
    REQUIRE(protect(ldt, PTE_RO_PAGE) == 0);
    CHECK_OK(set_ldt(ldt, 512));
    CHECK_EQ(load_trap(0 << 3 | 4 | RPL), NO_TRAP);
    CHECK_EQ(load_trap(0), NO_TRAP);
    CHECK_EQ(load_trap(1 << 3 | 4 | RPL), 13);
    CHECK_EQ(last_trap.error, 1 << 3 | 4);
    CHECK_OK(update_descriptor(maddr_of(&ldt[1]), DATA_32));
    CHECK_EQ(load_trap(1 << 3 | 4 | RPL), NO_TRAP);
    CHECK_EQ(load_trap(0), NO_TRAP);
    CHECK_ERR(protect(ldt, PTE_RW_PAGE), XEN_EBUSY);
    CHECK_OK(set_ldt(NULL, 0));
    CHECK_EQ(load_trap(0 << 3 | 4 | RPL), 13);
    CHECK_OK(protect(ldt, PTE_RW_PAGE));
}

TEST(ldt_that_cannot_be)
{
    CHECK_ERR(set_ldt((uint8_t *)ldt + 8, 8), XEN_EINVAL);
    CHECK_ERR(set_ldt(ldt, 8193), XEN_EINVAL);
    CHECK_ERR(set_ldt((void *)m2p, 8), XEN_EINVAL);
}

TEST(gdt_can_be_taken_away)
{
    CHECK_OK(set_gdt(NULL, 0));
    CHECK_EQ(load_trap(8 | RPL), 13);
    CHECK_OK(protect(gdt, PTE_RW_PAGE));
    CHECK_OK(use_gdt());
    CHECK_EQ(load_trap(8 | RPL), NO_TRAP);
    CHECK_EQ(load_trap(0), NO_TRAP);
}

/* -- bases ------------------------------------------------------------------------------------------------------------- */

TEST(segment_bases)
{
    uint64_t value;
    CHECK_OK(set_segment_base(SEGBASE_FS, &words[0]));
    __asm__ volatile("mov %%fs:0, %0" : "=r"(value));
    CHECK_EQ(value, words[0]);
    CHECK_OK(set_segment_base(SEGBASE_GS_KERNEL, &words[1]));
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    CHECK_EQ(value, words[1]);
    CHECK_OK(set_segment_base(SEGBASE_GS_USER, &words[0]));
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    CHECK_EQ(value, words[1]);
    CHECK_EQ(rdmsr(0xc0000100), (unsigned long)&words[0]);
    CHECK_EQ(rdmsr(0xc0000101), (unsigned long)&words[1]);
    CHECK_EQ(rdmsr(0xc0000102), (unsigned long)&words[0]);
    CHECK_ERR(set_segment_base(SEGBASE_FS, 0x8000000000000000), XEN_EINVAL);
    CHECK_ERR(set_segment_base(4, 0), XEN_EINVAL);
    CHECK_OK(set_segment_base(SEGBASE_FS, 0));
    CHECK_OK(set_segment_base(SEGBASE_GS_KERNEL, 0));
}

TEST(users_gs_by_selector)
{
    uint64_t value;
    CHECK_OK(set_segment_base(SEGBASE_GS_KERNEL, &words[1]));
    CHECK_OK(set_segment_base(SEGBASE_GS_USER_SEL, 8 | RPL));
    CHECK_OK(set_segment_base(SEGBASE_GS_USER_SEL, 600 * 8 | RPL)); /* none: becomes null */
    CHECK_OK(set_segment_base(SEGBASE_GS_USER_SEL, 0));
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    CHECK_EQ(value, words[1]);
    CHECK_OK(set_segment_base(SEGBASE_GS_KERNEL, 0));
}

/* -- debug registers --------------------------------------------------------------------------------------------------- */

TEST(debug_registers_hold_what_they_are_given)
{
    for (unsigned number = 0; number < 4; number++) {
        CHECK_OK(set_debugreg(number, &words[number & 1]));
        CHECK_EQ(get_debugreg(number), (unsigned long)&words[number & 1]);
    }
    struct regs regs = {.a = 0};
    CHECK_EQ(TRAP_WITH("mov %%dr1, %%rax", regs), NO_TRAP);
    CHECK_EQ(regs.a, (unsigned long)&words[1]);
    for (unsigned number = 0; number < 4; number++)
        CHECK_OK(set_debugreg(number, 0));
    CHECK_ERR(set_debugreg(0, 0xffff800000001000), XEN_EPERM);
    CHECK_ERR(set_debugreg(8, 0), XEN_ENODEV);
    CHECK_ERR(set_debugreg(6, 1ul << 33), XEN_EINVAL);
    CHECK_ERR(set_debugreg(7, 1ul << 33), XEN_EINVAL);
    CHECK_ERR(set_debugreg(7, 1ul << 13), XEN_EPERM);
}

static volatile uint64_t watched;

TEST(a_write_is_watched)
{
    REQUIRE(set_debugreg(0, &watched) == 0);
    REQUIRE(set_debugreg(7, DR7_WATCH_WRITE_8) == 0);
    int vector = write_trap(&watched, 5);
    unsigned long dr6 = (unsigned long)get_debugreg(6);
    REQUIRE(set_debugreg(7, 0) == 0);
    if (vector == NO_TRAP)
        SKIP("breakpoints have no effect: KVM hosts in user mode do not load them");
    CHECK_EQ(vector, 1);
    CHECK_EQ(dr6 & 0xf, 1);
    CHECK_EQ(watched, 5);
    CHECK_EQ(write_trap(&watched, 6), NO_TRAP);
}
