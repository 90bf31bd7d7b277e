/*
 * Something for a debugger to stop at: `marker`, called four times, and a breakpoint of the kernel's own, which is none of the debugger's.
 */
#ifdef PV
#include "pv.h"
#define on_vector on_trap
typedef struct trap_frame frame_t;
#else
#include "guest.h"
typedef struct frame frame_t;
#endif

volatile unsigned long counter;
static volatile int own_breakpoints;

void marker(unsigned long number);

__attribute__((noinline)) void marker(unsigned long number)
{
    counter += number;
}

static void on_breakpoint(frame_t *frame)
{
    (void)frame;
    own_breakpoints++;
}

TEST(debug)
{
    on_vector(3, on_breakpoint);
    say("ready");
    for (unsigned long number = 1; number <= 3; number++)
        marker(number);
    if (!starts_with(command_line(), "plain")) { /* a KVM that interprets ring 0 does not know INT3 */
        __asm__ volatile("int3");
        CHECK_EQ(own_breakpoints, 1);
    }
    marker(10);
    CHECK_EQ(counter, 16);
}
