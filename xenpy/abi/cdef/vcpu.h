/* Ref: xen/include/public/vcpu.h; the phys_area commands from Xen 4.19's */
struct vcpu_runstate_info { int state; uint64_t state_entry_time; uint64_t time[4]; };
struct vcpu_register_runstate_memory_area { uint64_t p; };
struct vcpu_set_periodic_timer { uint64_t period_ns; };
struct vcpu_set_singleshot_timer { uint64_t timeout_abs_ns; uint32_t flags; };
struct vcpu_register_vcpu_info { uint64_t mfn; uint32_t offset; uint32_t rsvd; };
struct vcpu_get_physid { uint64_t phys_id; };
struct vcpu_register_time_memory_area { uint64_t p; };
