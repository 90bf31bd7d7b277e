/* What a PV kernel finds when it starts. Ref: xen/include/public/xen.h, "Start-of-day memory layout" */
#include "pv.h"

#include <xen/io/console.h>

#define CR4_OSXSAVE (1u << 27)
#define FEATURE(number) (1u << (number))

TEST(registers)
{
    /* Reading CS and SS shows the host's own selectors where KVM runs guests in its user mode; frames show ours: see traps.c. */
    CHECK_EQ(start_state.cs & RPL, RPL);
    CHECK_EQ(start_state.ss & RPL, RPL);
    CHECK_EQ(start_state.ds & ~RPL, 0);
    CHECK_EQ(start_state.es & ~RPL, 0);
    CHECK_EQ(start_state.fs & ~RPL, 0);
    CHECK_EQ(start_state.gs & ~RPL, 0);
    CHECK(start_state.flags & FLAGS_IF);
    CHECK_EQ(start_state.flags & (FLAGS_DF | FLAGS_TF), 0);
    CHECK_EQ(start_state.rsp % PAGE_SIZE, 0);
    CHECK(start_state.rsp > xen_start->pt_base);
}

TEST(start_info)
{
    CHECK(starts_with(xen_start->magic, "xen-3.0-x86_64"));
    CHECK(xen_start->nr_pages > 0);
    CHECK_EQ(xen_start->shared_info % PAGE_SIZE, 0);
    CHECK_EQ(xen_start->flags & (SIF_PRIVILEGED | SIF_INITDOMAIN), 0);
    CHECK_EQ(xen_start->mod_len, 0);
    CHECK(streq(command_line(), "first second=2"));
    CHECK(xen_start->store_evtchn != 0);
    CHECK(xen_start->console.domU.evtchn != 0);
#ifdef HYPERCALL_PAGE
    CHECK_EQ(xen_start->mfn_list, P2M_BASE);
    CHECK(xen_start->first_p2m_pfn != 0);
    CHECK(xen_start->nr_p2m_frames != 0);
#else
    CHECK_EQ(xen_start->first_p2m_pfn, 0);
#endif
}

TEST(p2m_and_m2p_agree)
{
    const unsigned long *p2m = (const void *)xen_start->mfn_list;
    for (unsigned long pfn = 0; pfn < xen_start->nr_pages; pfn++) {
        CHECK(p2m[pfn] < nr_m2p);
        CHECK_EQ(m2p[p2m[pfn]], pfn);
    }
}

TEST(m2p_cannot_be_written)
{
    CHECK_EQ(write_trap((void *)m2p, 1), 14);
    CHECK_EQ(write_trap((void *)&m2p[mfn_of(&caught)], 1), 14);
    CHECK_EQ(m2p[mfn_of(&caught)], pfn_of(&caught));
}

TEST(initial_mapping_is_what_it_should_be)
{
    unsigned long tables = xen_start->pt_base, end = tables + xen_start->nr_pt_frames * PAGE_SIZE;
    for (unsigned long va = VIRT_BASE; va != VIRT_BASE + 0x400000; va += PAGE_SIZE) {
        uint64_t *entry = entry_of((void *)va, 1);
        CHECK(entry);
        CHECK_EQ(*entry & PTE_P, PTE_P);
        if ((void *)va == (void *)shared_info)
            continue;
        CHECK_EQ((*entry & PTE_MFN) / PAGE_SIZE, mfn_of((void *)va));
        CHECK_EQ(*entry & PTE_RW, va >= tables && va < end ? 0 : PTE_RW);
    }
}

TEST(tables_are_in_order)
{
    uint64_t *l4 = (void *)xen_start->pt_base;
    uint64_t *l3_entry = &l4[VIRT_BASE >> 39 & 511];
    CHECK_EQ((*l3_entry & PTE_MFN) / PAGE_SIZE, mfn_of(l4 + 512));
    CHECK_EQ(write_trap(l3_entry, 0), 14);
}

TEST(shared_info_is_ours)
{
    CHECK_EQ(vcpu_info(0)->evtchn_upcall_mask, 1);
    CHECK(shared_info->wc_sec > 1000000000);
    CHECK(vcpu_info(0)->time.tsc_to_system_mul != 0);
    CHECK_EQ(vcpu_info(0)->time.version & 1, 0);
    uint64_t before = system_time();
    while (system_time() < before + MS)
        ;
    CHECK(system_time() < before + 60000 * MS);
}

TEST(features)
{
    struct xen_feature_info info = {.submap_idx = 0};
    CHECK_OK(xen_version(XENVER_get_features, &info));
    CHECK(info.submap & FEATURE(XENFEAT_mmu_pt_update_preserve_ad));
    CHECK(info.submap & FEATURE(XENFEAT_gnttab_map_avail_bits));
    CHECK_EQ(info.submap & FEATURE(XENFEAT_auto_translated_physmap), 0);
    CHECK_EQ(info.submap & FEATURE(XENFEAT_writable_page_tables), 0);
}

TEST(version)
{
    CHECK(xen_version(XENVER_version, 0) >= 4 << 16);
    struct xen_platform_parameters where;
    CHECK_OK(xen_version(XENVER_platform_parameters, &where));
    CHECK(where.virt_start >= 0xffff800000000000);
}

TEST(cpuid_by_prefix)
{
    struct regs regs = {.a = 0x40000000};
    CHECK_EQ(TRAP_WITH("ud2a; .ascii \"xen\"; cpuid; mov %%rbx, %%rdi", regs), NO_TRAP);
    CHECK(regs.a >= 0x40000002 && regs.a < 0x40000100);
    CHECK_EQ(regs.di, 0x566e6558);
    CHECK_EQ(regs.c, 0x65584d4d);
    CHECK_EQ(regs.d, 0x4d4d566e);
}

TEST(cpuid_hides_what_a_pv_guest_cannot_have)
{
    struct regs regs = {.a = 1};
    CHECK_EQ(TRAP_WITH("ud2a; .ascii \"xen\"; cpuid", regs), NO_TRAP);
    CHECK_EQ(regs.c & 1u << 5, 0);  /* VMX */
    CHECK_EQ(regs.c & 1u << 17, 0); /* PCID */
    CHECK_EQ(regs.c & 1u << 21, 0); /* x2APIC */
    CHECK_EQ(regs.d & 1u << 3, 0);  /* PSE */
    CHECK_EQ(regs.d & 1u << 13, 0); /* PGE */
    CHECK(regs.c & 1u << 31);       /* hypervisor */
    regs = (struct regs){.a = 7};
    CHECK_EQ(TRAP_WITH("ud2a; .ascii \"xen\"; cpuid; mov %%rbx, %%rdi", regs), NO_TRAP);
    CHECK_EQ(regs.di & (1u << 7 | 1u << 20 | 1u << 10), 0); /* SMEP, SMAP, INVPCID */
}

TEST(memory_map)
{
    struct e820 {
        uint64_t start, size;
        uint32_t type;
    } __attribute__((packed)) entries[8];
    struct xen_memory_map map = {.nr_entries = ARRAY_SIZE(entries)};
    set_xen_guest_handle(map.buffer, (void *)entries);
    CHECK_OK(memory_op(XENMEM_memory_map, &map));
    CHECK(map.nr_entries >= 1);
    CHECK_EQ(entries[0].start, 0);
    CHECK(entries[0].size >= xen_start->nr_pages * PAGE_SIZE);
    CHECK_EQ(entries[0].type, 1);
}

TEST(console_ring)
{
    struct xencons_interface *ring = (void *)(VIRT_BASE + m2p[xen_start->console.domU.mfn] * PAGE_SIZE);
    struct evtchn_send send = {.port = xen_start->console.domU.evtchn};
    static const char text[] = "by the ring\n";
    for (const char *c = text; *c; c++)
        ring->out[MASK_XENCONS_IDX(ring->out_prod++, ring->out)] = *c;
    CHECK_OK(event_channel_op(EVTCHNOP_send, &send));
    for (uint64_t end = system_time() + 2000 * MS; ring->out_cons != ring->out_prod && system_time() < end;)
        sched_op(SCHEDOP_yield, 0);
    CHECK_EQ(ring->out_cons, ring->out_prod);
}
