/* What a PVH test kernel has beside that: the hypercall page, HVM parameters, shared_info, an IDT, the LAPIC. */
#include "guest.h"

#define CS_SELECTOR (BITS == 64 ? 0x18 : 0x08)
#define INTERRUPT_GATE 0x8e
#define XEN_LEAVES 0x40000000u
#define XEN_SIGNATURE_EBX 0x566e6558
#define LAPIC 0xfee00000ul
#define LAPIC_SVR 0xf0
#define LAPIC_EOI 0xb0
#define LAPIC_TPR 0x80
#define LAPIC_ENABLED 0x1ff
#define CODE_32 0xc9b
#define DATA_32 0xc93
#define TSS_32 0x8b

extern uint8_t vector_entries[256][16];

#ifdef __x86_64__
extern uint8_t page_map[];
#endif
static uint8_t shared_info_page[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t second_stack[8192] __attribute__((aligned(16)));
static void (*handlers[256])(struct frame *);

/* -- hypercalls ---------------------------------------------------------------------------------------------------- */

static bool hypercalls_init(void)
{
    uint32_t regs[4];
    cpuid(XEN_LEAVES, 0, regs);
    if (regs[1] != XEN_SIGNATURE_EBX || regs[0] < XEN_LEAVES + 2)
        return false;
    cpuid(XEN_LEAVES + 2, 0, regs);
    wrmsr(regs[1], (unsigned long)hypercall_page);
    return true;
}

long get_param(unsigned index, uint64_t *value)
{
    struct xen_hvm_param param = {.domid = DOMID_SELF, .index = index};
    long rc = hvm_op(HVMOP_get_param, &param);
    *value = param.value;
    return rc;
}

long set_param(unsigned index, uint64_t value)
{
    struct xen_hvm_param param = {.domid = DOMID_SELF, .index = index, .value = value};
    return hvm_op(HVMOP_set_param, &param);
}

uint64_t system_time(void)
{
    struct xen_hvm_get_time time = {0};
    hvm_op(HVMOP_get_time, &time);
    return time.now;
}

domid_t own_domid(void)
{
    uint32_t regs[4];
    cpuid(XEN_LEAVES + 4, 0, regs);
    return regs[2];
}

unsigned own_vcpu(void)
{
    uint32_t regs[4];
    cpuid(XEN_LEAVES + 4, 0, regs);
    return regs[1];
}

long add_to_physmap(unsigned space, unsigned long idx, unsigned long gfn)
{
    struct xen_add_to_physmap op = {.domid = DOMID_SELF, .space = space, .idx = idx, .gpfn = gfn};
    return memory_op(XENMEM_add_to_physmap, &op);
}

bool map_shared_info(void)
{
    /* Setting the callback, to none here, is where an HVM guest's word size is taken note of. */
    if (set_param(HVM_PARAM_CALLBACK_IRQ, 0))
        return false;
    if (add_to_physmap(XENMAPSPACE_shared_info, 0, gfn_of(shared_info_page)))
        return false;
    shared_info = (void *)shared_info_page;
    /* Of no meaning to an HVM guest's upcalls; but a poll ends at once while one is pending that the guest does not hold off. */
    for (unsigned i = 0; i < ARRAY_SIZE(((shared_info_t *)0)->vcpu_info); i++)
        shared_info->vcpu_info[i].evtchn_upcall_mask = 1;
    return true;
}

const struct hvm_start_info *start_info(void)
{
    return (void *)(unsigned long)start_info_gpa;
}

const char *command_line(void)
{
    return (const char *)(unsigned long)start_info()->cmdline_paddr;
}

/* -- interrupts ---------------------------------------------------------------------------------------------------- */

static struct {
    uint16_t low, selector, type, middle;
#ifdef __x86_64__
    uint32_t high, reserved;
#endif
} idt[256];

struct {
    uint16_t limit;
    unsigned long base;
} __attribute__((packed)) idt_pointer = {sizeof idt - 1, (unsigned long)idt};

void idt_init(void)
{
    for (unsigned vector = 0; vector < 256; vector++) {
        unsigned long entry = (unsigned long)vector_entries[vector];
        idt[vector].low = entry;
        idt[vector].selector = CS_SELECTOR;
        idt[vector].type = INTERRUPT_GATE << 8;
        idt[vector].middle = entry >> 16;
    }
    __asm__ volatile("lidt %0" ::"m"(idt_pointer));
}

void on_vector(unsigned vector, void (*handler)(struct frame *))
{
    handlers[vector] = handler;
}

void take_vector(struct frame *frame)
{
    if (handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    verdict("CRASH", "vector %d, error %x, at %x", frame->vector, frame->error, frame->ip);
    shutdown(SHUTDOWN_crash);
}

static volatile uint32_t *lapic(unsigned reg)
{
    return (volatile uint32_t *)(LAPIC + reg);
}

void lapic_enable(void)
{
    *lapic(LAPIC_TPR) = 0;
    *lapic(LAPIC_SVR) = LAPIC_ENABLED;
}

void lapic_eoi(void)
{
    *lapic(LAPIC_EOI) = 0;
}

struct vcpu_hvm_context second_vcpu(void (*run)(void))
{
    struct vcpu_hvm_context context;
    memset(&context, 0, sizeof context);
#ifdef __x86_64__
    context.mode = VCPU_HVM_MODE_64B;
    context.cpu_regs.x86_64 = (struct vcpu_hvm_x86_64){
        .rip = (unsigned long)vcpu_entry, .rsp = (unsigned long)(second_stack + sizeof second_stack), .rbx = (unsigned long)run,
        .cr0 = 0x80010011, .cr3 = (unsigned long)page_map, .cr4 = 0x20, .efer = 0x500,
    };
#else
    context.mode = VCPU_HVM_MODE_32B;
    context.cpu_regs.x86_32 = (struct vcpu_hvm_x86_32){
        .eip = (unsigned long)vcpu_entry, .esp = (unsigned long)(second_stack + sizeof second_stack), .ebx = (unsigned long)run,
        .cr0 = 0x11, .cs_limit = ~0u, .ds_limit = ~0u, .ss_limit = ~0u, .es_limit = ~0u, .tr_limit = 0x67,
        .cs_ar = CODE_32, .ds_ar = DATA_32, .ss_ar = DATA_32, .es_ar = DATA_32, .tr_ar = TSS_32,
    };
#endif
    return context;
}

bool platform_init(void)
{
    idt_init();
    return hypercalls_init();
}
