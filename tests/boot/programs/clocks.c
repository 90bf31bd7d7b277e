/* Says every second what the guest's clocks show.
 *
 * usage: clocks SECONDS     prints "clocks MONOTONIC REALTIME", both in nanoseconds. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long long now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : 10;
    for (int second = 0; second < seconds; second++) {
        printf("clocks %lld %lld\n", now(CLOCK_MONOTONIC), now(CLOCK_REALTIME));
        fflush(stdout);
        sleep(1);
    }
    return 0;
}
