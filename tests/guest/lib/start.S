/*
 * The entry of a PVH test kernel, hypercalls, and the ends of the interrupt handlers.
 *
 * A PVH kernel is entered in 32-bit protected mode without paging, with flat segments that only exist in the hidden
 * registers, and start_info in EBX. The 64-bit flavour goes on to long mode with the first 4 GiB mapped one to one.
 * Ref: xen-doc misc/pvh.pandoc
 */
#define CR0_PG_WP 0x80010000
#define CR4_PAE 0x20
#define EFER 0xc0000080
#define EFER_LME 0x100
#define NOTE_PHYS32_ENTRY 18

    .section .note.Xen, "a", @note
    .long 4, 4, NOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long _start

    .text
    .code32
    .globl _start
_start:
    cld
    mov $stack_top, %esp
    mov %ebx, start_info_gpa
    lgdt gdt_pointer
    ljmp $0x8, $1f
1:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
#ifdef __x86_64__
    mov %cr4, %eax
    or $CR4_PAE, %eax
    mov %eax, %cr4
    mov $page_map, %eax
    mov %eax, %cr3
    mov $EFER, %ecx
    rdmsr
    or $EFER_LME, %eax
    wrmsr
    mov %cr0, %eax
    or $CR0_PG_WP, %eax
    mov %eax, %cr0
    ljmp $0x18, $2f
    .code64
2:
#endif
    call guest_main
3:
    cli
    hlt
    jmp 3b

/* long hypercall(unsigned number, long a1, long a2, long a3, long a4, long a5): through the hypercall page. */
    .globl hypercall
hypercall:
#ifdef __x86_64__
    mov %edi, %eax
    mov %rsi, %rdi
    mov %rdx, %rsi
    mov %rcx, %rdx
    mov %r8, %r10
    mov %r9, %r8
    shl $5, %eax
    add $hypercall_page, %eax
    jmp *%rax
#else
    push %ebx
    push %esi
    push %edi
    mov 16(%esp), %eax
    mov 20(%esp), %ebx
    mov 24(%esp), %ecx
    mov 28(%esp), %edx
    mov 32(%esp), %esi
    mov 36(%esp), %edi
    shl $5, %eax
    add $hypercall_page, %eax
    call *%eax
    pop %edi
    pop %esi
    pop %ebx
    ret
#endif

/*
 * Vectors: an entry of 16 bytes each, which pushes its number, behind an error code or a 0 in place of one, and calls
 * take_vector(frame). The 32-bit flavour returns without IRET, which some KVM hosts cannot emulate outside long mode.
 */
    .globl vector_entries
    .balign 16
vector_entries:
    .set vector, 0
    .rept 256
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17)
    push $0
    .endif
    push $vector
    jmp vector_common
    .set vector, vector + 1
    .endr

    .balign 16
vector_common:
#ifdef __x86_64__
    .irp reg, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
    push %\reg
    .endr
    lea 15*8(%rsp), %rdi
    mov %rsp, %rbx
    and $-16, %rsp
    cld
    call take_vector
    mov %rbx, %rsp
    .irp reg, r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax
    pop %\reg
    .endr
    add $16, %rsp
    iretq
#else
    pushal
    lea 8*4(%esp), %eax
    push %eax
    cld
    call take_vector
    add $4, %esp
    popal
    add $8, %esp
    /* eip, cs, eflags -> -, eflags, eip: the last two go by POPF and RET. */
    push %eax
    mov 4(%esp), %eax
    push 12(%esp)
    pop 8(%esp)
    mov %eax, 12(%esp)
    pop %eax
    add $4, %esp
    popf
    ret
#endif

#ifdef __x86_64__
/* Where a vCPU starts that VCPUOP_initialise has loaded: its stack and the function it runs are in registers. */
    .globl vcpu_entry
vcpu_entry:
    lgdt gdt_pointer
    lidt idt_pointer
    mov $0x10, %eax
    mov %eax, %ss
    mov %rsp, %rax
    push $0x10
    push %rax
    pushfq
    push $0x18
    push $1f
    iretq /* CS becomes one that a handler's IRET can go back to */
1:
    call *%rbx
2:
    cli
    hlt
    jmp 2b
#else
    .globl vcpu_entry
vcpu_entry:
    lgdt gdt_pointer
    ljmp $0x8, $1f
1:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    lidt idt_pointer
    call *%ebx
2:
    cli
    hlt
    jmp 2b
#endif

    .data
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff /* 0x08: 32-bit code */
    .quad 0x00cf93000000ffff /* 0x10: data */
    .quad 0x00af9b000000ffff /* 0x18: 64-bit code */
gdt_end:
    .word 0
    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt, 0

    .globl start_info_gpa
start_info_gpa:
    .long 0

#ifdef __x86_64__
    .balign 4096
    .globl page_map
page_map:
    .quad page_map_1g + 7
    .fill 511, 8, 0
page_map_1g:
    .quad page_map_2m + 7, page_map_2m + 0x1007, page_map_2m + 0x2007, page_map_2m + 0x3007
    .fill 508, 8, 0
page_map_2m:
    .set number, 0
    .rept 2048
    .quad (number << 21) + 0x83
    .set number, number + 1
    .endr
#endif

    .bss
    .balign 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096
    .skip 16384
stack_top:
