/* What C and assembly share. */
#ifndef LAYOUT_H
#define LAYOUT_H

#ifdef __ASSEMBLY__
#define WORD(number) number
#else
#define WORD(number) number##ul
#endif

/* Where pfn 0 is: low, where hypercalls are SYSCALL; in the upper half, and the P2M list below it, where there is a page of stubs. */
#ifdef HYPERCALL_PAGE
#define VIRT_BASE WORD(0xffffffff80000000)
#define P2M_BASE WORD(0xffffff0000000000)
#else
#define VIRT_BASE WORD(0)
#endif

/* Ways into the kernel: 256 vectors and those of enum entry. */
#define ENTRIES 262

/* Offsets in struct trap_frame. */
#define FRAME_RDI 0x38
#define FRAME_RSI 0x40
#define FRAME_RDX 0x58
#define FRAME_RAX 0x60
#define FRAME_RCX 0x70
#define FRAME_R11 0x78
#define FRAME_RIP 0x88
#define FRAME_CS 0x90
#define FRAME_FLAGS 0x98
#define FRAME_RSP 0xa0
#define FRAME_SS 0xa8
#endif
