/*
 * The entry of a PV test kernel, hypercalls, and the ends of the handlers of exceptions, system calls and events.
 *
 * With HYPERCALL_PAGE, hypercalls go through Xen's stubs and the P2M list is at an address of the kernel's choice; without, it executes
 * SYSCALL itself. Ref: xen/include/public/xen.h, "Start-of-day memory layout"; xen-doc guest-guide, pv-traps
 */
#define __ASSEMBLY__
#include <xen/elfnote.h>
#include "layout.h"

#define HYPERCALL_IRET 23
#define STUB_SIZE 32

.macro note type:req, directive:req, value:vararg
    .balign 4
    .long 4, 9f - 8f, \type
    .asciz "Xen"
8:  \directive \value
9:
.endm

    .section .note.Xen, "a", @note
    note XEN_ELFNOTE_GUEST_OS, .asciz, "test"
    note XEN_ELFNOTE_XEN_VERSION, .asciz, "xen-3.0"
    note XEN_ELFNOTE_LOADER, .asciz, "generic"
    note XEN_ELFNOTE_VIRT_BASE, .quad, VIRT_BASE
    note XEN_ELFNOTE_PADDR_OFFSET, .quad, VIRT_BASE
    note XEN_ELFNOTE_ENTRY, .quad, _start
#ifdef HYPERCALL_PAGE
    note XEN_ELFNOTE_HYPERCALL_PAGE, .quad, hypercall_page
    note XEN_ELFNOTE_INIT_P2M, .quad, P2M_BASE
#endif
    .balign 4

    .text
    .globl _start
_start:
    /* What the registers held, for whoever asks. */
    mov %rsp, start_state(%rip)
    mov %rsi, start_state+8(%rip)
    pushfq
    popq start_state+16(%rip)
    .set offset, 24
    .irp segment, cs, ss, ds, es, fs, gs
    mov %\segment, %eax
    movzwl %ax, %eax
    mov %rax, start_state+offset(%rip)
    .set offset, offset + 8
    .endr
    cld
    lea stack_top(%rip), %rsp
    xor %ebp, %ebp
    call guest_main
    ud2

/* long hypercall(unsigned number, long a1, long a2, long a3, long a4, long a5) */
    .globl hypercall
hypercall:
    mov %edi, %eax
    mov %rsi, %rdi
    mov %rdx, %rsi
    mov %rcx, %rdx
    mov %r8, %r10
    mov %r9, %r8
#ifdef HYPERCALL_PAGE
    imul $STUB_SIZE, %eax, %eax
    lea hypercall_page(%rip), %rcx
    add %rcx, %rax
    jmp *%rax
#else
    syscall
    ret
#endif

/* Goes where the stack says: flags (VGCF_*), rip, cs, rflags, rsp, ss. */
.macro iret_hypercall
#ifdef HYPERCALL_PAGE
    jmp hypercall_page + HYPERCALL_IRET * STUB_SIZE
#else
    push %rcx
    push %r11
    push %rax
    mov $HYPERCALL_IRET, %eax
    syscall
#endif
.endm

/*
 * Entries: 16 bytes for each vector and then for each other way into the kernel, in the order of enum entry. A frame is rcx, r11, an
 * error code with some vectors, rip, cs, rflags, rsp, ss.
 */
    .globl trap_entries
    .balign 16
trap_entries:
    .set vector, 0
    .rept ENTRIES
    .balign 16
    push $vector
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
    jmp trap_common
    .else
    jmp trap_without_error
    .endif
    .set vector, vector + 1
    .endr

    .balign 16
trap_without_error:
    sub $8, %rsp
    mov 8(%rsp), %rcx
    mov %rcx, (%rsp)
    mov 16(%rsp), %rcx
    mov %rcx, 8(%rsp)
    mov 24(%rsp), %rcx
    mov %rcx, 16(%rsp)
    movq $0, 24(%rsp)
trap_common:
    .irp reg, rax, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r12, r13, r14, r15
    push %\reg
    .endr
    mov %rsp, %rdi
    mov %rsp, %rbx
    and $-16, %rsp
    cld
    call take_trap
    mov %rbx, %rsp
    .irp reg, r15, r14, r13, r12, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rax
    pop %\reg
    .endr
    add $8, %rsp
    pop %rcx
    pop %r11
    movq $0, (%rsp) /* VGCF_* in place of the error code */
    iret_hypercall

/* void to_user(const struct trap_frame *): goes to user mode with the frame's registers; returns by from_user. */
    .globl to_user
to_user:
    .irp reg, rbx, rbp, r12, r13, r14, r15
    push %\reg
    .endr
    mov %rsp, kernel_rsp(%rip)
    pushq FRAME_SS(%rdi)
    pushq FRAME_RSP(%rdi)
    pushq FRAME_FLAGS(%rdi)
    pushq FRAME_CS(%rdi)
    pushq FRAME_RIP(%rdi)
    pushq user_vgcf(%rip)
    mov FRAME_RAX(%rdi), %rax
    mov FRAME_RDX(%rdi), %rdx
    mov FRAME_RSI(%rdi), %rsi
    mov FRAME_RCX(%rdi), %rcx
    mov FRAME_R11(%rdi), %r11
    mov FRAME_RDI(%rdi), %rdi
    iret_hypercall

    .globl from_user
from_user:
    mov kernel_rsp(%rip), %rsp
    .irp reg, r15, r14, r13, r12, rbp, rbx
    pop %\reg
    .endr
    ret

/* Where a vCPU starts that VCPUOP_initialise has loaded: the function it runs is in rbx. */
    .globl vcpu_entry
vcpu_entry:
    call *%rbx
    ud2

    .data
    .balign 8
    .globl start_state
start_state:
    .fill 9, 8, 0
kernel_rsp:
    .quad 0

    .bss
    .balign 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096
    .skip 32768
    .globl stack_top
stack_top:
    .skip 32768
    .globl trap_stack_top
trap_stack_top:
