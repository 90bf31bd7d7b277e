/*
 * grant_table_op with version 1 entries: size, grants to ourselves copied and mapped, and what the flags forbid.
 */
#include "guest.h"

#define GREF 20
#define ENTRIES_PER_FRAME (PAGE_SIZE / sizeof(grant_entry_v1_t))

static volatile grant_entry_v1_t *table = (void *)UNPOPULATED;
static uint8_t source[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t target[PAGE_SIZE] PAGE_ALIGNED;

static void grant(grant_ref_t ref, const void *page, uint16_t flags)
{
    table[ref].domid = own_domid();
    table[ref].frame = gfn_of(page);
    barrier();
    table[ref].flags = GTF_permit_access | flags;
}

/* The status of copying 64 bytes at an offset of a grant, or of a page of our own, to the same place of another. */
static int copy(const void *from, grant_ref_t from_ref, const void *to, grant_ref_t to_ref, uint16_t offset)
{
    struct gnttab_copy op = {.len = 64, .status = 99};
    op.flags = (from ? 0 : GNTCOPY_source_gref) | (to ? 0 : GNTCOPY_dest_gref);
    op.source.domid = from ? DOMID_SELF : own_domid();
    op.dest.domid = to ? DOMID_SELF : own_domid();
    op.source.offset = op.dest.offset = offset;
    if (from)
        op.source.u.gmfn = gfn_of(from);
    else
        op.source.u.ref = from_ref;
    if (to)
        op.dest.u.gmfn = gfn_of(to);
    else
        op.dest.u.ref = to_ref;
    long rc = grant_table_op(GNTTABOP_copy, &op, 1);
    return rc ? 1000 : op.status;
}

TEST(query_size)
{
    struct gnttab_query_size op = {.dom = DOMID_SELF, .status = 99};
    CHECK_OK(grant_table_op(GNTTABOP_query_size, &op, 1));
    CHECK_EQ(op.status, GNTST_okay);
    CHECK(op.nr_frames >= 1 && op.nr_frames <= op.max_nr_frames);
    CHECK_EQ(op.max_nr_frames, 64);
    op.dom = 0x7000;
    CHECK_OK(grant_table_op(GNTTABOP_query_size, &op, 1));
    CHECK_EQ(op.status, GNTST_bad_domain);
    CHECK(grant_table_op(GNTTABOP_query_size, &op, 2) < 0);
}

TEST(version_is_1)
{
    struct gnttab_get_version get = {.dom = DOMID_SELF};
    CHECK_OK(grant_table_op(GNTTABOP_get_version, &get, 1));
    CHECK_EQ(get.version, 1);
}

TEST(table_grows_by_placing_it)
{
    struct gnttab_query_size op = {.dom = DOMID_SELF};
    CHECK_OK(add_to_physmap(XENMAPSPACE_grant_table, 0, UNPOPULATED_GFN));
    CHECK_OK(add_to_physmap(XENMAPSPACE_grant_table, 1, UNPOPULATED_GFN + 1));
    CHECK_OK(grant_table_op(GNTTABOP_query_size, &op, 1));
    CHECK(op.nr_frames >= 2);
}

TEST(setup_table_tells_the_gfns)
{
    xen_pfn_t frames[2] = {0, 0};
    struct gnttab_setup_table op = {.dom = DOMID_SELF, .nr_frames = 2, .status = 99};
    set_xen_guest_handle(op.frame_list, frames);
    CHECK_OK(grant_table_op(GNTTABOP_setup_table, &op, 1));
    CHECK_EQ(op.status, GNTST_okay);
    CHECK_EQ(frames[0], UNPOPULATED_GFN);
    CHECK_EQ(frames[1], UNPOPULATED_GFN + 1);
    op.nr_frames = 1 << 20;
    CHECK_OK(grant_table_op(GNTTABOP_setup_table, &op, 1));
    CHECK(op.status < 0);
}

TEST(reserved_entries_are_the_toolstacks)
{
    uint64_t gfn;
    REQUIRE(get_param(HVM_PARAM_STORE_PFN, &gfn) == 0);
    CHECK_EQ(table[GNTTAB_RESERVED_XENSTORE].flags & GTF_type_mask, GTF_permit_access);
    CHECK_EQ(table[GNTTAB_RESERVED_XENSTORE].frame, gfn);
    CHECK_EQ(table[GNTTAB_RESERVED_XENSTORE].domid, 0);
}

TEST(copy_between_own_pages)
{
    memset(source, 0x31, PAGE_SIZE);
    memset(target, 0, PAGE_SIZE);
    CHECK_EQ(copy(source, 0, target, 0, 100), GNTST_okay);
    CHECK(all_bytes(target, 0, 100));
    CHECK(all_bytes(target + 100, 0x31, 64));
    CHECK(all_bytes(target + 164, 0, PAGE_SIZE - 164));
}

TEST(copy_from_a_grant)
{
    grant(GREF, source, GTF_readonly);
    memset(source, 0x42, PAGE_SIZE);
    memset(target, 0, PAGE_SIZE);
    CHECK_EQ(copy(NULL, GREF, target, 0, 0), GNTST_okay);
    CHECK(all_bytes(target, 0x42, 64));
    CHECK_EQ(table[GREF].flags, GTF_permit_access | GTF_readonly);
}

TEST(copy_to_a_grant)
{
    grant(GREF, target, 0);
    memset(source, 0x53, PAGE_SIZE);
    CHECK_EQ(copy(source, 0, NULL, GREF, 8), GNTST_okay);
    CHECK(all_bytes(target + 8, 0x53, 64));
    CHECK_EQ(table[GREF].flags, GTF_permit_access);
}

TEST(copy_of_a_grant_in_the_second_frame)
{
    grant(ENTRIES_PER_FRAME + 3, source, 0);
    memset(source, 0x64, PAGE_SIZE);
    CHECK_EQ(copy(NULL, ENTRIES_PER_FRAME + 3, target, 0, 0), GNTST_okay);
    CHECK(all_bytes(target, 0x64, 64));
}

TEST(copy_that_is_forbidden)
{
    grant(GREF, target, GTF_readonly);
    CHECK(copy(source, 0, NULL, GREF, 0) < 0);
    table[GREF].domid = 0;
    CHECK(copy(NULL, GREF, target, 0, 0) < 0);
    table[GREF].flags = 0;
    CHECK(copy(NULL, GREF, target, 0, 0) < 0);
    CHECK_EQ(copy(NULL, 1 << 24, target, 0, 0), GNTST_bad_gntref);
}

TEST(copy_across_the_end_of_a_page)
{
    grant(GREF, source, 0);
    CHECK_EQ(copy(NULL, GREF, target, 0, PAGE_SIZE - 32), GNTST_bad_copy_arg);
}

TEST(copy_of_an_empty_page)
{
    CHECK(copy(BAD_POINTER + (64 << 20), 0, target, 0, 0) < 0);
}

TEST(copies_in_one_call)
{
    struct gnttab_copy ops[3];
    memset(ops, 0, sizeof ops);
    for (int i = 0; i < 3; i++) {
        ops[i].source.domid = ops[i].dest.domid = DOMID_SELF;
        ops[i].source.u.gmfn = gfn_of(source);
        ops[i].dest.u.gmfn = gfn_of(target);
        ops[i].dest.offset = 256 * i;
        ops[i].len = 16;
        ops[i].status = 99;
    }
    ops[1].len = 0xffff;
    memset(source, 0x75, PAGE_SIZE);
    memset(target, 0, PAGE_SIZE);
    CHECK_OK(grant_table_op(GNTTABOP_copy, ops, 3));
    CHECK_EQ(ops[0].status, GNTST_okay);
    CHECK_EQ(ops[1].status, GNTST_bad_copy_arg);
    CHECK_EQ(ops[2].status, GNTST_okay);
    CHECK(all_bytes(target, 0x75, 16) && all_bytes(target + 512, 0x75, 16));
}

TEST(map_and_unmap)
{
    struct gnttab_map_grant_ref map = {.host_addr = UNPOPULATED + (32 << 20), .flags = GNTMAP_host_map, .ref = GREF};
    volatile uint8_t *mapped = (void *)(unsigned long)map.host_addr;
    struct gnttab_unmap_grant_ref unmap = {.host_addr = map.host_addr};
    memset(source, 0x86, PAGE_SIZE);
    grant(GREF, source, 0);
    map.dom = own_domid();
    map.status = 99;
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &map, 1));
    CHECK_EQ(map.status, GNTST_okay);
    CHECK(table[GREF].flags & GTF_reading && table[GREF].flags & GTF_writing);
    CHECK_EQ(mapped[77], 0x86);
    mapped[77] = 0x11;
    CHECK_EQ(source[77], 0x11);
    unmap.handle = map.handle;
    unmap.status = 99;
    CHECK_OK(grant_table_op(GNTTABOP_unmap_grant_ref, &unmap, 1));
    CHECK_EQ(unmap.status, GNTST_okay);
    CHECK_EQ(table[GREF].flags, GTF_permit_access);
    CHECK_OK(grant_table_op(GNTTABOP_unmap_grant_ref, &unmap, 1));
    CHECK_EQ(unmap.status, GNTST_bad_handle);
}

TEST(map_that_is_forbidden)
{
    struct gnttab_map_grant_ref map = {.host_addr = UNPOPULATED + (32 << 20), .flags = GNTMAP_host_map, .ref = GREF};
    map.dom = own_domid();
    grant(GREF, source, GTF_readonly);
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &map, 1));
    CHECK(map.status < 0);
    map.dom = 0x7000;
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &map, 1));
    CHECK_EQ(map.status, GNTST_bad_domain);
    CHECK_EQ(table[GREF].flags, GTF_permit_access | GTF_readonly);
}

TEST(swap)
{
    struct gnttab_swap_grant_ref op = {.ref_a = GREF, .ref_b = GREF + 1, .status = 99};
    grant(GREF, source, 0);
    grant(GREF + 1, target, GTF_readonly);
    CHECK_OK(grant_table_op(GNTTABOP_swap_grant_ref, &op, 1));
    CHECK_EQ(op.status, GNTST_okay);
    CHECK_EQ(table[GREF].frame, gfn_of(target));
    CHECK_EQ(table[GREF].flags, GTF_permit_access | GTF_readonly);
    CHECK_EQ(table[GREF + 1].frame, gfn_of(source));
    op.ref_b = 1 << 24;
    CHECK_OK(grant_table_op(GNTTABOP_swap_grant_ref, &op, 1));
    CHECK_EQ(op.status, GNTST_bad_gntref);
}

TEST(commands_of_pv)
{
    struct gnttab_transfer op = {.domid = 0};
    CHECK(grant_table_op(GNTTABOP_transfer, &op, 1) < 0);
}

TEST(bad_pointer)
{
    CHECK_ERR(grant_table_op(GNTTABOP_query_size, BAD_POINTER + (64 << 20), 1), XEN_EFAULT);
    CHECK_ERR(grant_table_op(GNTTABOP_copy, BAD_POINTER + (64 << 20), 1), XEN_EFAULT);
    CHECK_ERR(grant_table_op(GNTTABOP_get_version, BAD_POINTER + (64 << 20), 1), XEN_EFAULT);
    CHECK_ERR(grant_table_op(GNTTABOP_map_grant_ref, BAD_POINTER + (64 << 20), 1), XEN_EFAULT);
}

TEST(unknown_command)
{
    CHECK_ERR(grant_table_op(99, source, 1), XEN_ENOSYS);
}
