/*
 * The ends of a domain: does what its command line says, which is a shutdown reason or the name of another way to end.
 */
#include "guest.h"

static void halt(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

/* An IDT without entries leaves nowhere for an exception to go, nor for the fault of not finding it. */
static void triple_fault(void)
{
    static const struct {
        uint16_t limit;
        unsigned long base;
    } __attribute__((packed)) empty = {0, 0};
    __asm__ volatile("lidt %0; ud2" ::"m"(empty));
}

static void starve_watchdog(void)
{
    struct sched_watchdog op = {.id = 0, .timeout = 1};
    if (sched_op(SCHEDOP_watchdog, &op) == 1)
        for (;;) {
            struct sched_poll poll = {.timeout = system_time() + 1000 * MS};
            sched_op(SCHEDOP_poll, &poll);
        }
}

static void spin(void)
{
    for (;;)
        __asm__ volatile("pause");
}

static void announced(void)
{
    struct sched_shutdown op = {.reason = SHUTDOWN_crash};
    if (sched_op(SCHEDOP_shutdown_code, &op) == 0)
        shutdown(SHUTDOWN_reboot);
}

static void last_vcpu_down(void)
{
    vcpu_op(VCPUOP_down, 0, 0);
}

static void nameless(void)
{
    shutdown(SHUTDOWN_MAX + 1);
}

TEST(ending)
{
    static const char *const reasons[] = {"poweroff", "reboot", "suspend", "crash", "watchdog", "soft_reset"};
    static const struct {
        const char *name;
        void (*act)(void);
    } others[] = {{"halt", halt},       {"triple_fault", triple_fault}, {"starve_watchdog", starve_watchdog},
                  {"spin", spin},       {"announced", announced},
                  {"nameless", nameless}, {"last_vcpu_down", last_vcpu_down}};
    say("ending: %s", command_line());
    for (unsigned i = 0; i < ARRAY_SIZE(reasons); i++)
        if (streq(command_line(), reasons[i]))
            shutdown(i);
    for (unsigned i = 0; i < ARRAY_SIZE(others); i++)
        if (streq(command_line(), others[i].name))
            others[i].act();
    CHECK(!"the command line names an ending");
}
