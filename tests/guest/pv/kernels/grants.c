/* Granted pages mapped by page-table entries: our own grants, which a guest may map as it may those of others. Ref: grant_table.h */
#include "pv.h"

#define GREF 20
#define TABLE PLAYGROUND
#define PLACE (PLAYGROUND + 0x10000)
#define OTHER (PLAYGROUND + 0x11000)

static volatile grant_entry_v1_t *table = (void *)TABLE;
static volatile uint64_t granted[512] PAGE_ALIGNED;
static uint64_t spare[512] PAGE_ALIGNED;
static domid_t self;
static uint64_t frame_maddr;

static void grant(grant_ref_t ref, uint16_t flags)
{
    table[ref].domid = self;
    table[ref].frame = mfn_of(granted);
    barrier();
    table[ref].flags = GTF_permit_access | flags;
}

static int map(uint64_t host_addr, uint32_t flags, grant_ref_t ref, grant_handle_t *handle)
{
    struct gnttab_map_grant_ref op = {.host_addr = host_addr, .flags = flags, .ref = ref, .dom = self, .status = 99};
    long rc = grant_table_op(GNTTABOP_map_grant_ref, &op, 1);
    *handle = op.handle;
    frame_maddr = op.dev_bus_addr;
    return rc ? 1000 : op.status;
}

static int unmap(uint64_t host_addr, uint64_t dev_bus_addr, grant_handle_t handle)
{
    struct gnttab_unmap_grant_ref op = {.host_addr = host_addr, .dev_bus_addr = dev_bus_addr, .handle = handle, .status = 99};
    long rc = grant_table_op(GNTTABOP_unmap_grant_ref, &op, 1);
    return rc ? 1000 : op.status;
}

static int replace(uint64_t host_addr, uint64_t new_addr, grant_handle_t handle)
{
    struct gnttab_unmap_and_replace op = {.host_addr = host_addr, .new_addr = new_addr, .handle = handle, .status = 99};
    long rc = grant_table_op(GNTTABOP_unmap_and_replace, &op, 1);
    return rc ? 1000 : op.status;
}

TEST(the_table)
{
    xen_pfn_t frames[1] = {0};
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 1, .status = 99};
    set_xen_guest_handle(setup.frame_list, frames);
    CHECK_OK(grant_table_op(GNTTABOP_setup_table, &setup, 1));
    REQUIRE(setup.status == GNTST_okay);
    REQUIRE(map_at(TABLE, frames[0] * PAGE_SIZE | PTE_RW_PAGE));
    REQUIRE(map_at(PLACE, 0));
    REQUIRE(map_at(OTHER, 0));
    for (self = 1; self < 64; self++) {
        struct gnttab_query_size query = {.dom = self, .status = 99};
        if (!grant_table_op(GNTTABOP_query_size, &query, 1) && query.status == GNTST_okay)
            break;
    }
    CHECK(self < 64);
}

TEST(by_address)
{
    grant_handle_t handle;
    grant(GREF, 0);
    granted[0] = 0x1111;
    CHECK_EQ(map(PLACE, GNTMAP_host_map, GREF, &handle), GNTST_okay);
    CHECK_EQ(*(volatile uint64_t *)PLACE, 0x1111);
    *(volatile uint64_t *)(PLACE + 8) = 0x2222;
    CHECK_EQ(granted[1], 0x2222);
    CHECK_EQ(*entry_of((void *)PLACE, 1) & PTE_MFN, frame_maddr);
    CHECK_EQ(table[GREF].flags, GTF_permit_access | GTF_reading | GTF_writing);
    CHECK_EQ(unmap(OTHER, 0, handle), GNTST_general_error);
    CHECK_EQ(unmap(PLACE, 0, handle), GNTST_okay);
    CHECK_EQ(read_trap((void *)PLACE), 14);
    CHECK_EQ(table[GREF].flags, GTF_permit_access);
    CHECK_EQ(unmap(PLACE, 0, handle), GNTST_bad_handle);
}

TEST(by_the_entry)
{
    grant_handle_t handle;
    uint64_t entry = maddr_of(entry_of((void *)PLACE, 1));
    granted[0] = 0x3333;
    CHECK_EQ(map(entry, GNTMAP_host_map | GNTMAP_contains_pte, GREF, &handle), GNTST_okay);
    CHECK_EQ(*(volatile uint64_t *)PLACE, 0x3333);
    CHECK_EQ(replace(entry, OTHER, handle), GNTST_general_error);
    CHECK_EQ(unmap(entry + 8, 0, handle), GNTST_general_error);
    CHECK_EQ(unmap(entry, 0, handle), GNTST_okay);
    CHECK_EQ(read_trap((void *)PLACE), 14);
}

TEST(read_only)
{
    grant_handle_t handle;
    grant(GREF, GTF_readonly);
    CHECK_EQ(map(PLACE, GNTMAP_host_map, GREF, &handle), GNTST_general_error);
    CHECK_EQ(map(PLACE, GNTMAP_host_map | GNTMAP_readonly, GREF, &handle), GNTST_okay);
    CHECK_EQ(*(volatile uint64_t *)PLACE, 0x3333);
    CHECK_EQ(write_trap((void *)PLACE, 1), 14);
    CHECK_ERR(update_va((void *)PLACE, frame_maddr | PTE_RW_PAGE, UVMF_INVLPG), XEN_EPERM);
    CHECK_ERR(update_va((void *)OTHER, frame_maddr | PTE_RO_PAGE, UVMF_INVLPG), XEN_EPERM);
    CHECK_EQ(unmap(PLACE, 0, handle), GNTST_okay);
    CHECK_EQ(granted[0], 0x3333);
    grant(GREF, 0);
}

TEST(twice_and_for_devices)
{
    grant_handle_t first, second, device;
    CHECK_EQ(map(PLACE, GNTMAP_host_map, GREF, &first), GNTST_okay);
    CHECK_EQ(map(OTHER, GNTMAP_host_map, GREF, &second), GNTST_okay);
    CHECK_EQ(map(0, GNTMAP_device_map, GREF, &device), GNTST_okay);
    CHECK_EQ(*entry_of((void *)PLACE, 1) & PTE_MFN, *entry_of((void *)OTHER, 1) & PTE_MFN);
    CHECK_EQ(frame_maddr, *entry_of((void *)OTHER, 1) & PTE_MFN);
    CHECK(*entry_of((void *)OTHER, 1) >> 63); /* nothing to execute */
    CHECK_EQ(unmap(PLACE, 0, first), GNTST_okay);
    *(volatile uint64_t *)OTHER = 0x4444;
    CHECK_EQ(granted[0], 0x4444);
    CHECK_EQ(unmap(OTHER, 0, second), GNTST_okay);
    CHECK(table[GREF].flags & GTF_writing);
    CHECK_EQ(unmap(0, frame_maddr + PAGE_SIZE, device), GNTST_bad_dev_addr);
    CHECK_EQ(unmap(0, frame_maddr, device), GNTST_okay);
    CHECK_EQ(table[GREF].flags, GTF_permit_access);
}

TEST(replaced_by_another_mapping)
{
    grant_handle_t handle;
    spare[0] = 0x5555;
    REQUIRE(update_va((void *)OTHER, pte(spare, PTE_RW_PAGE), UVMF_INVLPG) == 0);
    CHECK_EQ(map(PLACE, GNTMAP_host_map, GREF, &handle), GNTST_okay);
    CHECK_EQ(*(volatile uint64_t *)PLACE, 0x4444);
    CHECK_EQ(replace(PLACE, OTHER, handle), GNTST_okay);
    CHECK_EQ(*(volatile uint64_t *)PLACE, 0x5555);
    CHECK_EQ(read_trap((void *)OTHER), 14);
    CHECK_OK(update_va((void *)PLACE, 0, UVMF_INVLPG));
}

TEST(what_is_refused)
{
    grant_handle_t handle;
    CHECK_EQ(map(PLACE, 0, GREF, &handle), GNTST_bad_gntref);
    CHECK_EQ(map(PLACE, GNTMAP_host_map | 0x100, GREF, &handle), GNTST_okay); /* a flag that nobody knows */
    CHECK_EQ(unmap(PLACE, 0, handle), GNTST_okay);
    CHECK_EQ(map(0x7000000000, GNTMAP_host_map, GREF, &handle), GNTST_general_error);
    CHECK_EQ(map(maddr_of(spare), GNTMAP_host_map | GNTMAP_contains_pte, GREF, &handle), GNTST_general_error);
    CHECK_EQ(map(~7ul, GNTMAP_host_map | GNTMAP_contains_pte, GREF, &handle), GNTST_general_error);
    CHECK_EQ(map(PLACE, GNTMAP_host_map, 1 << 20, &handle), GNTST_bad_gntref);
    CHECK_EQ(table[GREF].flags, GTF_permit_access);
}

static int copy(xen_pfn_t from, xen_pfn_t to)
{
    struct gnttab_copy op = {.source = {.u.gmfn = from, .domid = DOMID_SELF}, .dest = {.u.gmfn = to, .domid = DOMID_SELF},
                             .len = 8, .status = 99};
    long rc = grant_table_op(GNTTABOP_copy, &op, 1);
    return rc ? 1000 : op.status;
}

TEST(copies_do_not_go_into_page_tables)
{
    uint64_t *entry = entry_of(spare, 1), before = *entry;
    spare[0] = before ^ PTE_RW;
    CHECK_EQ(copy(mfn_of(spare), mfn_of(entry)), GNTST_general_error);
    CHECK_EQ(*entry, before);
    granted[0] = 0;
    CHECK_EQ(copy(mfn_of(spare), mfn_of(granted)), GNTST_okay);
    CHECK_EQ(granted[0], spare[0]);
    CHECK_EQ(copy(mfn_of(entry), mfn_of(granted)), GNTST_okay); /* from there they may */
}

TEST(many_times)
{
    grant_handle_t handle;
    for (uint64_t i = 0; i < 300; i++) {
        uint64_t at = i & 1 ? PLACE : OTHER;
        granted[2] = i;
        CHECK_EQ(map(at, GNTMAP_host_map, GREF, &handle), GNTST_okay);
        CHECK_EQ(((volatile uint64_t *)at)[2], i);
        CHECK_EQ(unmap(at, 0, handle), GNTST_okay);
    }
}

/* What the test beside this kernel has another domain grant us: its number is on the command line. */
TEST(of_another_domain)
{
    const char *line = (const char *)xen_start->cmd_line;
    if (memcmp(line, "lender=", 7))
        SKIP("no other domain is named on the command line");
    struct gnttab_map_grant_ref op = {.host_addr = PLACE, .flags = GNTMAP_host_map, .ref = 9, .dom = line[7] - '0', .status = 99};
    volatile uint64_t *words = (void *)PLACE;
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &op, 1));
    REQUIRE(op.status == GNTST_okay);
    CHECK_EQ(words[0], 0x1234567890);
    words[1] = words[0] + 1;
    CHECK_EQ(unmap(PLACE, 0, op.handle), GNTST_okay);
    op.ref = 10;
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &op, 1));
    CHECK_EQ(op.status, GNTST_general_error); /* it is for somebody else */
    op.flags |= GNTMAP_readonly;
    op.ref = 11;
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &op, 1));
    REQUIRE(op.status == GNTST_okay); /* and remains mapped */
    CHECK_EQ(words[0], 0x1234567890);
}

static int transfer(unsigned long mfn, domid_t to, grant_ref_t ref)
{
    struct gnttab_transfer op = {.mfn = mfn, .domid = to, .ref = ref, .status = 99};
    long rc = grant_table_op(GNTTABOP_transfer, &op, 1);
    return rc ? 1000 : op.status;
}

/* To itself, for which there is no other domain needed. */
TEST(a_page_is_transferred)
{
    static volatile uint64_t page[512] PAGE_ALIGNED;
    unsigned long mfn = mfn_of(page), pfn = pfn_of(page);
    page[7] = 0x77;
    table[GREF].domid = self;
    table[GREF].frame = pfn;
    barrier();
    table[GREF].flags = GTF_accept_transfer;
    CHECK_EQ(transfer(mfn, self, GREF), GNTST_bad_page); /* it is mapped */
    CHECK_EQ(table[GREF].flags, GTF_accept_transfer);
    CHECK_EQ(transfer(NO_MFN, self, GREF), GNTST_bad_page);
    CHECK_EQ(transfer(mfn_of((void *)xen_start->pt_base), self, GREF), GNTST_bad_page);
    CHECK_OK(update_va(page, 0, UVMF_INVLPG | UVMF_ALL));
    CHECK_EQ(transfer(mfn, self, GREF), GNTST_okay);
    CHECK_EQ(table[GREF].flags, GTF_accept_transfer | GTF_transfer_committed | GTF_transfer_completed);
    unsigned long now = table[GREF].frame;
    CHECK_EQ(m2p[now], pfn);
    ((unsigned long *)xen_start->mfn_list)[pfn] = now;
    CHECK_OK(update_va(page, pte(page, PTE_RW_PAGE), UVMF_INVLPG));
    CHECK_EQ(page[7], 0x77);
    if (now != mfn)
        CHECK_ERR(update_va((void *)PLACE, mfn * PAGE_SIZE | PTE_RW_PAGE, UVMF_INVLPG), XEN_EBUSY);
    table[GREF].flags = 0;
}
