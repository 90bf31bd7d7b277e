/*
 * A second vCPU of a PV guest: started with a context, brought down and up, asked by events, and made to forget what it knows of page
 * tables. Needs 2 vCPUs. Ref: xen/include/public/arch-x86/xen.h, struct vcpu_guest_context
 */
#include "pv.h"

#define SECOND (1000 * MS)
#define WINDOW (PLAYGROUND + 0x300000)
#define ROUNDS 60
#define DATA_32 0x00cff3000000fffful /* flat, of ring 3 */
#define OF_LDT (1 << 3 | 4 | RPL)
#define MARK 0x123456789

static uint8_t stack[16384] __attribute__((aligned(16)));
static uint64_t gdt[512] PAGE_ALIGNED, a_page[512] PAGE_ALIGNED, b_page[512] PAGE_ALIGNED;
static volatile unsigned runs, upcalls, faults;
static volatile unsigned long seen_fs, seen_gs, seen_cr3, seen_rdi, seen_rsp, asked, answered, sum;
static evtchn_port_t ipi;
static struct vcpu_guest_context context;
static uint64_t l4[512] PAGE_ALIGNED, ldt[512] PAGE_ALIGNED;
static volatile unsigned long base; /* which the second vCPU is to run on */
static volatile long base_result;
static volatile bool spins;
static uint64_t of_fs = 0xf5, of_gs = 0x65;

static void upcall(struct trap_frame *frame)
{
    (void)frame;
    vcpu_info(1)->evtchn_upcall_pending = 0;
    vcpu_info(1)->evtchn_pending_sel = 0;
    __sync_fetch_and_and(&shared_info->evtchn_pending[ipi / BITS], ~(1ul << ipi % BITS));
    upcalls++;
}

static void spin_behind_int3(void)
{
    answered = asked;
    __asm__ volatile("jmp 1f\n\t.byte 0xcc\n1: jmp 1b");
}

/* What the second vCPU does: notes what it finds, then reads the window whenever asked to. */
static void second(unsigned long argument)
{
    unsigned long value;
    seen_rdi = argument;
    __asm__ volatile("mov %%rsp, %0" : "=r"(value));
    seen_rsp = value;
    __asm__ volatile("mov %%fs:0, %0" : "=r"(value));
    seen_fs = value;
    __asm__ volatile("mov %%gs:0, %0" : "=r"(value));
    seen_gs = value;
    __asm__ volatile("mov %%cr3, %0" : "=r"(value));
    seen_cr3 = value;
    __asm__ volatile("mov %w0, %%es" ::"r"(OF_LDT)); /* faults without the LDT */
    runs++;
    for (;;) {
        if (asked != answered) {
            if (spins)
                spin_behind_int3();
            if (base)
                base_result = mmuext(MMUEXT_NEW_BASEPTR, base, 0);
            sum = *(volatile uint64_t *)WINDOW;
            barrier();
            answered = asked;
        }
        sum += *(volatile uint64_t *)WINDOW & 0; /* keeps the translation in use */
    }
}

static bool wait_for(volatile unsigned *counter, unsigned value)
{
    for (uint64_t end = system_time() + 5 * SECOND; *counter < value && system_time() < end;)
        sched_op(SCHEDOP_yield, 0);
    return *counter >= value;
}

static bool ask(unsigned long *result)
{
    asked++;
    for (uint64_t end = system_time() + 5 * SECOND; answered != asked && system_time() < end;)
        sched_op(SCHEDOP_yield, 0);
    *result = sum;
    return answered == asked;
}

static void fill(void)
{
    memset(&context, 0, sizeof context);
    context.flags = VGCF_in_kernel;
    context.user_regs.rip = (unsigned long)second;
    context.user_regs.rsp = (unsigned long)(stack + sizeof stack - 8);
    context.user_regs.rdi = MARK;
    context.user_regs.cs = CS64;
    context.user_regs.ss = SS;
    context.user_regs.rflags = FLAGS_IF;
    context.kernel_ss = SS;
    context.kernel_sp = (unsigned long)(stack + sizeof stack / 2);
    context.ctrlreg[3] = mfn_of((void *)xen_start->pt_base) * PAGE_SIZE;
    context.gdt_frames[0] = mfn_of(gdt);
    context.gdt_ents = 512;
    context.fs_base = (unsigned long)&of_fs;
    context.gs_base_kernel = (unsigned long)&of_gs;
    context.event_callback_eip = (unsigned long)trap_entries[ENTRY_EVENT];
    context.failsafe_callback_eip = (unsigned long)trap_entries[ENTRY_FAILSAFE];
    context.syscall_callback_eip = (unsigned long)trap_entries[ENTRY_SYSCALL];
    for (unsigned vector = 0; vector < 32; vector++)
        context.trap_ctxt[vector] = (struct trap_info){
            .vector = vector, .cs = CS64, .address = (unsigned long)trap_entries[vector]};
}

TEST(starts_offline)
{
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 0);
    CHECK_ERR(vcpu_op(VCPUOP_up, 1, 0), XEN_EINVAL);
    CHECK_ERR(vcpu_op(VCPUOP_is_up, 2, 0), XEN_ENOENT);
}

TEST(bad_contexts)
{
    fill();
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, BAD_PTR), XEN_EFAULT);
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 2, &context), XEN_ENOENT);
    context.ctrlreg[3] = NO_MFN * PAGE_SIZE;
    REQUIRE(protect(gdt, PTE_RO_PAGE) == 0);
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    fill();
    context.ctrlreg[3] = mfn_of(a_page) * PAGE_SIZE;
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    fill();
    context.gdt_frames[0] = NO_MFN;
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    fill();
    context.gdt_ents = 14 * 512 + 1;
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    unsigned long *const addresses[] = {
        (unsigned long *)&context.user_regs.rip, &context.kernel_sp, &context.event_callback_eip,
        &context.failsafe_callback_eip, &context.syscall_callback_eip, (unsigned long *)&context.gs_base_kernel,
        &context.trap_ctxt[14].address, &context.ldt_base};
    for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
        fill();
        *addresses[i] = 0x8000000000000000;
        CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    }
}

TEST(a_refused_context_holds_nothing)
{
    fill();
    context.ctrlreg[3] = NO_MFN * PAGE_SIZE;
    REQUIRE(protect(gdt, PTE_RO_PAGE) == 0);
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    CHECK_OK(protect(gdt, PTE_RW_PAGE));
    REQUIRE(protect(gdt, PTE_RO_PAGE) == 0);
    fill();
    context.failsafe_callback_eip = 0x8000000000000000;
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EINVAL);
    CHECK_OK(protect(gdt, PTE_RW_PAGE));
}

TEST(initialise)
{
    fill();
    ldt[1] = DATA_32;
    context.ldt_base = (unsigned long)ldt;
    context.ldt_ents = 512;
    context.debugreg[0] = 0xffff800000001000; /* which cannot be, and is left out */
    REQUIRE(protect(gdt, PTE_RO_PAGE) == 0);
    REQUIRE(protect(ldt, PTE_RO_PAGE) == 0);
    CHECK_OK(vcpu_op(VCPUOP_initialise, 1, &context));
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 1, &context), XEN_EEXIST);
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 0);
    CHECK_ERR(protect(gdt, PTE_RW_PAGE), XEN_EBUSY);
    CHECK_EQ(runs, 0);
}

TEST(up)
{
    a_page[0] = 0xaaaa;
    b_page[0] = 0xbbbb;
    REQUIRE(map_at(WINDOW, pte(a_page, PTE_RW_PAGE)));
    CHECK_OK(vcpu_op(VCPUOP_up, 1, 0));
    CHECK(wait_for(&runs, 1));
    CHECK_EQ(seen_rdi, MARK);
    CHECK_EQ(seen_fs, of_fs);
    CHECK_EQ(seen_gs, of_gs);
    CHECK_EQ(seen_cr3 / PAGE_SIZE, mfn_of((void *)xen_start->pt_base));
    CHECK(seen_rsp > (unsigned long)stack + sizeof stack - 256);
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 1);
}

TEST(it_reads_the_window)
{
    unsigned long value;
    CHECK(ask(&value));
    CHECK_EQ(value, 0xaaaa);
}

TEST(events_reach_it)
{
    struct evtchn_bind_ipi bind = {.vcpu = 1};
    REQUIRE(event_channel_op(EVTCHNOP_bind_ipi, &bind) == 0);
    ipi = bind.port;
    on_trap(ENTRY_EVENT, upcall);
    vcpu_info(1)->evtchn_upcall_mask = 0;
    struct evtchn_send send = {.port = ipi};
    for (unsigned i = 1; i <= 50; i++) {
        CHECK_OK(event_channel_op(EVTCHNOP_send, &send));
        CHECK(wait_for(&upcalls, i));
    }
    for (uint64_t end = system_time() + 5 * SECOND; vcpu_info(1)->evtchn_upcall_mask && system_time() < end;)
        sched_op(SCHEDOP_yield, 0); /* it has still to come back from its handler */
    CHECK_EQ(vcpu_info(1)->evtchn_upcall_mask, 0);
}

TEST(it_forgets_a_translation_when_update_va_mapping_says_so)
{
    unsigned long value;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t *page = i & 1 ? a_page : b_page;
        CHECK_OK(update_va((void *)WINDOW, pte(page, PTE_RW_PAGE), UVMF_INVLPG | UVMF_ALL));
        CHECK(ask(&value));
        CHECK_EQ(value, page[0]);
    }
}

TEST(it_forgets_a_translation_when_mmuext_says_so)
{
    static const unsigned kinds[] = {
        MMUEXT_INVLPG_ALL, MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_MULTI, MMUEXT_TLB_FLUSH_MULTI};
    unsigned long value, mask = 2;
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t *page = i & 1 ? a_page : b_page;
        CHECK_OK(mmu_update(maddr_of(entry_of((void *)WINDOW, 1)), pte(page, PTE_RW_PAGE)));
        struct mmuext_op op = {.cmd = kinds[i % ARRAY_SIZE(kinds)], .arg1.linear_addr = WINDOW};
        set_xen_guest_handle(op.arg2.vcpumask, &mask);
        CHECK_OK(hypercall(__HYPERVISOR_mmuext_op, (unsigned long)&op, 1, 0, DOMID_SELF, 0));
        CHECK(ask(&value));
        CHECK_EQ(value, page[0]);
    }
}

TEST(it_forgets_a_writable_mapping_before_the_frame_is_a_table)
{
    unsigned long value;
    for (unsigned i = 0; i < 20; i++) {
        CHECK_OK(update_va((void *)WINDOW, pte(a_page, PTE_RO_PAGE), UVMF_INVLPG | UVMF_ALL));
        memset(b_page, 0, PAGE_SIZE);
        CHECK_OK(protect(b_page, PTE_RO_PAGE));
        a_page[0] = 0xaaaa0 + i * 16;
        CHECK(ask(&value));
        CHECK_EQ(value, a_page[0]);
        CHECK_OK(PIN(2, b_page));
        CHECK_OK(UNPIN(b_page));
        CHECK_OK(protect(b_page, PTE_RW_PAGE));
        CHECK_OK(update_va((void *)WINDOW, pte(b_page, PTE_RW_PAGE), UVMF_INVLPG | UVMF_ALL));
    }
}

/* Nobody but the two vCPUs holds the table then: who leaves it last has it taken apart, or it could not be mapped writable any more. */
TEST(two_vcpus_leave_a_base_at_once)
{
    unsigned long value, first = mfn_of((void *)xen_start->pt_base), second_l4 = mfn_of(l4);
    for (unsigned slot = 0; slot < 512; slot++)
        if (slot < 256 || slot >= 272)
            l4[slot] = ((uint64_t *)xen_start->pt_base)[slot];
    for (unsigned i = 0; i < ROUNDS; i++) {
        CHECK_OK(protect(l4, PTE_RO_PAGE));
        CHECK_OK(PIN(4, l4));
        CHECK_OK(mmuext(MMUEXT_NEW_BASEPTR, second_l4, 0));
        base = second_l4;
        CHECK(ask(&value));
        CHECK_OK(base_result);
        CHECK_OK(UNPIN(l4));
        base = first;
        asked++;
        CHECK_OK(mmuext(MMUEXT_NEW_BASEPTR, first, 0));
        for (uint64_t end = system_time() + 5 * SECOND; answered != asked && system_time() < end;)
            ;
        CHECK_EQ(answered, asked);
        CHECK_OK(base_result);
        CHECK_OK(protect(l4, PTE_RW_PAGE));
    }
    base = 0;
}

TEST(down_and_up)
{
    unsigned long value;
    for (unsigned i = 0; i < 5; i++) {
        CHECK_OK(vcpu_op(VCPUOP_down, 1, 0));
        CHECK_EQ(vcpu_op(VCPUOP_is_up, 1, 0), 0);
        unsigned before = upcalls;
        struct evtchn_send send = {.port = ipi};
        CHECK_OK(event_channel_op(EVTCHNOP_send, &send));
        CHECK_OK(vcpu_op(VCPUOP_up, 1, 0));
        CHECK(wait_for(&upcalls, before + 1));
        CHECK(ask(&value));
    }
    CHECK_EQ(runs, 1);
}

TEST(its_runstate)
{
    struct vcpu_runstate_info info;
    CHECK_OK(vcpu_op(VCPUOP_get_runstate_info, 1, &info));
    CHECK(info.time[RUNSTATE_running] > 0);
}

TEST(the_time_it_was_offline)
{
    struct vcpu_runstate_info info;
    CHECK_OK(vcpu_op(VCPUOP_get_runstate_info, 1, &info));
    CHECK(info.time[RUNSTATE_offline] > 0);
    CHECK(info.state != RUNSTATE_offline);
    uint64_t before = info.time[RUNSTATE_offline];
    REQUIRE(vcpu_op(VCPUOP_down, 1, 0) == 0);
    uint64_t start = system_time();
    while (system_time() - start < 20 * MS)
        sched_op(SCHEDOP_yield, 0);
    CHECK_OK(vcpu_op(VCPUOP_get_runstate_info, 1, &info));
    CHECK_EQ(info.state, RUNSTATE_offline);
    CHECK(info.time[RUNSTATE_offline] >= before + 20 * MS);
    REQUIRE(vcpu_op(VCPUOP_up, 1, 0) == 0);
    CHECK_OK(vcpu_op(VCPUOP_get_runstate_info, 0, &info));
    CHECK_EQ(info.time[RUNSTATE_offline], 0);
}

/* It comes back no more: this is the last test. A kick finds it where an INT3 could have been executed, each time. */
TEST(it_flushes_in_a_loop_behind_int3)
{
    unsigned long value;
    spins = true;
    CHECK(ask(&value));
    for (unsigned i = 0; i < 20; i++)
        CHECK_OK(update_va((void *)WINDOW, pte(i & 1 ? a_page : b_page, PTE_RW_PAGE), UVMF_INVLPG | UVMF_ALL));
}
