/*
 * sched_op: what does not end the domain. Watchdogs count, wrong reasons and other domains are refused.
 */
#include "guest.h"

static long watchdog(uint32_t id, uint32_t timeout)
{
    struct sched_watchdog op = {.id = id, .timeout = timeout};
    return sched_op(SCHEDOP_watchdog, &op);
}

TEST(yield)
{
    CHECK_OK(sched_op(SCHEDOP_yield, 0));
}

TEST(remote_shutdown_is_the_toolstacks)
{
    struct sched_remote_shutdown op = {.domain_id = 0x7000, .reason = SHUTDOWN_poweroff};
    CHECK_ERR(sched_op(SCHEDOP_remote_shutdown, &op), XEN_ESRCH);
    op.domain_id = own_domid();
    CHECK_ERR(sched_op(SCHEDOP_remote_shutdown, &op), XEN_EPERM);
}

TEST(pin_override_is_the_hardware_domains)
{
    struct sched_pin_override op = {.pcpu = 0};
    CHECK_ERR(sched_op(SCHEDOP_pin_override, &op), XEN_EPERM);
}

TEST(watchdogs_are_two)
{
    CHECK_EQ(watchdog(0, 30), 1);
    CHECK_EQ(watchdog(0, 30), 2);
    CHECK_ERR(watchdog(0, 30), XEN_ENOSPC);
    CHECK_OK(watchdog(1, 0));
    CHECK_EQ(watchdog(0, 30), 1);
}

TEST(watchdogs_are_fed_and_stopped)
{
    CHECK_OK(watchdog(1, 60));
    CHECK_OK(watchdog(1, 0));
    CHECK_OK(watchdog(2, 0));
    CHECK_ERR(watchdog(1, 30), XEN_EINVAL);
    CHECK_ERR(watchdog(2, 0), XEN_EINVAL);
}

TEST(watchdogs_that_cannot_be)
{
    CHECK_ERR(watchdog(3, 30), XEN_EINVAL);
    CHECK_ERR(watchdog(0xffffffff, 30), XEN_EINVAL);
}

TEST(bad_pointer)
{
    static const unsigned cmds[] = {SCHEDOP_shutdown, SCHEDOP_poll, SCHEDOP_remote_shutdown, SCHEDOP_shutdown_code,
                                    SCHEDOP_watchdog};
    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++)
        CHECK_ERR(sched_op(cmds[i], BAD_POINTER), XEN_EFAULT);
}

TEST(unknown_command)
{
    CHECK_ERR(sched_op(99, 0), XEN_ENOSYS);
}
