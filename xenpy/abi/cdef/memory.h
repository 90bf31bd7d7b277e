/* Ref: xen/include/public/memory.h */
struct xen_memory_reservation {
    xen_handle_t extent_start; xen_ulong_t nr_extents; unsigned int extent_order; unsigned int mem_flags; domid_t domid;
};
struct xen_memory_exchange { struct xen_memory_reservation in; struct xen_memory_reservation out; xen_ulong_t nr_exchanged; };
struct xen_memory_domain { domid_t domid; };
struct xen_machphys_mfn_list { unsigned int max_extents; xen_handle_t extent_start; unsigned int nr_extents; };
struct xen_machphys_mapping { xen_ulong_t v_start; xen_ulong_t v_end; xen_ulong_t max_mfn; };
struct xen_add_to_physmap { domid_t domid; uint16_t size; unsigned int space; xen_ulong_t idx; xen_pfn_t gpfn; };
struct xen_add_to_physmap_batch {
    domid_t domid; uint16_t space; uint16_t size; uint16_t foreign_domid;
    xen_handle_t idxs; xen_handle_t gpfns; xen_handle_t errs;
};
struct xen_remove_from_physmap { domid_t domid; xen_pfn_t gpfn; };
struct xen_memory_map { unsigned int nr_entries; xen_handle_t buffer; };
struct xen_foreign_memory_map { domid_t domid; struct xen_memory_map map; };
