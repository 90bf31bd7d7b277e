/*
 * What a kernel may do to what in-guest code and the hypervisor share. Where SYSCALL enters ring 0 nothing: it is out of reach. Elsewhere a
 * kernel's ring 3 works in it, and may write anything there: the command line says what.
 */
#include "pv.h"

#define SLOT_SIZE (1ul << 39)
#define FRAMES_OFFSET (1ul << 29)
#define WINDOW_OFFSET (1ul << 30)
#define DIRECT_OFFSET (1ul << 31)
#define STACK_PAGE 18
#define STATE_PAGE 19
#define WRITES_PAGE 24
#define RECORDS_PAGE 44
#define KERNEL_CR3 1
#define USER_CR3 2
#define OWED 39
/* A gpa that is no memory, below the end of the guest-physical space and beyond it. */
#define NOWHERE 0x7ffffff000ul
#define BEYOND 0xffffffffff000ul
#define SPARE_SLOT 100
#define SPARE ((void *)(SPARE_SLOT * SLOT_SIZE))
#define OWNED (1ul << 59)
#define VALIDATED (1ul << 31)
#define LOCKED (1ul << 63)
#define TYPE_NONE_SUCH (6ul << 28)
#define ONE_REF (1ul << 32)

static volatile uint64_t *state, *frames;
static uint64_t page[512] PAGE_ALIGNED;

static unsigned long slot_base(void)
{
    return (unsigned long)m2p & ~(SLOT_SIZE - 1);
}

static uint64_t *by_map_of_memory(const volatile void *p)
{
    static unsigned long first;
    if (!first)
        first = ((const unsigned long *)xen_start->mfn_list)[0];
    return (uint64_t *)(slot_base() + DIRECT_OFFSET + maddr_of(p) - first * PAGE_SIZE);
}

static volatile uint64_t *word_of(const volatile void *p)
{
    return &frames[mfn_of(p) - ((const unsigned long *)xen_start->mfn_list)[0]];
}

static bool in_reach(void)
{
    state = (volatile uint64_t *)(slot_base() + WINDOW_OFFSET + STATE_PAGE * PAGE_SIZE);
    frames = (volatile uint64_t *)(slot_base() + FRAMES_OFFSET);
    return read_trap(state) == NO_TRAP;
}

TEST(descriptors_and_code_are_out_of_reach)
{
    static const unsigned pages[] = {0, 14, 16, 17, 20, 21, 40, 41, 42};
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++)
        CHECK_EQ(write_trap((void *)(slot_base() + WINDOW_OFFSET + pages[i] * PAGE_SIZE), 0), 14);
    CHECK_EQ(write_trap((void *)&m2p[mfn_of(page)], 0), 14);
}

TEST(shared_words_are_out_of_reach)
{
    if (in_reach())
        SKIP("this host's kernels build their frames themselves, in ring 3");
    static const unsigned pages[] = {STACK_PAGE, STATE_PAGE, WRITES_PAGE, RECORDS_PAGE};
    for (unsigned i = 0; i < ARRAY_SIZE(pages); i++) {
        CHECK_EQ(read_trap((void *)(slot_base() + WINDOW_OFFSET + pages[i] * PAGE_SIZE)), 14);
        CHECK_EQ(write_trap((void *)(slot_base() + WINDOW_OFFSET + pages[i] * PAGE_SIZE), 0), 14);
    }
    CHECK_EQ(write_trap(word_of(page), 0), 14);
    CHECK_EQ(read_trap(by_map_of_memory(page)), 14);
    CHECK_EQ(write_trap(by_map_of_memory(page), 0), 14);
}

static void ask_by_pointer(void *pointer)
{
    CALL2(__HYPERVISOR_xen_version, XENVER_extraversion, pointer);
}

static uint64_t wild_of(const char *what)
{
    return what[0] == 'b' ? BEYOND : NOWHERE;
}

static bool is(const char *what)
{
    return streq(command_line() + 1, what);
}

/* The command line is 'n' or 'b', for a gpa that is no memory, and what to write it to. The kernel need not survive. */
TEST(wild_values)
{
    uint64_t wild = wild_of(command_line()), *l4 = by_map_of_memory((void *)xen_start->pt_base);
    if (!in_reach())
        SKIP("there is nothing that it could write to");
    if (is("kernel_cr3")) {
        state[KERNEL_CR3] = wild;
        ask_by_pointer(page);
    } else if (is("user_cr3")) {
        run_user(user_echo, 0);
        state[USER_CR3] = wild;
        run_user(user_echo, 0);
    } else if (is("owed")) {
        state[OWED] = wild;
        ask_by_pointer(page);
        CHECK_EQ(state[OWED], 0);
    } else if (is("l4")) {
        l4[SPARE_SLOT] = wild | PTE_TABLE;
        ask_by_pointer(SPARE);
        l4[SPARE_SLOT] = 0;
    } else if (is("fault")) {
        l4[SPARE_SLOT] = wild | PTE_TABLE;
        read_trap(SPARE);
        l4[SPARE_SLOT] = 0;
    } else if (is("type")) {
        uint64_t before = *word_of(page);
        *word_of(page) = OWNED | VALIDATED | TYPE_NONE_SUCH | ONE_REF | 1;
        long pinned = PIN(1, page);
        *word_of(page) = before;
        CHECK_EQ(pinned, -(long)XEN_EINVAL);
    } else if (is("uses")) {
        uint64_t before = *word_of(page);
        *word_of(page) = OWNED | 7ul << 28 | 1; /* writable memory, once, but without a reference */
        update_va(page, 0, UVMF_INVLPG);
        *word_of(page) = before - ONE_REF - 1;
        CHECK_OK(update_va(page, pte(page, PTE_RW_PAGE), UVMF_INVLPG));
    } else if (is("locked")) {
        *word_of(entry_of(page, 1)) |= LOCKED;
        protect(page, PTE_RO_PAGE);
        verdict("FAILURE", "it goes on");
    } else {
        SKIP("nothing is asked for");
    }
}
