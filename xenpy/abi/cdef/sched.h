/* Ref: xen/include/public/sched.h */
struct sched_shutdown { unsigned int reason; };
struct sched_poll { xen_handle_t ports; unsigned int nr_ports; uint64_t timeout; };
struct sched_remote_shutdown { domid_t domain_id; unsigned int reason; };
struct sched_watchdog { uint32_t id; uint32_t timeout; };
struct sched_pin_override { int32_t pcpu; };
