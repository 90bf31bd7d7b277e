/* Ref: xen/include/public/version.h */
struct xen_compile_info { char compiler[64]; char compile_by[16]; char compile_domain[32]; char compile_date[32]; };
struct xen_platform_parameters { xen_ulong_t virt_start; };
struct xen_feature_info { unsigned int submap_idx; uint32_t submap; };
