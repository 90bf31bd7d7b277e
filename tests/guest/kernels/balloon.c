/*
 * memory_op, reservations: pages that a guest gives back are gone from it and from its account, those it gets again are
 * there and zeroed, and the number of extents done is what the call returns.
 */
#include "guest.h"

#define PAGES 16
#define ORDER 2

static uint8_t pages[PAGES][PAGE_SIZE] __attribute__((aligned(PAGE_SIZE << ORDER)));

static long reservation(unsigned cmd, xen_pfn_t *extents, unsigned count, unsigned order)
{
    struct xen_memory_reservation op = {.nr_extents = count, .extent_order = order, .domid = DOMID_SELF};
    set_xen_guest_handle(op.extent_start, extents);
    return memory_op(cmd, &op);
}

static long current(void)
{
    domid_t self = DOMID_SELF;
    return memory_op(XENMEM_current_reservation, &self);
}

TEST(current_reservation)
{
    CHECK(current() > 31 << 8 && current() <= 33 << 8);
}

TEST(maximum_reservation)
{
    domid_t self = DOMID_SELF, none = 0x7000;
    CHECK(memory_op(XENMEM_maximum_reservation, &self) >= current());
    CHECK_ERR(memory_op(XENMEM_maximum_reservation, &none), XEN_ESRCH);
    CHECK_ERR(memory_op(XENMEM_current_reservation, &none), XEN_ESRCH);
}

TEST(decrease_and_populate)
{
    xen_pfn_t gfns[PAGES];
    long before = current();
    for (unsigned i = 0; i < PAGES; i++)
        gfns[i] = gfn_of(pages[i]);
    memset(pages, 0x99, sizeof pages);
    CHECK_EQ(reservation(XENMEM_decrease_reservation, gfns, PAGES, 0), PAGES);
    CHECK_EQ(current(), before - PAGES);
    CHECK_EQ(reservation(XENMEM_populate_physmap, gfns, PAGES, 0), PAGES);
    CHECK_EQ(current(), before);
    CHECK(all_bytes(pages, 0, sizeof pages));
    memset(pages, 0x66, sizeof pages);
    CHECK(all_bytes(pages, 0x66, sizeof pages));
}

TEST(what_was_given_back_is_gone)
{
    xen_pfn_t gfn = gfn_of(pages[3]);
    struct xen_hvm_get_mem_type type = {.domid = DOMID_SELF, .pfn = gfn};
    CHECK_EQ(reservation(XENMEM_decrease_reservation, &gfn, 1, 0), 1);
    CHECK_OK(hvm_op(HVMOP_get_mem_type, &type));
    CHECK(type.mem_type != HVMMEM_ram_rw);
    CHECK_EQ(reservation(XENMEM_decrease_reservation, &gfn, 1, 0), 0);
    CHECK_EQ(reservation(XENMEM_populate_physmap, &gfn, 1, 0), 1);
    CHECK_OK(hvm_op(HVMOP_get_mem_type, &type));
    CHECK_EQ(type.mem_type, HVMMEM_ram_rw);
}

TEST(larger_extents)
{
    xen_pfn_t gfns[] = {gfn_of(pages[0]), gfn_of(pages[1 << ORDER])};
    long before = current();
    CHECK_EQ(reservation(XENMEM_decrease_reservation, gfns, 2, ORDER), 2);
    CHECK_EQ(current(), before - (2 << ORDER));
    CHECK_EQ(reservation(XENMEM_populate_physmap, gfns, 2, ORDER), 2);
    CHECK_EQ(current(), before);
}

TEST(extents_done_are_counted)
{
    xen_pfn_t gfns[] = {gfn_of(pages[0]), gfn_of(pages[1]), UNPOPULATED_GFN, gfn_of(pages[2])};
    long before = current();
    CHECK_EQ(reservation(XENMEM_decrease_reservation, gfns, ARRAY_SIZE(gfns), 0), 2);
    CHECK_EQ(current(), before - 2);
    CHECK_EQ(reservation(XENMEM_populate_physmap, gfns, 2, 0), 2);
}

TEST(bad_extent_list)
{
    CHECK_EQ(reservation(XENMEM_decrease_reservation, BAD_POINTER, 4, 0), 0);
    CHECK_EQ(reservation(XENMEM_populate_physmap, BAD_POINTER, 4, 0), 0);
    CHECK_EQ(memory_op(XENMEM_decrease_reservation, BAD_POINTER), 0); /* Xen, too, tells only how many were done */
    CHECK_EQ(memory_op(XENMEM_populate_physmap, BAD_POINTER), 0);
}

TEST(extent_order_beyond_the_limit)
{
    xen_pfn_t gfn = 0;
    CHECK_EQ(reservation(XENMEM_populate_physmap, &gfn, 1, 30), 0);
    CHECK_EQ(reservation(XENMEM_decrease_reservation, &gfn, 1, 30), 0);
}

TEST(no_more_than_the_maximum)
{
    static xen_pfn_t gfns[2048];
    domid_t self = DOMID_SELF;
    long maximum = memory_op(XENMEM_maximum_reservation, &self);
    for (unsigned i = 0; i < ARRAY_SIZE(gfns); i++)
        gfns[i] = UNPOPULATED_GFN + 0x100 + i;
    CHECK(reservation(XENMEM_populate_physmap, gfns, ARRAY_SIZE(gfns), 0) < (long)ARRAY_SIZE(gfns));
    CHECK(current() <= maximum);
}
