/* Page types: what may be a page table, and what may not while it is one. Ref: xen/include/public/xen.h, MMUEXT_PIN_L1_TABLE and others */
#include "pv.h"

#define FRESH(name) static uint64_t name[512] PAGE_ALIGNED
#define NR_L1_RAM 512

/* A page that nothing maps writable, filled with zeroes; whatever an earlier test left of it is undone. */
static long fresh_table(uint64_t *page)
{
    UNPIN(page);
    if (protect(page, PTE_RW_PAGE))
        return -1;
    memset(page, 0, PAGE_SIZE);
    return protect(page, PTE_RO_PAGE);
}

#define TABLE(page) REQUIRE(fresh_table(page) == 0)

FRESH(l1);
FRESH(other);
FRESH(l2);
FRESH(l3);
FRESH(l4);
FRESH(data);

TEST(pin_and_unpin_every_level)
{
    TABLE(l1);
    for (int level = 1; level <= 4; level++) {
        CHECK_OK(PIN(level, l1));
        CHECK_OK(UNPIN(l1));
    }
}

TEST(pin_needs_no_writable_mapping)
{
    REQUIRE(protect(l1, PTE_RW_PAGE) == 0);
    for (int level = 1; level <= 4; level++)
        CHECK_ERR(PIN(level, l1), XEN_EINVAL);
}

TEST(a_table_cannot_be_mapped_writable)
{
    TABLE(l1);
    CHECK_OK(PIN(1, l1));
    CHECK_ERR(protect(l1, PTE_RW_PAGE), XEN_EBUSY);
    CHECK_ERR(mmu_update(maddr_of(entry_of(l1, 1)), pte(l1, PTE_RW_PAGE)), XEN_EBUSY);
    CHECK_ERR(mmu_update(maddr_of(entry_of(data, 1)), pte(l1, PTE_RW_PAGE)), XEN_EBUSY);
    CHECK_OK(UNPIN(l1));
    CHECK_OK(PIN(2, l1)); /* stores to an L1 are emulated */
    CHECK_EQ(write_trap(l1, 1), 14);
    CHECK_OK(UNPIN(l1));
    CHECK_OK(protect(l1, PTE_RW_PAGE));
    CHECK_EQ(write_trap(l1, 0), NO_TRAP);
}

TEST(storing_what_is_there_faults_too)
{
    static uint64_t read_only[512] PAGE_ALIGNED;
    REQUIRE(protect(read_only, PTE_RO_PAGE) == 0);
    CHECK_EQ(write_trap(read_only, 0), 14);
}

TEST(pin_is_once_only)
{
    TABLE(l1);
    CHECK_OK(PIN(1, l1));
    CHECK_ERR(PIN(1, l1), XEN_EINVAL);
    CHECK_ERR(PIN(2, l1), XEN_EINVAL);
    CHECK_OK(UNPIN(l1));
    CHECK_ERR(UNPIN(l1), XEN_EINVAL);
}

TEST(a_table_has_one_level)
{
    TABLE(l1);
    TABLE(l2);
    TABLE(l3);
    REQUIRE(PIN(1, l1) == 0);
    REQUIRE(PIN(3, l3) == 0);
    REQUIRE(protect(l2, PTE_RW_PAGE) == 0);
    l2[0] = pte(l3, PTE_TABLE);
    REQUIRE(protect(l2, PTE_RO_PAGE) == 0);
    CHECK_ERR(PIN(2, l2), XEN_EINVAL);
    REQUIRE(protect(l2, PTE_RW_PAGE) == 0);
    l2[0] = pte(l1, PTE_TABLE);
    REQUIRE(protect(l2, PTE_RO_PAGE) == 0);
    CHECK_ERR(PIN(3, l2), XEN_EINVAL);
    CHECK_OK(PIN(2, l2));
    CHECK_OK(UNPIN(l2));
    CHECK_OK(UNPIN(l1));
    CHECK_OK(UNPIN(l3));
}

TEST(tables_below_are_tables_as_long_as_they_are_used)
{
    TABLE(l1);
    TABLE(l2);
    REQUIRE(protect(l2, PTE_RW_PAGE) == 0);
    l2[7] = pte(l1, PTE_TABLE);
    REQUIRE(protect(l2, PTE_RO_PAGE) == 0);
    CHECK_OK(PIN(2, l2));
    CHECK_ERR(protect(l1, PTE_RW_PAGE), XEN_EBUSY);
    CHECK_ERR(UNPIN(l1), XEN_EINVAL);
    CHECK_OK(mmu_update(maddr_of(&l2[7]), 0));
    CHECK_OK(protect(l1, PTE_RW_PAGE));
    CHECK_OK(UNPIN(l2));
}

TEST(entries_are_adjusted)
{
    TABLE(l1);
    REQUIRE(protect(l1, PTE_RW_PAGE) == 0);
    l1[1] = pte(data, PTE_P | PTE_A);
    l1[2] = pte(data, PTE_P | PTE_US | PTE_A);
    l1[3] = 0x7000;
    REQUIRE(protect(l1, PTE_RO_PAGE) == 0);
    REQUIRE(PIN(1, l1) == 0);
    CHECK_EQ(l1[1] & ~PTE_MFN, PTE_P | PTE_A | PTE_US | PTE_GUEST_KERNEL);
    CHECK_EQ(l1[2] & ~PTE_MFN & ~PTE_G, PTE_P | PTE_A | PTE_US);
    CHECK_EQ(l1[3], 0x7000);
    CHECK_OK(UNPIN(l1));
}

/* What no table of a level may hold. */
static long pin_with(int level, uint64_t entry)
{
    if (fresh_table(other) || protect(other, PTE_RW_PAGE))
        return -1;
    other[5] = entry;
    if (protect(other, PTE_RO_PAGE))
        return -1;
    long rc = PIN(level, other);
    if (rc == 0)
        UNPIN(other);
    return rc;
}

TEST(entries_that_are_refused)
{
    TABLE(l1);
    for (int level = 2; level <= 3; level++) {
        CHECK_ERR(pin_with(level, pte(l1, PTE_TABLE | PTE_PSE)), XEN_EINVAL);
        CHECK_OK(pin_with(level, pte(l1, PTE_TABLE)));
    }
    CHECK_ERR(pin_with(1, pte(data, PTE_RW_PAGE | PTE_PCD)), XEN_EINVAL);
    CHECK_OK(pin_with(1, pte(data, PTE_RW_PAGE)));
    CHECK_ERR(pin_with(2, NO_MFN * PAGE_SIZE | PTE_TABLE), XEN_EINVAL);
    CHECK_ERR(pin_with(1, NO_MFN * PAGE_SIZE | PTE_RW_PAGE), XEN_EPERM);
}

TEST(frames_that_are_not_ours)
{
    CHECK_ERR(mmuext(MMUEXT_PIN_L1_TABLE, NO_MFN, 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_PIN_L4_TABLE, 0, 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_PIN_L1_TABLE, ~0ul, 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_UNPIN_TABLE, NO_MFN, 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_NEW_BASEPTR, NO_MFN, 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_NEW_USER_BASEPTR, NO_MFN, 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_CLEAR_PAGE, NO_MFN, 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_COPY_PAGE, mfn_of(data), NO_MFN), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_PIN_L1_TABLE, xen_start->shared_info / PAGE_SIZE, 0), XEN_EINVAL);
}

TEST(the_hypervisors_own_memory_cannot_be_mapped)
{
    /* The frames behind the guest's, where in-guest code might be, and below them. */
    unsigned long first = mfn_of((void *)VIRT_BASE);
    static const long offsets[] = {-1, -2, -512, 1l << 20, -(1l << 19), -(1l << 20)};
    for (unsigned i = 0; i < ARRAY_SIZE(offsets); i++) {
        uint64_t entry = (first + offsets[i]) * PAGE_SIZE | PTE_RW_PAGE;
        CHECK(update_va(data, entry, UVMF_INVLPG) < 0);
        CHECK(update_va(data, entry & ~PTE_RW, UVMF_INVLPG) < 0);
    }
    CHECK_EQ(write_trap(data, 1), NO_TRAP);
    /* Nor the table by which the hypervisor's slot is shown: an entry of an L4 there is not the guest's to read. */
    const uint64_t *kernel_l4 = (const void *)xen_start->pt_base;
    for (unsigned slot = 256; slot < 272; slot++)
        if (kernel_l4[slot] & PTE_P)
            CHECK(update_va(data, (kernel_l4[slot] & PTE_MFN) | PTE_RO_PAGE, UVMF_INVLPG) < 0);
}

TEST(slots_of_the_hypervisor_cannot_be_written)
{
    TABLE(l3);
    const uint64_t *kernel_l4 = (const void *)xen_start->pt_base;
    for (unsigned slot = 256; slot < 272; slot++) {
        uint64_t before = kernel_l4[slot];
        CHECK_ERR(mmu_update(maddr_of(&kernel_l4[slot]), pte(l3, PTE_TABLE)), XEN_EINVAL);
        CHECK_ERR(mmu_update(maddr_of(&kernel_l4[slot]), 0), XEN_EINVAL);
        CHECK_EQ(kernel_l4[slot], before);
    }
}

TEST(an_l4_may_have_anything_in_the_hypervisors_slots_before)
{
    TABLE(l4);
    REQUIRE(protect(l4, PTE_RW_PAGE) == 0);
    for (unsigned slot = 256; slot < 272; slot++)
        l4[slot] = pte(data, PTE_RW_PAGE);
    REQUIRE(protect(l4, PTE_RO_PAGE) == 0);
    CHECK_OK(PIN(4, l4));
    for (unsigned slot = 256; slot < 272; slot++)
        CHECK((l4[slot] & PTE_MFN) / PAGE_SIZE != mfn_of(data));
    CHECK_OK(UNPIN(l4));
}

TEST(linear_page_table)
{
    TABLE(l4);
    REQUIRE(protect(l4, PTE_RW_PAGE) == 0);
    l4[3] = pte(l4, PTE_RO_PAGE);
    REQUIRE(protect(l4, PTE_RO_PAGE) == 0);
    CHECK_OK(PIN(4, l4));
    CHECK_ERR(mmu_update(maddr_of(&l4[4]), pte(l4, PTE_TABLE)), XEN_EINVAL);
    CHECK_OK(mmu_update(maddr_of(&l4[4]), pte(l4, PTE_RO_PAGE)));
    CHECK_OK(UNPIN(l4));
    CHECK_OK(protect(l4, PTE_RW_PAGE));
}

TEST(base_pointer)
{
    const uint64_t *kernel_l4 = (const void *)xen_start->pt_base;
    TABLE(l4);
    CHECK_ERR(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(data), 0), XEN_EINVAL);
    REQUIRE(protect(l4, PTE_RW_PAGE) == 0);
    for (unsigned slot = 0; slot < 512; slot++)
        l4[slot] = slot < 256 || slot >= 272 ? kernel_l4[slot] : 0;
    REQUIRE(protect(l4, PTE_RO_PAGE) == 0);
    CHECK_OK(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(l4), 0));
    struct regs regs = {0};
    CHECK_EQ(TRAP_WITH("mov %%cr3, %%rax", regs), NO_TRAP);
    CHECK_EQ(regs.a / PAGE_SIZE, mfn_of(l4));
    CHECK_ERR(protect(l4, PTE_RW_PAGE), XEN_EBUSY);
    CHECK_OK(mmuext(MMUEXT_NEW_BASEPTR, mfn_of(kernel_l4), 0));
    CHECK_OK(protect(l4, PTE_RW_PAGE));
}

TEST(user_base_pointer_may_be_none)
{
    CHECK_OK(mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0));
}

TEST(clear_and_copy)
{
    TABLE(l1);
    REQUIRE(protect(data, PTE_RW_PAGE) == 0);
    memset(data, 0x5a, PAGE_SIZE);
    REQUIRE(protect(other, PTE_RW_PAGE) == 0);
    CHECK_OK(mmuext(MMUEXT_COPY_PAGE, mfn_of(other), mfn_of(data)));
    CHECK(all_bytes(other, 0x5a, PAGE_SIZE));
    CHECK_OK(mmuext(MMUEXT_CLEAR_PAGE, mfn_of(data), 0));
    CHECK(all_bytes(data, 0, PAGE_SIZE));
    REQUIRE(PIN(1, l1) == 0);
    CHECK_ERR(mmuext(MMUEXT_CLEAR_PAGE, mfn_of(l1), 0), XEN_EINVAL);
    CHECK_ERR(mmuext(MMUEXT_COPY_PAGE, mfn_of(l1), mfn_of(data)), XEN_EINVAL);
    CHECK_OK(UNPIN(l1));
}

TEST(a_table_that_was_cleared_by_copy_is_seen_empty)
{
    /* A frame that was a table, then data, then a table again: the processor must not use what it held in between. */
    REQUIRE(protect(data, PTE_RW_PAGE) == 0);
    for (unsigned long round = 0; round < 20; round++) {
        unsigned long va = PLAYGROUND + 0x40000000 + (round & 1) * PAGE_SIZE;
        TABLE(l1);
        REQUIRE(protect(l1, PTE_RW_PAGE) == 0);
        l1[va >> 12 & 511] = pte(data, PTE_RW_PAGE);
        REQUIRE(protect(l1, PTE_RO_PAGE) == 0);
        REQUIRE(map_at(PLAYGROUND + 0x40000000 + 0x5000, 0));
        uint64_t *upper = entry_of((void *)va, 2);
        uint64_t before = *upper;
        data[0] = round + 100;
        CHECK_OK(mmu_update(maddr_of(upper), pte(l1, PTE_TABLE)));
        CHECK_EQ(read_trap((void *)va), NO_TRAP);
        CHECK_EQ(*(volatile uint64_t *)va, round + 100);
        CHECK_EQ(read_trap((void *)(va ^ PAGE_SIZE)), 14);
        CHECK_OK(mmu_update(maddr_of(upper), before));
        CHECK_OK(mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
        CHECK_EQ(read_trap((void *)va), 14);
    }
}

TEST(operations_that_are_none)
{
    CHECK_ERR(mmuext(99, 0, 0), XEN_ENOSYS);
    CHECK_ERR(mmuext(MMUEXT_MARK_SUPER, mfn_of(data), 0), XEN_EOPNOTSUPP);
    struct mmuext_op op = {.cmd = MMUEXT_TLB_FLUSH_LOCAL};
    CHECK_ERR(hypercall(__HYPERVISOR_mmuext_op, (unsigned long)&op, 1, 0, 7, 0), XEN_ESRCH);
    CHECK_ERR(hypercall(__HYPERVISOR_mmuext_op, BAD_ADDRESS, 1, 0, DOMID_SELF, 0), XEN_EFAULT);
}

TEST(pdone_counts)
{
    struct mmuext_op ops[3] = {
        {.cmd = MMUEXT_TLB_FLUSH_LOCAL}, {.cmd = MMUEXT_PIN_L1_TABLE, .arg1.mfn = NO_MFN}, {.cmd = MMUEXT_TLB_FLUSH_LOCAL}};
    unsigned done = 77;
    CHECK_ERR(hypercall(__HYPERVISOR_mmuext_op, (unsigned long)ops, 3, (unsigned long)&done, DOMID_SELF, 0), XEN_EINVAL);
    CHECK_EQ(done, 1);
}

/* Xen's own side writes to these two, whatever the guest makes of them. */
TEST(rings_do_not_become_page_tables)
{
    unsigned long mfns[] = {xen_start->store_mfn, xen_start->console.domU.mfn};
    for (unsigned i = 0; i < ARRAY_SIZE(mfns); i++) {
        volatile void *page = (void *)(VIRT_BASE + m2p[mfns[i]] * PAGE_SIZE);
        CHECK_OK(protect(page, PTE_RO_PAGE));
        CHECK_ERR(mmuext(MMUEXT_PIN_L1_TABLE, mfns[i], 0), XEN_EINVAL);
        CHECK_OK(protect(page, PTE_RW_PAGE));
    }
}
