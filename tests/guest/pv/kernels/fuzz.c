/*
 * Random hypercalls, most of them nearly right. The command line gives a seed and a count ("12 1000"); one test follows, after the calls.
 * What ends a guest or keeps it waiting is left out, so that every one of the calls is made; and what the kernel lives on is named in
 * one of NAMES_ITSELF calls only.
 */
#include "pv.h"

#define VICTIMS 16
#define BATCH 8
#define REPORT_EVERY 5000
#define ONE_IN(n) (random() % (n) == 0)
#define WINDOW (PLAYGROUND + 0x400000)
#define WINDOW_PAGES 16
#define UNUSED 0x200000 /* in front of the kernel */

/* Behind these nothing is mapped, so that no list that starts in them goes on into the kernel. */
static uint64_t victims[VICTIMS + 1][512] PAGE_ALIGNED, arguments[2][512] PAGE_ALIGNED;
static uint64_t state;

static uint64_t random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1d >> 8;
}

/* A frame that may be written: none that the kernel lives on. */
static unsigned long pick_target(void)
{
    if (ONE_IN(32))
        return random();
    if (ONE_IN(32))
        return mfn_of((void *)VIRT_BASE) + xen_start->nr_pages / 2 + random() % xen_start->nr_pages;
    return mfn_of(victims[random() % VICTIMS]);
}

static unsigned long pick_mfn(void)
{
    if (ONE_IN(64))
        return mfn_of((uint8_t *)xen_start->pt_base + random() % xen_start->nr_pt_frames * PAGE_SIZE);
    if (ONE_IN(64))
        return xen_start->shared_info / PAGE_SIZE;
    return pick_target();
}

static uint64_t pick_flags(void)
{
    uint64_t flags = PTE_P | PTE_US;
    if (ONE_IN(2))
        flags |= PTE_RW | PTE_D;
    if (ONE_IN(2))
        flags |= PTE_A;
    if (ONE_IN(16))
        flags ^= 1ul << random() % 12;
    if (ONE_IN(16))
        flags |= 1ul << (52 + random() % 12);
    return flags;
}

static uint64_t pick_entry(void)
{
    if (ONE_IN(16))
        return random() << 16 ^ random();
    if (ONE_IN(8))
        return 0;
    return pick_mfn() * PAGE_SIZE | pick_flags();
}

static unsigned long pick_va(void)
{
    if (ONE_IN(16))
        return random() << 16;
    if (ONE_IN(16))
        return (unsigned long)m2p + random() % (1ul << 39);
    if (ONE_IN(2))
        return (unsigned long)victims[random() % VICTIMS];
    return WINDOW + random() % WINDOW_PAGES * PAGE_SIZE;
}

static unsigned long pick_pointer(void)
{
    return ONE_IN(16) ? pick_va() : (unsigned long)(arguments[0] + random() % 64);
}

static unsigned long pick_number(void)
{
    static const unsigned long numbers[] = {0, 1, 2, 3, 7, 16, 512, 8192, 1ul << 31, 1ul << 32, ~0ul, DOMID_SELF, DOMID_IO, 0x7fff0};
    return numbers[random() % ARRAY_SIZE(numbers)];
}

static unsigned long pick_any(void)
{
    switch (random() % 6) {
    case 0:
        return pick_pointer();
    case 1:
        return pick_va();
    case 2:
        return pick_mfn();
    case 3:
        return pick_entry();
    case 4:
        return random() % 32;
    default:
        return pick_number();
    }
}

static void fill_arguments(void)
{
    for (unsigned i = 0; i < 64 + 16; i++)
        arguments[0][i] = pick_any();
}

static unsigned long pick_domain(void)
{
    return ONE_IN(16) ? pick_number() : DOMID_SELF;
}

static void fuzz_mmu_update(void)
{
    struct mmu_update batch[BATCH];
    for (unsigned i = 0; i < BATCH; i++) {
        batch[i].ptr = pick_target() * PAGE_SIZE + random() % 512 * 8;
        if (ONE_IN(4))
            batch[i].ptr |= random() % 8;
        batch[i].val = pick_entry();
        if ((batch[i].ptr & 3) == MMU_MACHPHYS_UPDATE) /* the kernel itself looks frames up */
            batch[i].val = m2p[batch[i].ptr / PAGE_SIZE % nr_m2p];
    }
    hypercall(__HYPERVISOR_mmu_update, (unsigned long)batch, 1 + random() % BATCH, ONE_IN(2) ? 0 : pick_pointer(), pick_domain(), 0);
}

static void fuzz_mmuext(void)
{
    struct mmuext_op batch[BATCH];
    for (unsigned i = 0; i < BATCH; i++) {
        do
            batch[i].cmd = ONE_IN(16) ? random() : random() % 22;
        while (batch[i].cmd == MMUEXT_NEW_BASEPTR); /* the kernel would be gone */
        bool writes = batch[i].cmd == MMUEXT_CLEAR_PAGE || batch[i].cmd == MMUEXT_COPY_PAGE;
        batch[i].arg1.mfn = writes ? pick_target() : ONE_IN(4) ? pick_any() : pick_mfn();
        batch[i].arg2.src_mfn = ONE_IN(4) ? pick_any() : pick_mfn();
    }
    hypercall(__HYPERVISOR_mmuext_op, (unsigned long)batch, 1 + random() % BATCH, ONE_IN(2) ? 0 : pick_pointer(), pick_domain(), 0);
}

static void fuzz_memory(void)
{
    struct xen_memory_reservation op = {
        .nr_extents = random() % 4, .extent_order = ONE_IN(8) ? random() % 64 : 0, .domid = pick_domain()};
    static const unsigned commands[] = {XENMEM_decrease_reservation, XENMEM_populate_physmap, XENMEM_increase_reservation};
    for (unsigned i = 0; i < 4; i++)
        arguments[0][i] = ONE_IN(2) ? pick_mfn() : pfn_of(victims[random() % VICTIMS]);
    set_xen_guest_handle(op.extent_start, arguments[0]);
    memory_op(commands[random() % ARRAY_SIZE(commands)], &op);
}

static void fuzz_exchange(void)
{
    struct xen_memory_exchange op = {
        .in = {.nr_extents = random() % 4, .domid = pick_domain()}, .out = {.nr_extents = random() % 4, .domid = pick_domain()}};
    for (unsigned i = 0; i < 16; i++)
        arguments[0][i] = ONE_IN(2) ? pick_mfn() : pfn_of(victims[random() % VICTIMS]);
    set_xen_guest_handle(op.in.extent_start, arguments[0]);
    set_xen_guest_handle(op.out.extent_start, arguments[0] + 8);
    memory_op(XENMEM_exchange, &op);
}

/* Hypercalls that may be made with anything at all. */
static void fuzz_any(void)
{
    static const unsigned numbers[] = {
        __HYPERVISOR_set_gdt, __HYPERVISOR_stack_switch, __HYPERVISOR_fpu_taskswitch, __HYPERVISOR_set_debugreg,
        __HYPERVISOR_get_debugreg, __HYPERVISOR_update_descriptor, __HYPERVISOR_memory_op, __HYPERVISOR_update_va_mapping,
        __HYPERVISOR_set_timer_op, __HYPERVISOR_xen_version, __HYPERVISOR_grant_table_op, __HYPERVISOR_vm_assist,
        __HYPERVISOR_update_va_mapping_otherdomain, __HYPERVISOR_vcpu_op, __HYPERVISOR_set_segment_base,
        __HYPERVISOR_mmuext_op, __HYPERVISOR_event_channel_op, __HYPERVISOR_physdev_op, __HYPERVISOR_hvm_op,
        __HYPERVISOR_platform_op, __HYPERVISOR_xsm_op, __HYPERVISOR_sysctl, __HYPERVISOR_domctl, __HYPERVISOR_kexec_op,
        __HYPERVISOR_argo_op, __HYPERVISOR_dm_op, 48, 11, 49, 64, 100,
    };
    unsigned number = numbers[random() % ARRAY_SIZE(numbers)];
    fill_arguments();
    unsigned long first = ONE_IN(2) ? random() % 32 : pick_any();
    if (number == __HYPERVISOR_mmuext_op) /* a base pointer in a random structure: as above */
        first = BAD_ADDRESS;
    if (number == __HYPERVISOR_vm_assist && (first > 1 || ONE_IN(2)))
        first = VMASST_CMD_disable;
    if (number == __HYPERVISOR_update_va_mapping || number == __HYPERVISOR_update_va_mapping_otherdomain)
        first = pick_va();
    if (number == __HYPERVISOR_vcpu_op && (first == VCPUOP_down || first == VCPUOP_register_vcpu_info || first == VCPUOP_send_nmi))
        first = VCPUOP_is_up;
    if (number == __HYPERVISOR_update_descriptor)
        first = pick_target() * PAGE_SIZE + random() % PAGE_SIZE;
    if (number == __HYPERVISOR_set_debugreg)
        first = 8 + random() % 8 * ONE_IN(2);
    hypercall(number, first, pick_any(), pick_any(), pick_domain(), pick_any());
}

static void fuzz_multicall(void)
{
    struct multicall_entry calls[BATCH];
    for (unsigned i = 0; i < BATCH; i++) {
        calls[i].op = ONE_IN(4) ? __HYPERVISOR_multicall : ONE_IN(2) ? __HYPERVISOR_update_va_mapping : __HYPERVISOR_update_descriptor;
        calls[i].args[0] = calls[i].op == __HYPERVISOR_update_descriptor ? pick_target() * PAGE_SIZE + random() % 4096 : pick_va();
        calls[i].args[1] = pick_entry();
        calls[i].args[2] = random() % 8;
    }
    multicall(calls, random() % BATCH);
}

/* Stores, too, are checked where they meet tables. */
static void fuzz_store(void)
{
    struct regs regs = {.a = pick_entry(), .c = pick_entry(), .d = (unsigned long)&victims[random() % VICTIMS][random() % 512]};
    switch (random() % 4) {
    case 0:
        TRAP_WITH("mov %%rax, (%%rdx)", regs);
        break;
    case 1:
        TRAP_WITH("xchg %%rax, (%%rdx)", regs);
        break;
    case 2:
        TRAP_WITH("lock cmpxchg %%rcx, (%%rdx)", regs);
        break;
    default:
        TRAP_WITH("lock orb $0x67, (%%rdx)", regs);
        break;
    }
}

static unsigned long number_of(const char **text)
{
    unsigned long value = 0;
    for (; **text >= '0' && **text <= '9'; (*text)++)
        value = value * 10 + (unsigned long)(**text - '0');
    while (**text == ' ')
        (*text)++;
    return value;
}

/* Has a page whose frame the guest has given back or exchanged backed again. */
static void back(uint64_t *page)
{
    unsigned long frame = pfn_of(page);
    struct xen_memory_reservation op = {.nr_extents = 1, .domid = DOMID_SELF};
    set_xen_guest_handle(op.extent_start, &frame);
    if (memory_op(XENMEM_populate_physmap, &op) == 1)
        ((unsigned long *)xen_start->mfn_list)[pfn_of(page)] = frame;
}

static void restore(void)
{
    for (unsigned i = 0; i < VICTIMS; i++) {
        UNPIN(victims[i]);
        if (m2p[mfn_of(victims[i])] != pfn_of(victims[i]))
            back(victims[i]);
        if (ONE_IN(2))
            protect(victims[i], ONE_IN(2) ? PTE_RW_PAGE : PTE_RO_PAGE);
    }
}

static void hold_events_back(struct trap_frame *frame)
{
    frame->cs |= 1ul << 32;
    frame->flags &= ~FLAGS_IF; /* IRET masks them */
}

TEST(survives)
{
    on_trap(ENTRY_EVENT, hold_events_back);
    static void (*const ways[])(void) = {
        fuzz_mmu_update, fuzz_mmu_update, fuzz_mmu_update, fuzz_mmuext,     fuzz_mmuext, fuzz_mmuext,
        fuzz_any,        fuzz_any,        fuzz_any,        fuzz_multicall, fuzz_store,  fuzz_memory, fuzz_exchange,
    };
    const char *text = command_line();
    state = number_of(&text) * 0x9e3779b97f4a7c15 + 1;
    unsigned long count = number_of(&text);
    REQUIRE(count > 0);
    REQUIRE(update_va(victims[VICTIMS], 0, UVMF_INVLPG) == 0);
    REQUIRE(update_va(arguments[1], 0, UVMF_INVLPG) == 0);
    for (unsigned long offset = 0; offset < UNUSED; offset += PAGE_SIZE) /* numbers are no pointers */
        REQUIRE(update_va((void *)(VIRT_BASE + offset), 0, UVMF_INVLPG) == 0);
    for (unsigned i = 0; i < WINDOW_PAGES; i++)
        REQUIRE(map_at(WINDOW + i * PAGE_SIZE, pte(victims[i % VICTIMS], PTE_RO_PAGE)));
    for (unsigned long i = 1; i <= count; i++) {
        ways[random() % ARRAY_SIZE(ways)]();
        if (i % 64 == 0)
            restore();
        if (i % REPORT_EVERY == 0)
            say("calls %d", (long)i);
    }
}
