/*
 * What the guest sees of time that is not the host's. The command line says what to look at: "stopped"; "fast=N", N times the host's rate;
 * "sleep", three sleeps of a minute each; "leap", which waits for time to leap by a minute or more.
 */
#include "guest.h"

#define MINUTE (60000 * MS)
#define TICKS 100000000ull /* some tens of milliseconds */
#define LIMIT 200000000000ull

static uint64_t now(void)
{
    return read_clock(&vcpu_info(0)->time);
}

static void spin(uint64_t ticks)
{
    for (uint64_t start = rdtsc(); rdtsc() - start < ticks;)
        __asm__ volatile("pause");
}

static uint64_t number_behind(const char *text)
{
    uint64_t value = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        value = value * 10 + (unsigned)(*text - '0');
    return value;
}

TEST(clock)
{
    const char *mode = command_line();
    REQUIRE(map_shared_info());
    uint64_t start = rdtsc(), last = now();
    say("ready");
    if (starts_with(mode, "stopped")) {
        uint64_t before = now();
        spin(TICKS);
        CHECK_EQ(now(), before);
    } else if (starts_with(mode, "fast=")) {
        uint32_t leaf[4];
        uint64_t wanted = number_behind(mode + 5);
        cpuid(0x40000003, 2, leaf);
        REQUIRE(leaf[0]);
        uint64_t before = now();
        start = rdtsc();
        spin(TICKS);
        uint64_t least = rdtsc() - start;
        uint64_t passed = now() - before, most = rdtsc() - start;
        CHECK(passed / wanted >= least * 1000 / leaf[0] * 1000 * 99 / 100);
        CHECK(passed / wanted <= most * 1000 / leaf[0] * 1000 * 101 / 100);
    } else if (starts_with(mode, "sleep")) {
        for (int minute = 1; minute <= 3; minute++) {
            uint64_t until = now() + MINUTE;
            struct sched_poll op = {.nr_ports = 0, .timeout = until};
            CHECK_OK(sched_op(SCHEDOP_poll, &op));
            while (now() < until) /* others' events end a poll as well */
                CHECK_OK(sched_op(SCHEDOP_poll, &op));
            CHECK(now() < until + 30000 * MS);
            say("minute %d", (long)minute);
        }
    } else {
        REQUIRE(starts_with(mode, "leap"));
        for (uint64_t passed; (passed = now()) - last < MINUTE; last = passed)
            CHECK(rdtsc() - start < LIMIT);
    }
}
