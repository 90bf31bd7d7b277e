/*
 * What a test kernel has to work with: tests and their verdicts, output, hypercalls, interrupts.
 *
 * A kernel is a file of TEST(name) { ... } functions, run in order. Each ends in one line "name: VERDICT text", VERDICT
 * being SUCCESS, SKIP, ERROR, FAILURE or CRASH: SUCCESS if the function returns without having said anything else. A test
 * that the host sees no verdict of counts as CRASH.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define __XEN_INTERFACE_VERSION__ 0x00040d00
#include <xen/xen.h>

#include <xen/arch-x86/cpuid.h>
#include <xen/arch-x86/hvm/start_info.h>
#include <xen/callback.h>
#include <xen/errno.h>
#include <xen/event_channel.h>
#include <xen/features.h>
#include <xen/grant_table.h>
#include <xen/hvm/hvm_op.h>
#include <xen/hvm/hvm_vcpu.h>
#include <xen/hvm/params.h>
#include <xen/memory.h>
#include <xen/nmi.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

#define PAGE_SIZE 4096
#define BITS (8 * (int)sizeof(long))
#define ARRAY_SIZE(array) (sizeof(array) / sizeof *(array))
#define PAGE_ALIGNED __attribute__((aligned(PAGE_SIZE)))

/* An address of which no part of any guest of ours is backed, reachable by 32-bit code, and a gfn to place things at. */
#define UNPOPULATED 0xd0000000ul
#define UNPOPULATED_GFN (UNPOPULATED / PAGE_SIZE)
#define BAD_POINTER ((void *)UNPOPULATED)
#define MS 1000000ull

struct test {
    const char *name;
    void (*run)(void);
};

#define TEST(test_name)                                                                               \
    static void test_##test_name(void);                                                               \
    static const struct test entry_of_##test_name __attribute__((section(".tests"), used)) = {        \
        #test_name, test_##test_name};                                                                \
    static void test_##test_name(void)

/* -- verdicts: each of these gives one, and CHECK and the like then leave the function they stand in ------------------ */

void verdict(const char *what, const char *format, ...);

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            verdict("FAILURE", "%s:%d: %s", __FILE_NAME__, __LINE__, #condition);         \
            return;                                                                       \
        }                                                                                 \
    } while (0)

#define CHECK_EQ_SPELLED(got, spelled, want)                                                                        \
    do {                                                                                                            \
        unsigned long got_ = (unsigned long)(got), want_ = (unsigned long)(want);                                   \
        if (got_ != want_) {                                                                                        \
            verdict("FAILURE", "%s:%d: %s is %d (%x), not %d (%x)", __FILE_NAME__, __LINE__, spelled, (long)got_,   \
                    got_, (long)want_, want_);                                                                      \
            return;                                                                                                 \
        }                                                                                                           \
    } while (0)

#define CHECK_EQ(got, want) CHECK_EQ_SPELLED(got, #got, want)
#define CHECK_ERR(call, error) CHECK_EQ_SPELLED(call, #call, -(long)(error))
#define CHECK_OK(call) CHECK_EQ_SPELLED(call, #call, 0)

/* For what a test needs but does not test. */
#define REQUIRE(condition)                                                                     \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            verdict("ERROR", "%s:%d: needed: %s", __FILE_NAME__, __LINE__, #condition);        \
            return;                                                                            \
        }                                                                                      \
    } while (0)

#define SKIP(reason)              \
    do {                          \
        verdict("SKIP", reason);  \
        return;                   \
    } while (0)

/* -- output and strings ------------------------------------------------------------------------------------------------ */

void say(const char *format, ...); /* %s, %d (long), %x (unsigned long); ends the line itself */
void debug_port(const char *text); /* by the port that works without a hypercall page */

void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *text);
bool streq(const char *a, const char *b);
bool starts_with(const char *text, const char *start);
bool all_bytes(const void *from, int value, size_t size);

/* -- hypercalls -------------------------------------------------------------------------------------------------------- */

long hypercall(unsigned number, unsigned long a1, unsigned long a2, unsigned long a3, unsigned long a4, unsigned long a5);
extern uint8_t hypercall_page[PAGE_SIZE];

#define CALL1(nr, a) hypercall(nr, (unsigned long)(a), 0, 0, 0, 0)
#define CALL2(nr, a, b) hypercall(nr, (unsigned long)(a), (unsigned long)(b), 0, 0, 0)
#define CALL3(nr, a, b, c) hypercall(nr, (unsigned long)(a), (unsigned long)(b), (unsigned long)(c), 0, 0)

#define xen_version(cmd, arg) CALL2(__HYPERVISOR_xen_version, cmd, arg)
#define memory_op(cmd, arg) CALL2(__HYPERVISOR_memory_op, cmd, arg)
#define sched_op(cmd, arg) CALL2(__HYPERVISOR_sched_op, cmd, arg)
#define hvm_op(cmd, arg) CALL2(__HYPERVISOR_hvm_op, cmd, arg)
#define event_channel_op(cmd, arg) CALL2(__HYPERVISOR_event_channel_op, cmd, arg)
#define vcpu_op(cmd, vcpu, arg) CALL3(__HYPERVISOR_vcpu_op, cmd, vcpu, arg)
#define grant_table_op(cmd, arg, count) CALL3(__HYPERVISOR_grant_table_op, cmd, arg, count)

void shutdown(unsigned reason) __attribute__((noreturn));
long get_param(unsigned index, uint64_t *value);
long set_param(unsigned index, uint64_t value);
uint64_t system_time(void);

static inline unsigned long gfn_of(const void *page)
{
    return (unsigned long)page / PAGE_SIZE;
}

/* The domain's own number, and that of the vCPU, from CPUID. */
domid_t own_domid(void);
unsigned own_vcpu(void);

/* Sets up hypercalls, and handlers of exceptions; returns whether there are hypercalls. Of lib/hvm.c or pv/lib/pv.c. */
bool platform_init(void);

/* -- shared_info ------------------------------------------------------------------------------------------------------- */

extern volatile shared_info_t *shared_info;
/* Places shared_info, in the layout of the kernel's word size, and returns whether that worked. */
bool map_shared_info(void);
long add_to_physmap(unsigned space, unsigned long idx, unsigned long gfn);

static inline volatile vcpu_info_t *vcpu_info(unsigned vcpu)
{
    return &shared_info->vcpu_info[vcpu];
}

static inline bool port_pending(evtchn_port_t port)
{
    return shared_info->evtchn_pending[port / BITS] >> (port % BITS) & 1;
}

/* -- processor --------------------------------------------------------------------------------------------------------- */

struct frame {
    unsigned long vector, error, ip, cs, flags, sp, ss; /* the last two in 64-bit code only */
};

/* Calls `handler` for a vector from now on; without one it ends the kernel with the running test's verdict CRASH. */
void on_vector(unsigned vector, void (*handler)(struct frame *));
void idt_init(void);
void lapic_enable(void);
void lapic_eoi(void);
void vcpu_entry(void);
/* What VCPUOP_initialise takes for a second vCPU, of which there is one at most: it calls `run`, on a stack of its own. */
struct vcpu_hvm_context second_vcpu(void (*run)(void));
extern uint32_t start_info_gpa;
extern uint8_t gdt_pointer[];
const struct hvm_start_info *start_info(void);
const char *command_line(void);

static inline void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
    __asm__ volatile("cpuid"
                     : "=a"(regs[0]), "=b"(regs[1]), "=c"(regs[2]), "=d"(regs[3])
                     : "0"(leaf), "2"(subleaf));
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline void outb(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void sti(void)
{
    __asm__ volatile("sti" ::: "memory");
}

static inline void cli(void)
{
    __asm__ volatile("cli" ::: "memory");
}

static inline void wait_for_interrupt(void)
{
    __asm__ volatile("sti; hlt; cli" ::: "memory");
}

#define barrier() __asm__ volatile("" ::: "memory")

/* System time as a vcpu_time_info tells it. Ref: xen/include/public/xen.h */
static inline uint64_t read_clock(volatile struct vcpu_time_info *time)
{
    uint64_t result;
    uint32_t version;
    do {
        version = time->version;
        barrier();
        uint64_t ticks = rdtsc() - time->tsc_timestamp;
        ticks = time->tsc_shift < 0 ? ticks >> -time->tsc_shift : ticks << time->tsc_shift;
        /* ticks * tsc_to_system_mul >> 32, without needing 96 bits. */
        result = time->system_time + (ticks >> 32) * time->tsc_to_system_mul +
                 ((ticks & 0xffffffff) * time->tsc_to_system_mul >> 32);
        barrier();
    } while (version & 1 || version != time->version);
    return result;
}

#endif
