/* Multicalls, and memory that a PV guest gives back, takes and exchanges. Ref: xen/include/public/xen.h, memory.h */
#include "pv.h"

#define NR 8
#define MANY 300

static uint64_t pages[NR][512] PAGE_ALIGNED, batch_page[512] PAGE_ALIGNED;
static unsigned long *p2m;

static long reservation(unsigned cmd, unsigned long *frames, unsigned long count)
{
    struct xen_memory_reservation op = {.nr_extents = count, .domid = DOMID_SELF};
    set_xen_guest_handle(op.extent_start, frames);
    return memory_op(cmd, &op);
}

static long current_pages(void)
{
    domid_t self = DOMID_SELF;
    return memory_op(XENMEM_current_reservation, &self);
}

TEST(multicall)
{
    struct multicall_entry calls[] = {
        {.op = __HYPERVISOR_xen_version, .args = {XENVER_version}},
        {.op = __HYPERVISOR_update_va_mapping, .args = {(unsigned long)batch_page, pte(batch_page, PTE_RO_PAGE), UVMF_INVLPG}},
        {.op = __HYPERVISOR_mmuext_op, .args = {BAD_ADDRESS, 1, 0, DOMID_SELF}},
        {.op = 99},
        {.op = __HYPERVISOR_stack_switch, .args = {SS, (unsigned long)trap_stack_top}},
    };
    CHECK_OK(multicall(calls, ARRAY_SIZE(calls)));
    CHECK(calls[0].result >= 4 << 16);
    CHECK_EQ(calls[1].result, 0);
    CHECK_EQ(calls[2].result, -(long)XEN_EFAULT);
    CHECK_EQ(calls[3].result, -(long)XEN_ENOSYS);
    CHECK_EQ(calls[4].result, 0);
    CHECK_EQ(write_trap(batch_page, 1), 14);
    REQUIRE(protect(batch_page, PTE_RW_PAGE) == 0);
}

TEST(a_long_multicall)
{
    static struct multicall_entry calls[MANY];
    for (unsigned i = 0; i < MANY; i++)
        calls[i] = (struct multicall_entry){
            .op = __HYPERVISOR_update_va_mapping,
            .args = {(unsigned long)batch_page, pte(batch_page, i & 1 ? PTE_RW_PAGE : PTE_RO_PAGE), UVMF_INVLPG}, .result = 7};
    CHECK_OK(multicall(calls, MANY));
    for (unsigned i = 0; i < MANY; i++)
        CHECK_EQ(calls[i].result, 0);
    CHECK_EQ(write_trap(batch_page, 1), NO_TRAP);
}

TEST(a_multicall_that_cannot_be_read)
{
    CHECK_ERR(multicall(BAD_PTR, 1), XEN_EFAULT);
}

TEST(a_multicall_in_a_multicall)
{
    struct multicall_entry inner = {.op = __HYPERVISOR_xen_version};
    struct multicall_entry outer = {.op = __HYPERVISOR_multicall, .args = {(unsigned long)&inner, 1}};
    CHECK_OK(multicall(&outer, 1));
    CHECK_EQ(outer.result, -(long)XEN_EINVAL);
}

TEST(give_back_and_take)
{
    p2m = (unsigned long *)xen_start->mfn_list;
    long before = current_pages();
    static unsigned long frames[NR];
    for (unsigned i = 0; i < NR; i++) {
        frames[i] = mfn_of(pages[i]);
        CHECK_OK(update_va(pages[i], 0, UVMF_INVLPG));
    }
    CHECK_EQ(reservation(XENMEM_decrease_reservation, frames, NR), NR);
    CHECK_EQ(current_pages(), before - NR);
    /* They are not ours now. */
    CHECK(update_va(pages[0], frames[0] * PAGE_SIZE | PTE_RW_PAGE, UVMF_INVLPG) < 0);
    for (unsigned i = 0; i < NR; i++)
        frames[i] = pfn_of(pages[i]);
    CHECK_EQ(reservation(XENMEM_populate_physmap, frames, NR), NR);
    CHECK_EQ(current_pages(), before);
    for (unsigned i = 0; i < NR; i++) {
        p2m[pfn_of(pages[i])] = frames[i];
        CHECK_EQ(m2p[frames[i]], pfn_of(pages[i]));
        CHECK_OK(update_va(pages[i], pte(pages[i], PTE_RW_PAGE), UVMF_INVLPG));
        CHECK_EQ(write_trap(pages[i], i), NO_TRAP);
    }
    for (unsigned i = 0; i < NR; i++)
        CHECK_EQ(pages[i][0], i);
}

TEST(nothing_is_given_back_of_what_is_not_ours)
{
    static unsigned long frames[1];
    long before = current_pages();
    frames[0] = NO_MFN;
    CHECK_EQ(reservation(XENMEM_decrease_reservation, frames, 1), 0);
    CHECK_EQ(reservation(XENMEM_decrease_reservation, BAD_PTR, 1), 0);
    CHECK_EQ(current_pages(), before);
}

TEST(no_more_than_the_maximum)
{
    static unsigned long frames[NR];
    for (unsigned i = 0; i < NR; i++)
        frames[i] = xen_start->nr_pages + i;
    CHECK_EQ(reservation(XENMEM_populate_physmap, frames, NR), 0);
}

TEST(exchange)
{
    static unsigned long in[NR], out[NR];
    struct xen_memory_exchange op = {
        .in = {.nr_extents = NR, .domid = DOMID_SELF}, .out = {.nr_extents = NR, .domid = DOMID_SELF}};
    for (unsigned i = 0; i < NR; i++) {
        in[i] = mfn_of(pages[i]);
        out[i] = pfn_of(pages[i]);
        CHECK_OK(update_va(pages[i], 0, UVMF_INVLPG));
    }
    set_xen_guest_handle(op.in.extent_start, in);
    set_xen_guest_handle(op.out.extent_start, out);
    long before = current_pages();
    CHECK_OK(memory_op(XENMEM_exchange, &op));
    CHECK_EQ(op.nr_exchanged, NR);
    CHECK_EQ(current_pages(), before);
    for (unsigned i = 0; i < NR; i++) {
        p2m[pfn_of(pages[i])] = out[i];
        CHECK_EQ(m2p[out[i]], pfn_of(pages[i]));
        CHECK_OK(update_va(pages[i], pte(pages[i], PTE_RW_PAGE), UVMF_INVLPG));
        CHECK_EQ(write_trap(pages[i], 1), NO_TRAP);
    }
}

TEST(exchange_of_what_is_in_use_changes_nothing)
{
    static unsigned long in[1], out[1];
    struct xen_memory_exchange op = {
        .in = {.nr_extents = 1, .domid = DOMID_SELF}, .out = {.nr_extents = 1, .domid = DOMID_SELF}};
    in[0] = NO_MFN;
    out[0] = pfn_of(pages[0]);
    set_xen_guest_handle(op.in.extent_start, in);
    set_xen_guest_handle(op.out.extent_start, out);
    CHECK_ERR(memory_op(XENMEM_exchange, &op), XEN_EINVAL);
    CHECK_EQ(op.nr_exchanged, 0);
    op.out.nr_extents = 2;
    CHECK_ERR(memory_op(XENMEM_exchange, &op), XEN_EINVAL);
    CHECK_EQ(write_trap(pages[0], 3), NO_TRAP);
}

TEST(m2p_of_the_machine)
{
    struct xen_machphys_mfn_list list = {.max_extents = NR};
    static unsigned long frames[NR];
    set_xen_guest_handle(list.extent_start, frames);
    long rc = memory_op(XENMEM_machphys_mfn_list, &list);
    CHECK(rc == 0 || rc == -XEN_EPERM || rc == -XEN_ENOSYS);
    CHECK(memory_op(XENMEM_maximum_ram_page, 0) > 0);
}
