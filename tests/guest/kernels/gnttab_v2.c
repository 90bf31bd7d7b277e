/*
 * grant_table_op with version 2 entries: changing the version, status pages, and grants of part of a page.
 */
#include "guest.h"

#define GREF 20

static volatile union grant_entry_v2 *table = (void *)UNPOPULATED;
static volatile grant_status_t *status = (void *)(UNPOPULATED + 16 * PAGE_SIZE);
static uint8_t source[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t target[PAGE_SIZE] PAGE_ALIGNED;

static long set_version(uint32_t version)
{
    struct gnttab_set_version op = {.version = version};
    return grant_table_op(GNTTABOP_set_version, &op, 1);
}

static int copy_from_grant(grant_ref_t ref, uint16_t offset, uint16_t size)
{
    struct gnttab_copy op = {.len = size, .flags = GNTCOPY_source_gref, .status = 99};
    op.source.domid = own_domid();
    op.source.u.ref = ref;
    op.source.offset = offset;
    op.dest.domid = DOMID_SELF;
    op.dest.u.gmfn = gfn_of(target);
    long rc = grant_table_op(GNTTABOP_copy, &op, 1);
    return rc ? 1000 : op.status;
}

TEST(no_such_version)
{
    CHECK_ERR(set_version(0), XEN_EINVAL);
    CHECK_ERR(set_version(3), XEN_EINVAL);
    CHECK_OK(set_version(1));
}

TEST(version_2)
{
    struct gnttab_get_version get = {.dom = DOMID_SELF};
    CHECK_OK(set_version(2));
    CHECK_OK(grant_table_op(GNTTABOP_get_version, &get, 1));
    CHECK_EQ(get.version, 2);
    CHECK_OK(add_to_physmap(XENMAPSPACE_grant_table, 0, UNPOPULATED_GFN));
    CHECK_OK(add_to_physmap(XENMAPSPACE_grant_table, XENMAPIDX_grant_table_status, UNPOPULATED_GFN + 16));
}

TEST(reserved_entries_are_converted)
{
    uint64_t gfn;
    REQUIRE(get_param(HVM_PARAM_STORE_PFN, &gfn) == 0);
    CHECK_EQ(table[GNTTAB_RESERVED_XENSTORE].hdr.flags & GTF_type_mask, GTF_permit_access);
    CHECK_EQ(table[GNTTAB_RESERVED_XENSTORE].full_page.frame, gfn);
}

TEST(copy_of_a_whole_page_grant)
{
    table[GREF].full_page.frame = gfn_of(source);
    table[GREF].hdr.domid = own_domid();
    barrier();
    table[GREF].hdr.flags = GTF_permit_access | GTF_readonly;
    memset(source, 0x29, PAGE_SIZE);
    CHECK_EQ(copy_from_grant(GREF, 4000, 96), GNTST_okay);
    CHECK(all_bytes(target, 0x29, 96));
    CHECK_EQ(status[GREF], 0);
}

TEST(copy_of_part_of_a_page)
{
    table[GREF + 1].sub_page.frame = gfn_of(source);
    table[GREF + 1].sub_page.page_off = 1024;
    table[GREF + 1].sub_page.length = 512;
    table[GREF + 1].hdr.domid = own_domid();
    barrier();
    table[GREF + 1].hdr.flags = GTF_permit_access | GTF_sub_page | GTF_readonly;
    memset(source + 1024, 0x3a, 512);
    CHECK_EQ(copy_from_grant(GREF + 1, 1024, 512), GNTST_okay);
    CHECK(all_bytes(target, 0x3a, 512));
    CHECK(copy_from_grant(GREF + 1, 1023, 16) < 0);
    CHECK(copy_from_grant(GREF + 1, 1500, 64) < 0);
}

TEST(mapping_shows_in_the_status)
{
    struct gnttab_map_grant_ref map = {
        .host_addr = UNPOPULATED + (32 << 20), .flags = GNTMAP_host_map | GNTMAP_readonly, .ref = GREF};
    struct gnttab_unmap_grant_ref unmap = {.host_addr = map.host_addr};
    map.dom = own_domid();
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &map, 1));
    CHECK_EQ(map.status, GNTST_okay);
    CHECK_EQ(status[GREF], GTF_reading);
    CHECK_EQ(*(volatile uint8_t *)(unsigned long)map.host_addr, 0x29);
    /* A version cannot be left with grants in use. */
    CHECK_ERR(set_version(1), XEN_EBUSY);
    unmap.handle = map.handle;
    CHECK_OK(grant_table_op(GNTTABOP_unmap_grant_ref, &unmap, 1));
    CHECK_EQ(unmap.status, GNTST_okay);
    CHECK_EQ(status[GREF], 0);
}

TEST(mapping_of_part_of_a_page)
{
    struct gnttab_map_grant_ref map = {
        .host_addr = UNPOPULATED + (32 << 20), .flags = GNTMAP_host_map | GNTMAP_readonly, .ref = GREF + 1};
    map.dom = own_domid();
    CHECK_OK(grant_table_op(GNTTABOP_map_grant_ref, &map, 1));
    CHECK(map.status < 0);
    CHECK_EQ(status[GREF + 1], 0);
}

/* For an auto-translated guest the status pages are placed with add_to_physmap alone. */
TEST(get_status_frames_is_for_pv)
{
    uint64_t frame;
    struct gnttab_get_status_frames op = {.dom = DOMID_SELF, .nr_frames = 1};
    set_xen_guest_handle(op.frame_list, &frame);
    CHECK_ERR(grant_table_op(GNTTABOP_get_status_frames, &op, 1), XEN_ENOSYS);
}

TEST(version_1_again)
{
    volatile grant_entry_v1_t *entries = (void *)table;
    CHECK_OK(set_version(1));
    CHECK_EQ(entries[GNTTAB_RESERVED_XENSTORE].flags & GTF_type_mask, GTF_permit_access);
    CHECK(all_bytes((void *)&entries[8], 0, PAGE_SIZE - 8 * sizeof *entries));
}
