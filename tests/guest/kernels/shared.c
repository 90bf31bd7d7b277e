/*
 * Two vCPUs count in one word by atomic instructions, with another word beside it in the page, which the first one changes three times.
 * Needs 2 vCPUs.
 */
#include "guest.h"

#define ROUNDS 600
#define STORES 3

struct {
    volatile unsigned long watched, counter;
} page PAGE_ALIGNED;
static volatile unsigned ready, done;

static void count(void)
{
    __sync_fetch_and_add(&ready, 1);
    while (ready < 2)
        __asm__ volatile("pause");
    for (unsigned round = 0; round < ROUNDS; round++)
        __asm__ volatile("lock; add $1, %0" : "+m"(page.counter));
    __sync_fetch_and_add(&done, 1);
}

static void second(void)
{
    count();
    for (;;)
        sched_op(SCHEDOP_yield, 0);
}

TEST(shared)
{
    struct vcpu_hvm_context context = second_vcpu(second);
    REQUIRE(vcpu_op(VCPUOP_initialise, 1, &context) == 0);
    REQUIRE(vcpu_op(VCPUOP_up, 1, 0) == 0);
    say("ready");
    count();
    for (uint64_t end = system_time() + 60000 * MS; done < 2 && system_time() < end;)
        sched_op(SCHEDOP_yield, 0);
    CHECK_EQ(page.counter, 2 * ROUNDS);
    for (unsigned store = 1; store <= STORES; store++)
        page.watched = store;
    CHECK_EQ(page.watched, STORES);
}
