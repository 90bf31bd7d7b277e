/* Ref: xen/include/public/grant_table.h */
struct grant_entry_v1 { uint16_t flags; domid_t domid; uint32_t frame; };
struct gnttab_map_grant_ref {
    uint64_t host_addr; uint32_t flags; grant_ref_t ref; domid_t dom; int16_t status; grant_handle_t handle; uint64_t dev_bus_addr;
};
struct gnttab_unmap_grant_ref { uint64_t host_addr; uint64_t dev_bus_addr; grant_handle_t handle; int16_t status; };
struct gnttab_setup_table { domid_t dom; uint32_t nr_frames; int16_t status; xen_handle_t frame_list; };
struct gnttab_transfer { xen_pfn_t mfn; domid_t domid; grant_ref_t ref; int16_t status; };
struct gnttab_copy_ptr { union { grant_ref_t ref; xen_pfn_t gmfn; } u; domid_t domid; uint16_t offset; };
struct gnttab_copy { struct gnttab_copy_ptr source; struct gnttab_copy_ptr dest; uint16_t len; uint16_t flags; int16_t status; };
struct gnttab_query_size { domid_t dom; uint32_t nr_frames; uint32_t max_nr_frames; int16_t status; };
struct gnttab_unmap_and_replace { uint64_t host_addr; uint64_t new_addr; grant_handle_t handle; int16_t status; };
struct gnttab_set_version { uint32_t version; };
struct gnttab_get_status_frames { uint32_t nr_frames; domid_t dom; int16_t status; xen_handle_t frame_list; };
struct gnttab_get_version { domid_t dom; uint16_t pad; uint32_t version; };
struct gnttab_swap_grant_ref { grant_ref_t ref_a; grant_ref_t ref_b; int16_t status; };
