/*
 * IRET with a frame that no processor takes: the exception is the guest's, at the place that it wanted to go to, as Xen 4.17 has it. The
 * failsafe callback is for data segments that cannot be reloaded when a vCPU is switched to, which there is no need for here.
 */
#include "pv.h"

#define CODE_64 0x00affb000000fffful
#define DATA_32 0x00cff3000000fffful
#define CODE_ABSENT 0x00af7b000000fffful
#define DATA_ABSENT 0x00cf73000000fffful
#define NO_DESCRIPTOR (600 * 8ul)
#define RING0_CODE 0xe008ul
#define NON_CANONICAL 0x8000000000001234ul
#define NP 11
#define STACK_FAULT 12
#define GP 13
#define MARK 0x1357

static uint64_t gdt[512] PAGE_ALIGNED;

static bool use_gdt(void)
{
    unsigned long frame = mfn_of(gdt);
    gdt[1] = CODE_ABSENT;
    gdt[2] = DATA_ABSENT;
    return protect(gdt, PTE_RO_PAGE) == 0 && CALL2(__HYPERVISOR_set_gdt, &frame, 512) == 0;
}

struct bad {
    unsigned long cs, ss, rip;
    unsigned vector;
    unsigned long error;
};

/* A null `rip` stands for a function. */
static const struct bad frames[] = {
    {NO_DESCRIPTOR | RPL, SS, 0, GP, NO_DESCRIPTOR},
    {SS, SS, 0, GP, SS & ~RPL},
    {RING0_CODE | RPL, SS, 0, GP, RING0_CODE},
    {1 * 8 | RPL, SS, 0, NP, 1 * 8},
    {CS64, NO_DESCRIPTOR | RPL, 0, GP, NO_DESCRIPTOR},
    {CS64, CS64, 0, GP, CS64 & ~RPL},
    {CS64, 2 * 8 | RPL, 0, STACK_FAULT, 2 * 8},
    {CS64, SS, NON_CANONICAL, GP, 0},
};

/* QEMU's emulation raises #NP for a stack segment, too, that is not present. */
static bool is_vector(unsigned seen, unsigned wanted)
{
    return seen == wanted || (wanted == STACK_FAULT && seen == NP);
}

static bool failsafe;

static void note_failsafe(struct trap_frame *frame)
{
    (void)frame;
    failsafe = true;
}

static bool is_fault_at(const struct trap_frame *frame, const struct bad *bad, const struct trap_frame *start)
{
    return is_vector(frame->vector, bad->vector) && frame->error == bad->error && frame->rip == start->rip &&
           (frame->cs & 0xffff) == start->cs && frame->ss == start->ss && frame->rsp == start->rsp &&
           frame->rdi == start->rdi && frame->rax == start->rax && frame->rcx == start->rcx;
}

TEST(to_user_mode)
{
    REQUIRE(use_gdt());
    on_trap(ENTRY_FAILSAFE, note_failsafe);
    for (unsigned i = 0; i < ARRAY_SIZE(frames); i++) {
        struct trap_frame start = user_frame(frames[i].rip ? frames[i].rip : (unsigned long)user_echo, MARK);
        start.cs = frames[i].cs;
        start.ss = frames[i].ss;
        start.rax = MARK + 1;
        const struct trap_frame *frame = run_user_frame(&start);
        if (!is_fault_at(frame, &frames[i], &start)) {
            verdict("FAILURE", "frame %d: vector %d, error %x, rip %x, cs %x, ss %x", i, frame->vector, frame->error,
                    frame->rip, frame->cs, frame->ss);
            return;
        }
        CHECK_EQ(run_user(user_echo, MARK)->rax, MARK);
    }
    CHECK(!failsafe);
    on_trap(ENTRY_FAILSAFE, NULL);
}

static const struct trap_frame *echo_by(unsigned long cs, unsigned long ss)
{
    struct trap_frame start = user_frame((unsigned long)user_echo, MARK);
    start.cs = cs;
    start.ss = ss;
    return run_user_frame(&start);
}

/* In-guest code knows a selector by which user mode has been returned to, and must not once its descriptor is gone. */
TEST(to_user_mode_by_a_descriptor_that_is_gone)
{
    unsigned long cs = 3 * 8 | RPL, ss = 4 * 8 | RPL;
    for (unsigned gone = 3; gone < 5; gone++) {
        CHECK_OK(update_descriptor(maddr_of(&gdt[3]), CODE_64));
        CHECK_OK(update_descriptor(maddr_of(&gdt[4]), DATA_32));
        for (unsigned i = 0; i < 3; i++)
            CHECK_EQ(echo_by(cs, ss)->rax, MARK);
        CHECK_OK(update_descriptor(maddr_of(&gdt[gone]), 0));
        const struct trap_frame *frame = echo_by(cs, ss);
        CHECK_EQ(frame->vector, GP);
        CHECK_EQ(frame->error, gone * 8);
        CHECK_EQ(frame->rip, (unsigned long)user_echo);
    }
}

static volatile struct trap_frame seen;
static volatile unsigned long good_rip;

static void put_right(struct trap_frame *frame)
{
    seen = *frame;
    frame->rip = good_rip;
    frame->cs = CS64 & ~RPL;
    frame->ss = SS;
}

#ifdef HYPERCALL_PAGE
#define IRET "jmp hypercall_page + 23 * 32"
#else
#define IRET "push %%rcx; push %%r11; push %%rax; mov $23, %%eax; syscall"
#endif

static void kernel_iret(unsigned long rip, unsigned long cs, unsigned long ss)
{
    __asm__ volatile("lea 1f(%%rip), %%rax; mov %%rax, good_rip(%%rip)\n\t"
                     "mov %%rsp, %%rax; push %%rdx; push %%rax; push $0; push %%rsi; push %%rdi; push $0\n\t" IRET "\n1:"
                     : "+D"(rip), "+S"(cs), "+d"(ss)
                     :
                     : "rax", "rcx", "r11", "memory", "cc");
}

TEST(to_the_kernel)
{
    static const unsigned vectors[] = {NP, STACK_FAULT, GP};
    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++)
        on_trap(vectors[i], put_right);
    for (unsigned i = 0; i < ARRAY_SIZE(frames); i++) {
        const struct bad *bad = &frames[i];
        unsigned long rip = bad->rip ? bad->rip : (unsigned long)user_echo;
        seen.vector = 0;
        kernel_iret(rip, bad->cs & ~RPL, bad->ss);
        if (!is_vector(seen.vector, bad->vector) || seen.error != bad->error || seen.rip != rip ||
            (seen.cs & 0xffff) != (bad->cs & ~RPL) || seen.ss != bad->ss) {
            verdict("FAILURE", "frame %d: vector %d, error %x, rip %x, cs %x, ss %x", i, seen.vector, seen.error, seen.rip,
                    seen.cs, seen.ss);
            return;
        }
    }
    for (unsigned i = 0; i < ARRAY_SIZE(vectors); i++)
        on_trap(vectors[i], NULL);
}
