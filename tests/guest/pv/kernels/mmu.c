/* Changes of page-table entries, by hypercalls and by stores that fault. Ref: xen/include/public/xen.h, MMU_NORMAL_PT_UPDATE and others */
#include "pv.h"

#define BATCH 200
#define WINDOW (PLAYGROUND + 0x200000)

static uint64_t a_page[512] PAGE_ALIGNED, b_page[512] PAGE_ALIGNED, plain[512] PAGE_ALIGNED;
static volatile uint64_t *const window = (volatile uint64_t *)WINDOW;

static uint64_t *window_entry(void)
{
    return entry_of((void *)WINDOW, 1);
}

static bool ready(void)
{
    a_page[0] = 0xaaaa;
    b_page[0] = 0xbbbb;
    return map_at(WINDOW, pte(a_page, PTE_RW_PAGE));
}

TEST(update_va_mapping)
{
    REQUIRE(ready());
    CHECK_EQ(window[0], 0xaaaa);
    CHECK_OK(update_va(window, pte(b_page, PTE_RW_PAGE), UVMF_INVLPG));
    CHECK_EQ(window[0], 0xbbbb);
    CHECK_OK(update_va(window, pte(a_page, PTE_RO_PAGE), UVMF_TLB_FLUSH | UVMF_LOCAL));
    CHECK_EQ(window[0], 0xaaaa);
    CHECK_EQ(write_trap(window, 1), 14);
    CHECK_OK(update_va(window, 0, UVMF_INVLPG | UVMF_ALL));
    CHECK_EQ(read_trap(window), 14);
}

TEST(update_va_mapping_of_what_is_none)
{
    CHECK_ERR(update_va(BAD_PTR, pte(a_page, PTE_RW_PAGE), 0), XEN_EINVAL);
    CHECK_ERR(update_va((void *)m2p, pte(a_page, PTE_RW_PAGE), 0), XEN_EINVAL);
    CHECK_ERR(update_va((void *)0xffff830000000000, pte(a_page, PTE_RW_PAGE), 0), XEN_EINVAL);
    CHECK_ERR(update_va(window, NO_MFN * PAGE_SIZE | PTE_RW_PAGE, 0), XEN_EPERM);
}

TEST(mmu_update_of_an_l1)
{
    REQUIRE(ready());
    CHECK_OK(mmu_update(maddr_of(window_entry()), pte(b_page, PTE_RW_PAGE)));
    CHECK_OK(mmuext(MMUEXT_INVLPG_LOCAL, WINDOW, 0));
    CHECK_EQ(window[0], 0xbbbb);
    CHECK_OK(mmu_update(maddr_of(window_entry()), 0));
    CHECK_OK(mmuext(MMUEXT_TLB_FLUSH_ALL, 0, 0));
    CHECK_EQ(read_trap(window), 14);
    CHECK_OK(mmu_update(maddr_of(window_entry()), 0xfffff000)); /* not present: anything */
    CHECK_EQ(*window_entry(), 0xfffff000);
}

TEST(mmu_update_reads_back_what_the_hypervisor_adds)
{
    REQUIRE(ready());
    CHECK_OK(mmu_update(maddr_of(window_entry()), pte(a_page, PTE_P | PTE_RW)));
    CHECK_EQ(*window_entry() & (PTE_US | PTE_GUEST_KERNEL), PTE_US | PTE_GUEST_KERNEL);
}

TEST(preserving_accessed_and_dirty)
{
    REQUIRE(ready());
    window[1] = 1;
    REQUIRE((*window_entry() & (PTE_A | PTE_D)) == (PTE_A | PTE_D));
    CHECK_OK(mmu_update(maddr_of(window_entry()) | MMU_PT_UPDATE_PRESERVE_AD, pte(a_page, PTE_P | PTE_RW | PTE_US)));
    CHECK_EQ(*window_entry() & (PTE_A | PTE_D), PTE_A | PTE_D);
    CHECK_OK(mmu_update(maddr_of(window_entry()), pte(a_page, PTE_P | PTE_RW | PTE_US)));
    CHECK_EQ(*window_entry() & (PTE_A | PTE_D), 0);
    CHECK_OK(mmuext(MMUEXT_INVLPG_LOCAL, WINDOW, 0));
    window[1] = 2; /* the processor sets them anew */
    CHECK_EQ(*window_entry() & (PTE_A | PTE_D), PTE_A | PTE_D);
}

TEST(mmu_update_of_plain_memory_is_a_store)
{
    CHECK_OK(mmu_update(maddr_of(&plain[9]), 0x123456789abcdef));
    CHECK_EQ(plain[9], 0x123456789abcdef);
    CHECK_ERR(mmu_update(NO_MFN * PAGE_SIZE, 1), XEN_EINVAL);
    CHECK_ERR(mmu_update(xen_start->shared_info, 0), XEN_EINVAL);
}

TEST(mmu_update_of_the_m2p)
{
    unsigned long mfn = mfn_of(plain);
    CHECK_OK(mmu_update(mfn * PAGE_SIZE | MMU_MACHPHYS_UPDATE, 0x777));
    CHECK_EQ(m2p[mfn], 0x777);
    CHECK_OK(mmu_update(mfn * PAGE_SIZE | MMU_MACHPHYS_UPDATE, pfn_of(plain)));
    CHECK_EQ(m2p[mfn], pfn_of(plain));
    CHECK_ERR(mmu_update(NO_MFN * PAGE_SIZE | MMU_MACHPHYS_UPDATE, 0), XEN_EINVAL);
    CHECK_ERR(mmu_update(MMU_MACHPHYS_UPDATE, 0), XEN_EINVAL);
}

TEST(a_batch)
{
    static struct mmu_update batch[BATCH];
    unsigned done = 0;
    REQUIRE(ready());
    for (unsigned i = 0; i < BATCH; i++)
        batch[i] = (struct mmu_update){.ptr = maddr_of(window_entry()) + (i + 8) * 8, .val = pte(i & 1 ? a_page : b_page, PTE_RW_PAGE)};
    CHECK_OK(hypercall(__HYPERVISOR_mmu_update, (unsigned long)batch, BATCH, (unsigned long)&done, DOMID_SELF, 0));
    CHECK_EQ(done, BATCH);
    for (unsigned i = 0; i < BATCH; i++)
        CHECK_EQ(window[(i + 8) * 512], i & 1 ? 0xaaaa : 0xbbbb);
    batch[100].val = NO_MFN * PAGE_SIZE | PTE_RW_PAGE;
    CHECK_ERR(hypercall(__HYPERVISOR_mmu_update, (unsigned long)batch, BATCH, (unsigned long)&done, DOMID_SELF, 0), XEN_EPERM);
    CHECK_EQ(done, 100);
    for (unsigned i = 0; i < BATCH; i++)
        batch[i].val = 0;
    CHECK_OK(hypercall(__HYPERVISOR_mmu_update, (unsigned long)batch, BATCH, 0, DOMID_SELF, 0));
    CHECK_OK(mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
    CHECK_EQ(read_trap(window + 8 * 512), 14);
}

TEST(a_batch_that_cannot_be_read)
{
    unsigned done = 5;
    CHECK_ERR(hypercall(__HYPERVISOR_mmu_update, BAD_ADDRESS, 1, (unsigned long)&done, DOMID_SELF, 0), XEN_EFAULT);
    CHECK_EQ(done, 0);
    CHECK_ERR(hypercall(__HYPERVISOR_mmu_update, (unsigned long)m2p, 1, 0, DOMID_SELF, 0), XEN_EFAULT);
}

TEST(other_domains)
{
    struct mmu_update update = {.ptr = maddr_of(plain), .val = 0};
    CHECK_ERR(hypercall(__HYPERVISOR_mmu_update, (unsigned long)&update, 1, 0, 0x123, 0), XEN_ESRCH);
}

/* -- stores to tables -------------------------------------------------------------------------------------------------- */

TEST(a_store_to_an_l1_is_carried_out)
{
    REQUIRE(ready());
    volatile uint64_t *entry = window_entry();
    CHECK_EQ(write_trap(entry, pte(b_page, PTE_RW_PAGE)), NO_TRAP);
    CHECK_EQ(*entry & PTE_MFN, mfn_of(b_page) * PAGE_SIZE);
    CHECK_OK(mmuext(MMUEXT_INVLPG_LOCAL, WINDOW, 0));
    CHECK_EQ(window[0], 0xbbbb);
}

TEST(an_exchange_with_an_l1)
{
    REQUIRE(ready());
    uint64_t before = *window_entry();
    struct regs regs = {.a = pte(b_page, PTE_RW_PAGE), .d = (unsigned long)window_entry()};
    CHECK_EQ(TRAP_WITH("xchg %%rax, (%%rdx)", regs), NO_TRAP);
    CHECK_EQ(regs.a & PTE_MFN, before & PTE_MFN);
    CHECK_EQ(*window_entry() & PTE_MFN, mfn_of(b_page) * PAGE_SIZE);
}

/* By registers of all kinds, and by operands that are more than a register. */
TEST(exchanges_by_other_registers)
{
#define EXCHANGED(code)                                                                                          \
    do {                                                                                                         \
        REQUIRE(ready());                                                                                        \
        uint64_t before_ = *window_entry();                                                                      \
        struct regs regs_ = {.a = pte(b_page, PTE_RW_PAGE), .d = (unsigned long)window_entry()};                 \
        CHECK_EQ(TRAP_WITH(code, regs_), NO_TRAP);                                                               \
        CHECK_EQ(regs_.a & PTE_MFN, before_ & PTE_MFN);                                                          \
        CHECK_EQ(*window_entry() & PTE_MFN, mfn_of(b_page) * PAGE_SIZE);                                         \
    } while (0)
    EXCHANGED("mov %%rax, %%r8; mov %%rdx, %%r9; xchg %%r8, (%%r9); mov %%r8, %%rax");
    EXCHANGED("mov %%rdx, %%rsi; xchg %%rax, (%%rsi)");
    EXCHANGED("mov %%rax, %%rbx; xchg %%rbx, (%%rdx); mov %%rbx, %%rax");
    EXCHANGED("mov %%rdx, %%r11; xchg %%rax, (%%r11)");
    EXCHANGED("mov %%rax, %%r10; xchg %%r10, (%%rdx); mov %%r10, %%rax");
    EXCHANGED("lea -8(%%rdx), %%rcx; xchg %%rax, 8(%%rcx)");
    EXCHANGED("mov $1, %%ecx; sub $8, %%rdx; xchg %%rax, (%%rdx,%%rcx,8)");
    EXCHANGED("push %%r12; mov %%rdx, %%r12; xchg %%rax, (%%r12); pop %%r12");
    EXCHANGED("push %%r13; mov %%rdx, %%r13; xchg %%rax, (%%r13); pop %%r13");
    EXCHANGED("push %%rbp; mov %%rdx, %%rbp; xchg %%rax, (%%rbp); pop %%rbp");
}

TEST(compare_and_exchange_with_an_l1)
{
    REQUIRE(ready());
    uint64_t before = *window_entry();
    struct regs regs = {.a = before, .c = pte(b_page, PTE_RW_PAGE), .d = (unsigned long)window_entry()};
    CHECK_EQ(TRAP_WITH("lock cmpxchg %%rcx, (%%rdx); sete %%dil; movzbl %%dil, %%edi", regs), NO_TRAP);
    CHECK_EQ(regs.di, 1);
    CHECK_EQ(*window_entry() & PTE_MFN, mfn_of(b_page) * PAGE_SIZE);
    regs = (struct regs){.a = 0x1234, .c = 0, .d = (unsigned long)window_entry()};
    CHECK_EQ(TRAP_WITH("lock cmpxchg %%rcx, (%%rdx); sete %%dil; movzbl %%dil, %%edi", regs), NO_TRAP);
    CHECK_EQ(regs.di, 0);
    CHECK_EQ(regs.a, *window_entry());
}

TEST(bits_of_an_l1)
{
    REQUIRE(ready());
    window[0] = 0xaaaa;
    struct regs regs = {.d = (unsigned long)window_entry()};
    CHECK_EQ(TRAP_WITH("lock andb $~0x40, (%%rdx)", regs), NO_TRAP);
    CHECK_EQ(*window_entry() & PTE_D, 0);
    regs.d = (unsigned long)window_entry();
    CHECK_EQ(TRAP_WITH("lock btrq $1, (%%rdx)", regs), NO_TRAP);
    CHECK_EQ(*window_entry() & PTE_RW, 0);
    regs.d = (unsigned long)window_entry();
    CHECK_EQ(TRAP_WITH("lock orq $2, (%%rdx)", regs), NO_TRAP);
    CHECK_EQ(*window_entry() & PTE_RW, PTE_RW);
}

TEST(a_store_that_is_not_allowed_faults)
{
    REQUIRE(ready());
    uint64_t before = *window_entry();
    CHECK_EQ(write_trap(window_entry(), NO_MFN * PAGE_SIZE | PTE_RW_PAGE), 14);
    CHECK_EQ(last_trap.error, 3);
    CHECK_EQ(last_cr2, (unsigned long)window_entry());
    CHECK_EQ(*window_entry(), before);
    CHECK_EQ(write_trap(window_entry(), pte(window_entry(), PTE_RW_PAGE)), 14);
    CHECK_EQ(*window_entry(), before);
}

TEST(a_store_to_an_upper_table_faults)
{
    for (int level = 2; level <= 4; level++) {
        uint64_t *entry = entry_of((void *)WINDOW, level), before = *entry;
        CHECK_EQ(write_trap(entry, 0), 14);
        CHECK_EQ(*entry, before);
    }
}

TEST(code_may_be_changed)
{
    /* Linux pokes its text through a second mapping. */
    static uint8_t code[PAGE_SIZE] PAGE_ALIGNED;
    code[0] = 0xb8; /* mov $1, %eax; ret */
    code[1] = 1;
    code[5] = 0xc3;
    REQUIRE(map_at(WINDOW, pte(code, PTE_RW_PAGE)));
    for (unsigned value = 1; value < 40; value++) {
        ((volatile uint8_t *)WINDOW)[1] = value;
        unsigned long result;
        __asm__ volatile("call *%1" : "=a"(result) : "r"(code) : "memory");
        CHECK_EQ(result, value);
    }
}

TEST(a_page_changes_hands_many_times)
{
    REQUIRE(ready());
    for (unsigned long i = 0; i < 2000; i++) {
        uint64_t *page = i % 3 ? a_page : b_page;
        CHECK_OK(update_va(window, pte(page, PTE_RW_PAGE), UVMF_INVLPG));
        window[1] = i;
        CHECK_EQ(page[1], i);
    }
}
