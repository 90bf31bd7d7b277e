/* Ref: xen/include/public/callback.h, nmi.h, pmu.h */
struct callback_register { uint16_t type; uint16_t flags; xen_ulong_t address; };
struct callback_unregister { uint16_t type; uint16_t _unused; };
struct xennmi_callback { xen_ulong_t handler_address; xen_ulong_t pad; };
