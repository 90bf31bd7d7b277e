/* Ref: xen/include/public/xen.h, arch-x86/xen.h */
typedef uint16_t domid_t;
typedef uint32_t evtchn_port_t;
typedef uint32_t grant_ref_t;
typedef uint32_t grant_handle_t;

struct multicall_entry { xen_ulong_t op; xen_ulong_t result; xen_ulong_t args[6]; };
struct mmu_update { uint64_t ptr; uint64_t val; };
struct mmuext_op {
    unsigned int cmd;
    union { xen_pfn_t mfn; xen_ulong_t linear_addr; } arg1;
    union { unsigned int nr_ents; xen_handle_t vcpumask; xen_pfn_t src_mfn; } arg2;
};
struct vcpu_time_info {
    uint32_t version; uint32_t pad0; uint64_t tsc_timestamp; uint64_t system_time;
    uint32_t tsc_to_system_mul; int8_t tsc_shift; uint8_t flags; uint8_t pad1[2];
};
struct arch_vcpu_info { xen_ulong_t cr2; xen_ulong_t pad; };
struct trap_info { uint8_t vector; uint8_t flags; uint16_t cs; xen_ulong_t address; };
