/*
 * memory_op, the guest-physical map: what add_to_physmap places is seen where it was placed and nowhere else, on RAM and
 * where nothing was; sizes and the memory map agree with what the guest was given.
 */
#include "guest.h"

#define MEMORY_PAGES (32ul << 8)
#define E820_RAM 1

static uint8_t page[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t other[PAGE_SIZE] PAGE_ALIGNED;

struct e820_entry {
    uint64_t base, size;
    uint32_t type;
} __attribute__((packed));

static uint8_t *at_gfn(unsigned long gfn)
{
    return (uint8_t *)(gfn * PAGE_SIZE);
}

/* Whether a page looks like shared_info: wallclock written, and at a version that is not being written. */
static bool is_shared_info(const void *where)
{
    const volatile shared_info_t *info = where;
    return info->wc_sec && !(info->wc_version & 1);
}

TEST(shared_info_on_ram)
{
    REQUIRE(set_param(HVM_PARAM_CALLBACK_IRQ, 0) == 0);
    memset(page, 0x5a, PAGE_SIZE);
    CHECK_OK(add_to_physmap(XENMAPSPACE_shared_info, 0, gfn_of(page)));
    CHECK(!all_bytes(page, 0x5a, 64));
    CHECK(is_shared_info(page));
}

TEST(shared_info_where_nothing_is)
{
    CHECK_OK(add_to_physmap(XENMAPSPACE_shared_info, 0, UNPOPULATED_GFN));
    CHECK(is_shared_info(at_gfn(UNPOPULATED_GFN)));
    CHECK(!is_shared_info(page));
}

TEST(shared_info_keeps_its_contents_when_moved)
{
    volatile shared_info_t *info = (void *)at_gfn(UNPOPULATED_GFN + 1);
    CHECK_OK(add_to_physmap(XENMAPSPACE_shared_info, 0, UNPOPULATED_GFN));
    ((volatile shared_info_t *)at_gfn(UNPOPULATED_GFN))->evtchn_mask[1] = 0x1234567;
    CHECK_OK(add_to_physmap(XENMAPSPACE_shared_info, 0, UNPOPULATED_GFN + 1));
    CHECK_EQ(info->evtchn_mask[1], 0x1234567);
}

TEST(shared_info_has_one_page)
{
    CHECK_ERR(add_to_physmap(XENMAPSPACE_shared_info, 1, gfn_of(page)), XEN_EINVAL);
}

TEST(grant_frames)
{
    grant_entry_v1_t *frame;
    for (unsigned long idx = 0; idx < 3; idx++)
        CHECK_OK(add_to_physmap(XENMAPSPACE_grant_table, idx, UNPOPULATED_GFN + 16 + idx));
    frame = (void *)at_gfn(UNPOPULATED_GFN + 16);
    CHECK_EQ(frame[GNTTAB_RESERVED_XENSTORE].flags & GTF_type_mask, GTF_permit_access);
    CHECK(all_bytes(at_gfn(UNPOPULATED_GFN + 17), 0, PAGE_SIZE));
}

TEST(grant_frame_beyond_the_limit)
{
    CHECK_ERR(add_to_physmap(XENMAPSPACE_grant_table, 1 << 20, UNPOPULATED_GFN + 32), XEN_EINVAL);
}

TEST(grant_status_frame_of_version_1)
{
    CHECK_ERR(add_to_physmap(XENMAPSPACE_grant_table, XENMAPIDX_grant_table_status, UNPOPULATED_GFN + 32), XEN_EINVAL);
}

TEST(gmfn_of_an_empty_gfn)
{
    CHECK_ERR(add_to_physmap(XENMAPSPACE_gmfn, UNPOPULATED_GFN + 64, gfn_of(other)), XEN_EINVAL);
}

TEST(gmfn_onto_itself_changes_nothing)
{
    memset(other, 0x77, PAGE_SIZE);
    CHECK_OK(add_to_physmap(XENMAPSPACE_gmfn, gfn_of(other), gfn_of(other)));
    CHECK(all_bytes(other, 0x77, PAGE_SIZE));
}

TEST(unknown_map_space)
{
    CHECK_ERR(add_to_physmap(XENMAPSPACE_dev_mmio + 1, 0, gfn_of(other)), XEN_ENOSYS);
}

TEST(foreign_domain)
{
    struct xen_add_to_physmap op = {.domid = 0x7000, .space = XENMAPSPACE_shared_info, .gpfn = gfn_of(page)};
    CHECK_ERR(memory_op(XENMEM_add_to_physmap, &op), XEN_ESRCH);
}

TEST(batch)
{
    xen_ulong_t idxs[] = {0, 1 << 20, 1};
    xen_pfn_t gfns[] = {UNPOPULATED_GFN + 40, UNPOPULATED_GFN + 41, UNPOPULATED_GFN + 42};
    int errs[] = {99, 99, 99};
    struct xen_add_to_physmap_batch op = {.domid = DOMID_SELF, .space = XENMAPSPACE_grant_table, .size = 3};
    set_xen_guest_handle(op.idxs, idxs);
    set_xen_guest_handle(op.gpfns, gfns);
    set_xen_guest_handle(op.errs, errs);
    CHECK_OK(memory_op(XENMEM_add_to_physmap_batch, &op));
    CHECK_EQ(errs[0], 0);
    CHECK_EQ(errs[1], -XEN_EINVAL);
    CHECK_EQ(errs[2], 0);
    CHECK_EQ(((grant_entry_v1_t *)at_gfn(UNPOPULATED_GFN + 40))[GNTTAB_RESERVED_XENSTORE].flags, GTF_permit_access);
}

TEST(remove)
{
    struct xen_remove_from_physmap op = {.domid = DOMID_SELF, .gpfn = UNPOPULATED_GFN + 42};
    CHECK_OK(memory_op(XENMEM_remove_from_physmap, &op));
    CHECK_ERR(memory_op(XENMEM_remove_from_physmap, &op), XEN_ENOENT);
    /* What lies there now is nothing: the hypervisor cannot read an argument from it. */
    CHECK_ERR(memory_op(XENMEM_remove_from_physmap, (UNPOPULATED_GFN + 42) * PAGE_SIZE), XEN_EFAULT);
}

TEST(memory_map)
{
    static struct e820_entry map[32];
    struct xen_memory_map op = {.nr_entries = ARRAY_SIZE(map)};
    unsigned long pages = 0;
    set_xen_guest_handle(op.buffer, (void *)map);
    CHECK_OK(memory_op(XENMEM_memory_map, &op));
    CHECK(op.nr_entries > 0 && op.nr_entries < ARRAY_SIZE(map));
    for (unsigned i = 0; i < op.nr_entries; i++) {
        CHECK(map[i].size > 0);
        CHECK(i == 0 || map[i].base >= map[i - 1].base + map[i - 1].size);
        if (map[i].type == E820_RAM)
            pages += map[i].size / PAGE_SIZE;
    }
    CHECK(pages <= MEMORY_PAGES && pages > MEMORY_PAGES - 1024);
}

TEST(memory_map_into_a_small_buffer)
{
    struct e820_entry map[2] = {{.type = 0x55}, {.type = 0x55}};
    struct xen_memory_map op = {.nr_entries = 1};
    set_xen_guest_handle(op.buffer, (void *)map);
    CHECK_OK(memory_op(XENMEM_memory_map, &op));
    CHECK_EQ(op.nr_entries, 1);
    CHECK(map[0].type != 0x55);
    CHECK_EQ(map[1].type, 0x55);
}

TEST(memory_map_is_that_of_start_info)
{
    static struct e820_entry map[32];
    const struct hvm_memmap_table_entry *table = (void *)(unsigned long)start_info()->memmap_paddr;
    struct xen_memory_map op = {.nr_entries = ARRAY_SIZE(map)};
    set_xen_guest_handle(op.buffer, (void *)map);
    CHECK_OK(memory_op(XENMEM_memory_map, &op));
    CHECK_EQ(op.nr_entries, start_info()->memmap_entries);
    for (unsigned i = 0; i < op.nr_entries; i++)
        CHECK(map[i].base == table[i].addr && map[i].size == table[i].size && map[i].type == table[i].type);
}

TEST(maximum_gpfn)
{
    domid_t self = DOMID_SELF, none = 0x7000;
    long gfn = memory_op(XENMEM_maximum_gpfn, &self);
    CHECK(gfn >= (long)MEMORY_PAGES - 1);
    CHECK_OK(add_to_physmap(XENMAPSPACE_grant_table, 2, gfn + 16));
    CHECK_EQ(memory_op(XENMEM_maximum_gpfn, &self), gfn + 16);
    CHECK_ERR(memory_op(XENMEM_maximum_gpfn, &none), XEN_ESRCH);
}

TEST(privileged_commands)
{
    struct xen_foreign_memory_map dom0s = {.domid = 0};
    CHECK_ERR(memory_op(XENMEM_machine_memory_map, page), XEN_ENOSYS);
    CHECK_ERR(memory_op(XENMEM_set_memory_map, &dom0s), XEN_EPERM);
}

TEST(bad_pointer)
{
    CHECK_ERR(memory_op(XENMEM_add_to_physmap, BAD_POINTER), XEN_EFAULT);
    CHECK_ERR(memory_op(XENMEM_memory_map, BAD_POINTER), XEN_EFAULT);
    CHECK_ERR(memory_op(XENMEM_remove_from_physmap, BAD_POINTER), XEN_EFAULT);
    CHECK_ERR(memory_op(XENMEM_maximum_gpfn, BAD_POINTER), XEN_EFAULT);
}

TEST(unknown_command)
{
    CHECK_ERR(memory_op(60, page), XEN_ENOSYS);
}
