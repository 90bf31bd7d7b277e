/*
 * The word size of shared_info is that of the code that asked for the hypercall page, before anything else tells it.
 */
#include "guest.h"

static uint8_t page[PAGE_SIZE] PAGE_ALIGNED;

TEST(layout_follows_the_hypercall_page)
{
    REQUIRE(add_to_physmap(XENMAPSPACE_shared_info, 0, gfn_of(page)) == 0);
    CHECK(((volatile shared_info_t *)page)->wc_sec != 0);
}
