/* Ref: xen/include/public/physdev.h */
struct physdev_eoi { uint32_t irq; };
struct physdev_pirq_eoi_gmfn { xen_pfn_t gmfn; };
struct physdev_irq_status_query { uint32_t irq; uint32_t flags; };
struct physdev_set_iopl { uint32_t iopl; };
struct physdev_set_iobitmap { xen_handle_t bitmap; uint32_t nr_ports; };
struct physdev_apic { xen_ulong_t apic_physbase; uint32_t reg; uint32_t value; };
struct physdev_get_free_pirq { int type; uint32_t pirq; };
struct physdev_unmap_pirq { domid_t domid; int pirq; };
