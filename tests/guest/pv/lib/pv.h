/*
 * What a PV test kernel has to work with, beside guest.h: page tables, exceptions, user mode.
 *
 * The kernel finds itself mapped at VIRT_BASE. It handles every exception, system call and event; one that comes out of user mode and
 * that no test has asked for ends user mode, and run_user returns it.
 */
#ifndef PV_H
#define PV_H

#include "guest.h"
#include "layout.h"

#define PTE_P 0x1ul
#define PTE_RW 0x2ul
#define PTE_US 0x4ul
#define PTE_PCD 0x10ul
#define PTE_A 0x20ul
#define PTE_D 0x40ul
#define PTE_PSE 0x80ul
#define PTE_G 0x100ul
#define PTE_NX (1ul << 63)
#define PTE_GUEST_KERNEL (1ul << 52)
#define PTE_MFN 0x000ffffffffff000ul
#define PTE_RO_PAGE (PTE_P | PTE_US | PTE_A)
#define PTE_RW_PAGE (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
#define PTE_TABLE (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)

#define FLAGS_TF 0x100ul
#define FLAGS_IF 0x200ul
#define FLAGS_IOPL 0x3000ul
#define FLAGS_DF 0x400ul

#define CS32 0xe023ul
#define SS 0xe02bul
#define CS64 0xe033ul
#define RPL 3ul

/* No part of any guest of ours. */
#define NO_MFN 0x7fffffful
/* Where a test may map what it wants to have there; 32-bit code reaches it. */
#define PLAYGROUND 0x60000000ul
#define BAD_ADDRESS 0x70000000ul
#define BAD_PTR ((void *)BAD_ADDRESS)

extern struct { unsigned long rsp, rsi, flags, cs, ss, ds, es, fs, gs; } start_state;
extern start_info_t *xen_start;
extern unsigned long nr_m2p;
extern const unsigned long *m2p;

/* -- exceptions and user mode ------------------------------------------------------------------------------------------ */

struct trap_frame {
    unsigned long r15, r14, r13, r12, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rax;
    unsigned long vector, rcx, r11, error, rip, cs, flags, rsp, ss;
};

/* Ways into the kernel that have no vector. */
enum entry { ENTRY_EVENT = 256, ENTRY_FAILSAFE, ENTRY_SYSCALL, ENTRY_SYSCALL32, ENTRY_SYSENTER, ENTRY_NMI };

/* INT by these: from user mode; likewise, with events masked in the handler; from the kernel only; from nowhere. */
enum { INT_USER = 0x80, INT_MASKING = 0x81, INT_KERNEL = 0x83, INT_NONE = 0x84 };

extern uint8_t trap_entries[ENTRIES][16];
extern uint8_t stack_top[], trap_stack_top[];

/* Calls `handler` for a vector or entry from now on, wherever it comes from; null is for what this file's head says. */
void on_trap(unsigned vector, void (*handler)(struct trap_frame *));

/* Calls handlers for all vectors but INT_NONE again, after a test of set_trap_table. */
long set_traps(void);

/*
 * Runs assembly that may fault, with rax, rcx, rdx and rdi from and to a struct regs; tells by which vector it was ended, or -1. The
 * frame is then in last_trap, and what was CR2 in last_cr2.
 */
struct regs {
    unsigned long a, c, d, di;
};
#define NO_TRAP (-1)
#define TRAP_WITH(code, regs)                                                                                     \
    ({                                                                                                            \
        caught = NO_TRAP;                                                                                         \
        __asm__ volatile("lea 1f(%%rip), %%r15\n\tmov %%r15, resume_at(%%rip)\n\t" code                          \
                         "\n1:\tmovq $0, resume_at(%%rip)"                                                        \
                         : "+a"((regs).a), "+c"((regs).c), "+d"((regs).d), "+D"((regs).di)                        \
                         :                                                                                        \
                         : "r15", "rbx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc");                        \
        caught;                                                                                                   \
    })
#define TRAP_OF(code)                     \
    ({                                    \
        struct regs regs_ = {0, 0, 0, 0}; \
        TRAP_WITH(code, regs_);           \
    })
extern volatile int caught;
extern volatile unsigned long resume_at;
extern struct trap_frame last_trap;
extern unsigned long last_cr2;

static inline unsigned long flags_now(void)
{
    unsigned long flags;
    __asm__ volatile("pushfq; pop %0" : "=r"(flags));
    return flags;
}

static inline int read_trap(const volatile void *va)
{
    struct regs regs = {.d = (unsigned long)va};
    return TRAP_WITH("mov (%%rdx), %%rax", regs);
}

static inline int write_trap(volatile void *va, unsigned long value)
{
    struct regs regs = {.a = value, .d = (unsigned long)va};
    return TRAP_WITH("mov %%rax, (%%rdx)", regs);
}

/*
 * Runs a function in user mode, on tables that show what the kernel's do, until something takes it out that no handler is for, which it
 * returns: user_exit(value) does, by a system call.
 */
typedef void (*user_function)(unsigned long argument) __attribute__((noreturn));
const struct trap_frame *run_user(user_function function, unsigned long argument);
const struct trap_frame *run_user_frame(const struct trap_frame *start);
struct trap_frame user_frame(unsigned long rip, unsigned long argument);
extern uint64_t user_l4[512];
extern unsigned long user_vgcf; /* VGCF_* with which user mode is entered */

static inline void __attribute__((noreturn)) user_exit(unsigned long value)
{
    for (;;)
        __asm__ volatile("syscall" : "+a"(value)::"rcx", "r11", "memory");
}

/* Exit with the argument, with what it points to, or with USER_DONE when that has been written, or called. */
#define USER_DONE 0x123456789abcdef0
void user_echo(unsigned long argument) __attribute__((noreturn));
void user_read(unsigned long va) __attribute__((noreturn));
void user_write(unsigned long va) __attribute__((noreturn));
void user_execute(unsigned long va) __attribute__((noreturn));

/* -- page tables ------------------------------------------------------------------------------------------------------- */

static inline unsigned long pfn_of(const volatile void *page)
{
    return ((unsigned long)page - VIRT_BASE) / PAGE_SIZE;
}

unsigned long mfn_of(const volatile void *page); /* of one in the kernel's image */
uint64_t *entry_of(const volatile void *va, int level); /* null if there is none; to read only */
uint64_t maddr_of(const volatile void *p);
unsigned long pte(const volatile void *page, unsigned long flags);
long mmu_update(uint64_t ptr, uint64_t value);
long mmuext(unsigned cmd, unsigned long arg1, unsigned long arg2);
long update_va(const volatile void *va, uint64_t value, unsigned long flags);
long protect(volatile void *page, unsigned long flags); /* changes how a page of the image is mapped, and flushes */
bool map_at(unsigned long va, uint64_t entry); /* with tables of its own */

#define PIN(level, page) mmuext(MMUEXT_PIN_L1_TABLE + (level) - 1, mfn_of(page), 0)
#define UNPIN(page) mmuext(MMUEXT_UNPIN_TABLE, mfn_of(page), 0)
#define multicall(list, count) CALL2(__HYPERVISOR_multicall, list, count)
#define set_segment_base(which, base) CALL2(__HYPERVISOR_set_segment_base, which, base)
#define set_trap_table(list) CALL1(__HYPERVISOR_set_trap_table, list)
#define update_descriptor(maddr, value) CALL2(__HYPERVISOR_update_descriptor, maddr, value)
#define set_debugreg(number, value) CALL2(__HYPERVISOR_set_debugreg, number, value)
#define get_debugreg(number) CALL1(__HYPERVISOR_get_debugreg, number)
#define callback_op(cmd, arg) CALL2(__HYPERVISOR_callback_op, cmd, arg)

#endif
