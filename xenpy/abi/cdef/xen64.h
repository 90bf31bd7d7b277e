/* Ref: xen/include/public/xen.h, arch-x86/xen.h, arch-x86/xen-x86_64.h: what only a 64-bit guest shares with us */
struct vcpu_info {
    uint8_t evtchn_upcall_pending; uint8_t evtchn_upcall_mask; xen_ulong_t evtchn_pending_sel;
    struct arch_vcpu_info arch; struct vcpu_time_info time;
};
struct arch_shared_info {
    xen_ulong_t max_pfn; xen_pfn_t pfn_to_mfn_frame_list_list; xen_ulong_t nmi_reason;
    xen_ulong_t p2m_cr3; xen_ulong_t p2m_vaddr; xen_ulong_t p2m_generation;
};
struct shared_info {
    struct vcpu_info vcpu_info[32];
    xen_ulong_t evtchn_pending[64]; xen_ulong_t evtchn_mask[64];
    uint32_t wc_version; uint32_t wc_sec; uint32_t wc_nsec; uint32_t wc_sec_hi;
    struct arch_shared_info arch;
};
struct start_info {
    char magic[32]; xen_ulong_t nr_pages; xen_ulong_t shared_info; uint32_t flags; xen_pfn_t store_mfn; uint32_t store_evtchn;
    union { struct { xen_pfn_t mfn; uint32_t evtchn; } domU; struct { uint32_t info_off; uint32_t info_size; } dom0; } console;
    xen_ulong_t pt_base; xen_ulong_t nr_pt_frames; xen_ulong_t mfn_list; xen_ulong_t mod_start; xen_ulong_t mod_len;
    int8_t cmd_line[1024]; xen_ulong_t first_p2m_pfn; xen_ulong_t nr_p2m_frames;
};
struct iret_context {
    uint64_t rax; uint64_t r11; uint64_t rcx; uint64_t flags; uint64_t rip; uint64_t cs; uint64_t rflags; uint64_t rsp; uint64_t ss;
};
struct cpu_user_regs {
    uint64_t r15; uint64_t r14; uint64_t r13; uint64_t r12; uint64_t rbp; uint64_t rbx; uint64_t r11; uint64_t r10;
    uint64_t r9; uint64_t r8; uint64_t rax; uint64_t rcx; uint64_t rdx; uint64_t rsi; uint64_t rdi;
    uint32_t error_code; uint32_t entry_vector; uint64_t rip; uint16_t cs; uint16_t _pad0[1]; uint8_t saved_upcall_mask;
    uint8_t _pad1[3]; uint64_t rflags; uint64_t rsp; uint16_t ss; uint16_t _pad2[3]; uint16_t es; uint16_t _pad3[3];
    uint16_t ds; uint16_t _pad4[3]; uint16_t fs; uint16_t _pad5[3]; uint16_t gs; uint16_t _pad6[3];
};
struct vcpu_guest_context {
    uint8_t fpu_ctxt[512]; xen_ulong_t flags; struct cpu_user_regs user_regs; struct trap_info trap_ctxt[256];
    xen_ulong_t ldt_base; xen_ulong_t ldt_ents; xen_ulong_t gdt_frames[16]; xen_ulong_t gdt_ents;
    xen_ulong_t kernel_ss; xen_ulong_t kernel_sp; xen_ulong_t ctrlreg[8]; xen_ulong_t debugreg[8];
    xen_ulong_t event_callback_eip; xen_ulong_t failsafe_callback_eip; xen_ulong_t syscall_callback_eip;
    xen_ulong_t vm_assist; uint64_t fs_base; uint64_t gs_base_kernel; uint64_t gs_base_user;
};
