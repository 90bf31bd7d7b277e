/* Ref: linux/kvm.h, asm/kvm.h */
struct kvm_regs {
    uint64_t rax; uint64_t rbx; uint64_t rcx; uint64_t rdx; uint64_t rsi; uint64_t rdi; uint64_t rsp; uint64_t rbp;
    uint64_t r8; uint64_t r9; uint64_t r10; uint64_t r11; uint64_t r12; uint64_t r13; uint64_t r14; uint64_t r15;
    uint64_t rip; uint64_t rflags;
};
struct kvm_segment {
    uint64_t base; uint32_t limit; uint16_t selector; uint8_t type; uint8_t present; uint8_t dpl; uint8_t db; uint8_t s;
    uint8_t l; uint8_t g; uint8_t avl; uint8_t unusable; uint8_t padding;
};
struct kvm_dtable { uint64_t base; uint16_t limit; uint16_t padding[3]; };
struct kvm_sregs {
    struct kvm_segment cs; struct kvm_segment ds; struct kvm_segment es; struct kvm_segment fs; struct kvm_segment gs;
    struct kvm_segment ss; struct kvm_segment tr; struct kvm_segment ldt; struct kvm_dtable gdt; struct kvm_dtable idt;
    uint64_t cr0; uint64_t cr2; uint64_t cr3; uint64_t cr4; uint64_t cr8; uint64_t efer; uint64_t apic_base;
    uint64_t interrupt_bitmap[4];
};
struct kvm_vcpu_events {
    struct { uint8_t injected; uint8_t nr; uint8_t has_error_code; uint8_t pending; uint32_t error_code; } exception;
    struct { uint8_t injected; uint8_t nr; uint8_t soft; uint8_t shadow; } interrupt;
    struct { uint8_t injected; uint8_t pending; uint8_t masked; uint8_t pad; } nmi;
    uint32_t sipi_vector; uint32_t flags;
    struct { uint8_t smm; uint8_t pending; uint8_t smm_inside_nmi; uint8_t latched_init; } smi;
    struct { uint8_t pending; } triple_fault;
    uint8_t reserved[26]; uint8_t exception_has_payload; uint64_t exception_payload;
};
struct kvm_sync_regs { struct kvm_regs regs; struct kvm_sregs sregs; struct kvm_vcpu_events events; };
struct kvm_run {
    uint8_t request_interrupt_window; uint8_t immediate_exit; uint8_t padding1[6];
    uint32_t exit_reason; uint8_t ready_for_interrupt_injection; uint8_t if_flag; uint16_t flags; uint64_t cr8; uint64_t apic_base;
    union {
        struct { uint64_t hardware_exit_reason; } hw;
        struct { uint64_t hardware_entry_failure_reason; uint32_t cpu; } fail_entry;
        struct { uint8_t direction; uint8_t size; uint16_t port; uint32_t count; uint64_t data_offset; } io;
        struct { uint32_t exception; uint32_t pad; uint64_t pc; uint64_t dr6; uint64_t dr7; } debug;
        struct { uint64_t phys_addr; uint8_t data[8]; uint32_t len; uint8_t is_write; } mmio;
        struct { uint64_t nr; uint64_t args[6]; uint64_t ret; uint32_t longmode; uint32_t pad; } hypercall;
        struct { uint32_t suberror; uint32_t ndata; uint64_t data[16]; } internal;
        struct { uint32_t suberror; uint32_t ndata; uint64_t flags; uint8_t insn_size; uint8_t insn_bytes[15]; } emulation_failure;
        struct { uint32_t type; uint32_t ndata; uint64_t data[16]; } system_event;
        struct { uint8_t error; uint8_t pad[7]; uint32_t reason; uint32_t index; uint64_t data; } msr;
        struct {
            uint32_t type;
            union { struct { uint32_t longmode; uint32_t cpl; uint64_t input; uint64_t result; uint64_t params[6]; } hcall; } u;
        } xen;
        struct { uint64_t flags; uint64_t gpa; uint64_t size; } memory_fault;
        uint8_t padding[256];
    };
    uint64_t kvm_valid_regs; uint64_t kvm_dirty_regs;
    union { struct kvm_sync_regs regs; uint8_t padding[2048]; } s;
};
struct kvm_userspace_memory_region {
    uint32_t slot; uint32_t flags; uint64_t guest_phys_addr; uint64_t memory_size; uint64_t userspace_addr;
};
struct kvm_enable_cap { uint32_t cap; uint32_t flags; uint64_t args[4]; uint8_t pad[64]; };
struct kvm_cpuid_entry2 {
    uint32_t function; uint32_t index; uint32_t flags; uint32_t eax; uint32_t ebx; uint32_t ecx; uint32_t edx; uint32_t padding[3];
};
struct kvm_cpuid2 { uint32_t nent; uint32_t padding; struct kvm_cpuid_entry2 entries[256]; };
struct kvm_msr_entry { uint32_t index; uint32_t reserved; uint64_t data; };
struct kvm_msrs { uint32_t nmsrs; uint32_t pad; struct kvm_msr_entry entries[64]; };
struct kvm_msr_filter_range { uint32_t flags; uint32_t nmsrs; uint32_t base; uint64_t bitmap; };
struct kvm_msr_filter { uint32_t flags; struct kvm_msr_filter_range ranges[16]; };
struct kvm_msi { uint32_t address_lo; uint32_t address_hi; uint32_t data; uint32_t flags; uint32_t devid; uint8_t pad[12]; };
struct kvm_irqfd { uint32_t fd; uint32_t gsi; uint32_t flags; uint32_t resamplefd; uint8_t pad[16]; };
struct kvm_ioeventfd { uint64_t datamatch; uint64_t addr; uint32_t len; int32_t fd; uint32_t flags; uint8_t pad[36]; };
struct kvm_mp_state { uint32_t mp_state; };
struct kvm_lapic_state { uint8_t regs[1024]; };
struct kvm_interrupt { uint32_t irq; };
struct kvm_fpu {
    uint8_t fpr[128]; uint16_t fcw; uint16_t fsw; uint8_t ftwx; uint8_t pad1; uint16_t last_opcode; uint64_t last_ip; uint64_t last_dp;
    uint8_t xmm[256]; uint32_t mxcsr; uint32_t pad2;
};
struct kvm_xsave { uint32_t region[1024]; };
struct kvm_debugregs { uint64_t db[4]; uint64_t dr6; uint64_t dr7; uint64_t flags; uint64_t reserved[9]; };
struct kvm_xcr { uint32_t xcr; uint32_t reserved; uint64_t value; };
struct kvm_xcrs { uint32_t nr_xcrs; uint32_t flags; struct kvm_xcr xcrs[16]; uint64_t padding[16]; };
struct kvm_translation { uint64_t linear_address; uint64_t physical_address; uint8_t valid; uint8_t writeable; uint8_t usermode; uint8_t pad[5]; };
struct kvm_guest_debug { uint32_t control; uint32_t pad; uint64_t debugreg[8]; };
struct kvm_clock_data { uint64_t clock; uint32_t flags; uint32_t pad0; uint64_t realtime; uint64_t host_tsc; uint32_t pad[4]; };
struct kvm_xen_hvm_config { uint32_t flags; uint32_t msr; uint64_t blob_addr_32; uint64_t blob_addr_64; uint8_t blob_size_32; uint8_t blob_size_64; uint8_t pad2[30]; };
struct kvm_xen_hvm_attr {
    uint16_t type; uint16_t pad[3];
    union {
        uint8_t long_mode; uint8_t vector; struct { uint64_t gfn; } shared_info;
        struct { uint32_t send_port; uint32_t type; uint32_t flags; union { struct { uint32_t port; uint32_t vcpu; uint32_t priority; } port; struct { uint32_t port; int32_t fd; } eventfd; uint32_t padding[4]; } deliver; } evtchn;
        uint32_t xen_version; uint64_t pad[8];
    } u;
};
struct kvm_xen_vcpu_attr {
    uint16_t type; uint16_t pad[3];
    union {
        uint64_t gpa; uint64_t pad[8];
        struct { uint64_t state; uint64_t state_entry_time; uint64_t time_running; uint64_t time_runnable; uint64_t time_blocked; uint64_t time_offline; } runstate;
        uint32_t vcpu_id; struct { uint32_t port; uint32_t priority; uint64_t expires_ns; } timer; uint8_t vector;
    } u;
};
struct kvm_irq_routing_xen_evtchn { uint32_t port; uint32_t vcpu; uint32_t priority; };
struct kvm_irq_routing_entry { uint32_t gsi; uint32_t type; uint32_t flags; uint32_t pad; union { struct kvm_irq_routing_xen_evtchn xen_evtchn; uint32_t pad[8]; } u; };
struct kvm_irq_routing { uint32_t nr; uint32_t flags; struct kvm_irq_routing_entry entries[128]; };
