/* What every PV test kernel has: start of day, exceptions, user mode, page tables. Ref: xen/include/public/xen.h */
#include "pv.h"

#define POOL_PAGES 8
#define USER_STACK 16384
#define CALLBACK(kind, entry) {.type = CALLBACKTYPE_##kind, .flags = 0, .address = (unsigned long)trap_entries[entry]}

start_info_t *xen_start;
unsigned long nr_m2p;
const unsigned long *m2p;
volatile int caught;
volatile unsigned long resume_at;
struct trap_frame last_trap;
unsigned long last_cr2;
uint64_t user_l4[512] PAGE_ALIGNED;
static uint8_t shared_info_page[PAGE_SIZE] PAGE_ALIGNED;
static uint64_t pool[POOL_PAGES][512] PAGE_ALIGNED;
static unsigned pool_used;
static uint8_t user_stack[USER_STACK] __attribute__((aligned(16)));
static void (*handlers[ENTRIES])(struct trap_frame *);

void to_user(const struct trap_frame *frame);
void from_user(void) __attribute__((noreturn));

/* -- exceptions -------------------------------------------------------------------------------------------------------- */

void on_trap(unsigned vector, void (*handler)(struct trap_frame *))
{
    handlers[vector] = handler;
}

void take_trap(struct trap_frame *frame)
{
    bool user = frame->cs & RPL;
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    if (user || resume_at) {
        last_trap = *frame;
        last_cr2 = vcpu_info(0)->arch.cr2;
    }
    if (user)
        from_user();
    if (resume_at) {
        caught = (int)frame->vector;
        frame->rip = resume_at;
        resume_at = 0;
        return;
    }
    verdict("CRASH", "vector %d, error %x, at %x, cr2 %x", frame->vector, frame->error, frame->rip,
            vcpu_info(0)->arch.cr2);
    shutdown(SHUTDOWN_crash);
}

long set_traps(void)
{
    static struct trap_info traps[258];
    unsigned count = 0;
    for (unsigned vector = 0; vector < 256; vector++) {
        unsigned dpl = vector == 3 || vector == 4 || vector == INT_USER || vector == INT_MASKING ? 3 : 0;
        if (vector == INT_KERNEL)
            dpl = 1;
        if (vector == INT_NONE)
            continue;
        traps[count++] = (struct trap_info){
            .vector = vector, .flags = dpl | (vector == INT_MASKING ? 4 : 0), .cs = CS64,
            .address = (unsigned long)trap_entries[vector],
        };
    }
    return set_trap_table(traps);
}

static long set_entries(void)
{
    struct callback_register callbacks[] = {
        CALLBACK(event, ENTRY_EVENT), CALLBACK(failsafe, ENTRY_FAILSAFE), CALLBACK(syscall, ENTRY_SYSCALL),
        CALLBACK(syscall32, ENTRY_SYSCALL32), CALLBACK(sysenter, ENTRY_SYSENTER), CALLBACK(nmi, ENTRY_NMI),
    };
    for (unsigned i = 0; i < ARRAY_SIZE(callbacks); i++) {
        long rc = callback_op(CALLBACKOP_register, &callbacks[i]);
        if (rc)
            return rc;
    }
    return 0;
}

/* -- user mode --------------------------------------------------------------------------------------------------------- */

static bool user_init(void)
{
    const uint64_t *kernel_l4 = (const void *)xen_start->pt_base;
    if (user_l4[0] || user_l4[511])
        return true;
    for (unsigned slot = 0; slot < 512; slot++)
        if (slot < 256 || slot >= 272)
            user_l4[slot] = kernel_l4[slot];
    return protect(user_l4, PTE_RO_PAGE) == 0 && PIN(4, user_l4) == 0 &&
           mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(user_l4), 0) == 0 &&
           CALL2(__HYPERVISOR_stack_switch, SS, trap_stack_top) == 0;
}

unsigned long user_vgcf;

struct trap_frame user_frame(unsigned long rip, unsigned long argument)
{
    return (struct trap_frame){
        .rip = rip, .cs = CS64, .flags = FLAGS_IF, .rsp = (unsigned long)(user_stack + sizeof user_stack - 8), .ss = SS,
        .rdi = argument,
    };
}

const struct trap_frame *run_user_frame(const struct trap_frame *start)
{
    if (!user_init()) {
        verdict("ERROR", "no user mode");
        shutdown(SHUTDOWN_crash);
    }
    to_user(start);
    return &last_trap;
}

const struct trap_frame *run_user(user_function function, unsigned long argument)
{
    struct trap_frame start = user_frame((unsigned long)function, argument);
    return run_user_frame(&start);
}

/* What user mode may be asked to do. */

void user_echo(unsigned long argument)
{
    user_exit(argument);
}

void user_read(unsigned long va)
{
    user_exit(*(volatile unsigned long *)va);
}

void user_write(unsigned long va)
{
    *(volatile unsigned long *)va = USER_DONE;
    user_exit(USER_DONE);
}

void user_execute(unsigned long va)
{
    ((void (*)(void))va)();
    user_exit(USER_DONE);
}

/* -- page tables ------------------------------------------------------------------------------------------------------- */

unsigned long mfn_of(const volatile void *page)
{
    return ((const unsigned long *)xen_start->mfn_list)[pfn_of(page)];
}

uint64_t maddr_of(const volatile void *p)
{
    return mfn_of(p) * PAGE_SIZE + (unsigned long)p % PAGE_SIZE;
}

unsigned long pte(const volatile void *page, unsigned long flags)
{
    return mfn_of(page) * PAGE_SIZE | flags;
}

uint64_t *entry_of(const volatile void *va, int level)
{
    uint64_t *table = (uint64_t *)xen_start->pt_base;
    for (int at = 4;; at--) {
        uint64_t *entry = table + ((unsigned long)va >> (12 + 9 * (at - 1)) & 511);
        if (at == level)
            return entry;
        if (!(*entry & PTE_P))
            return NULL;
        table = (uint64_t *)(VIRT_BASE + m2p[(*entry & PTE_MFN) / PAGE_SIZE] * PAGE_SIZE);
    }
}

long mmu_update(uint64_t ptr, uint64_t value)
{
    struct mmu_update update = {.ptr = ptr, .val = value};
    return hypercall(__HYPERVISOR_mmu_update, (unsigned long)&update, 1, 0, DOMID_SELF, 0);
}

long mmuext(unsigned cmd, unsigned long arg1, unsigned long arg2)
{
    struct mmuext_op op = {.cmd = cmd, .arg1.mfn = arg1, .arg2.src_mfn = arg2};
    return hypercall(__HYPERVISOR_mmuext_op, (unsigned long)&op, 1, 0, DOMID_SELF, 0);
}

long update_va(const volatile void *va, uint64_t value, unsigned long flags)
{
    return CALL3(__HYPERVISOR_update_va_mapping, va, value, flags);
}

long protect(volatile void *page, unsigned long flags)
{
    return update_va(page, pte(page, flags), UVMF_INVLPG | UVMF_ALL);
}

bool map_at(unsigned long va, uint64_t entry)
{
    for (int level = 4; level > 1; level--) {
        uint64_t *upper = entry_of((void *)va, level);
        if (*upper & PTE_P)
            continue;
        uint64_t *table = pool[pool_used++];
        if (pool_used > POOL_PAGES || protect(table, PTE_RO_PAGE) ||
            mmu_update(maddr_of(upper), pte(table, PTE_TABLE)))
            return false;
    }
    return update_va((void *)va, entry, UVMF_INVLPG | UVMF_ALL) == 0;
}

/* -- start of day ------------------------------------------------------------------------------------------------------ */

uint64_t system_time(void)
{
    return read_clock(&vcpu_info(0)->time);
}

static bool m2p_init(void)
{
    struct xen_machphys_mapping mapping;
    if (memory_op(XENMEM_machphys_mapping, &mapping))
        return false;
    m2p = (const unsigned long *)mapping.v_start;
    nr_m2p = mapping.max_mfn + 1;
    return true;
}

bool map_shared_info(void)
{
    if (update_va(shared_info_page, xen_start->shared_info | PTE_RW_PAGE, UVMF_INVLPG))
        return false;
    shared_info = (void *)shared_info_page;
    return true;
}

bool platform_init(void)
{
    xen_start = (start_info_t *)start_state.rsi;
    return m2p_init() && map_shared_info() && set_traps() == 0 && set_entries() == 0;
}

const char *command_line(void)
{
    return (const char *)xen_start->cmd_line;
}
