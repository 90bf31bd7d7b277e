/*
 * The second copy of a vCPU's clock that VCPUOP_register_vcpu_time_memory_area asks for, which processes may read by themselves; and the
 * runstate area. Ref: xen/include/public/vcpu.h
 */
#include "pv.h"

#define SECOND (1000 * MS)
#define REGISTER_TIME_PHYS 15 /* of Xen 4.19's header, as is 14, for runstates */
#define REGISTER_RUNSTATE_PHYS 14
#define ROUNDS 2000

static uint8_t pages[2][PAGE_SIZE] PAGE_ALIGNED;
static uint8_t other[PAGE_SIZE] PAGE_ALIGNED;

static long register_time(volatile void *area)
{
    struct vcpu_register_time_memory_area op = {.addr.v = (void *)area};
    return vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &op);
}

static bool is_clock(volatile struct vcpu_time_info *time)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t before = system_time(), here = read_clock(time), after = system_time();
        if (here + MS < before || here > after + MS)
            return false;
    }
    return true;
}

TEST(a_second_clock)
{
    volatile struct vcpu_time_info *time = (void *)pages[0];
    CHECK_OK(register_time(time));
    CHECK(time->version && !(time->version & 1));
    CHECK_EQ(time->tsc_to_system_mul, vcpu_info(0)->time.tsc_to_system_mul);
    CHECK_EQ(time->flags, vcpu_info(0)->time.flags);
    CHECK(is_clock(time));
}

static void __attribute__((noreturn)) tells_time(unsigned long area)
{
    user_exit(read_clock((volatile struct vcpu_time_info *)area));
}

TEST(processes_can_read_it)
{
    uint64_t before = system_time();
    const struct trap_frame *frame = run_user(tells_time, (unsigned long)pages[0]);
    CHECK_EQ(frame->vector, ENTRY_SYSCALL);
    CHECK(frame->rax + MS >= before && frame->rax <= system_time() + MS);
}

TEST(across_two_pages)
{
    volatile struct vcpu_time_info *time = (void *)(pages[0] + PAGE_SIZE - 8);
    REQUIRE(map_at(PLAYGROUND, pte(pages[1], PTE_RW_PAGE)) && map_at(PLAYGROUND + PAGE_SIZE, pte(pages[0], PTE_RW_PAGE)));
    volatile struct vcpu_time_info *split = (void *)(PLAYGROUND + PAGE_SIZE - 8);
    memset(pages, 0, sizeof pages);
    CHECK_OK(register_time(split));
    CHECK(is_clock(split));
    CHECK_EQ(*(uint64_t *)(pages[0] + PAGE_SIZE - 8), 0);
    CHECK_OK(register_time(time));
    CHECK(is_clock(time));
}

/* As by Xen, which copies to wherever the address leads, if it leads anywhere. */
TEST(addresses)
{
    CHECK_ERR(register_time((void *)m2p), XEN_EFAULT);
    CHECK_ERR(register_time((void *)0x8000000000000000), XEN_EFAULT);
    CHECK_OK(register_time(BAD_PTR));
    CHECK_OK(register_time((void *)xen_start->pt_base)); /* which is read-only */
    CHECK_OK(register_time(NULL));
}

TEST(null_ends_it)
{
    volatile struct vcpu_time_info *time = (void *)other;
    CHECK_OK(register_time(time));
    CHECK(time->version);
    CHECK_OK(register_time(NULL));
    memset(other, 0, sizeof other);
    struct vcpu_register_runstate_memory_area area = {.addr.v = (void *)pages[0]};
    CHECK_OK(vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area));
    volatile struct vcpu_runstate_info *info = (void *)pages[0];
    struct vcpu_set_periodic_timer timer = {.period_ns = 2 * MS};
    REQUIRE(vcpu_op(VCPUOP_set_periodic_timer, 0, &timer) == 0);
    uint64_t first = info->state_entry_time, end = system_time() + 20 * SECOND;
    while (info->state_entry_time == first && system_time() < end)
        ;
    CHECK(info->state_entry_time != first); /* the vCPU has been out of the guest */
    REQUIRE(vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL) == 0);
    CHECK_EQ(time->version, 0);
    area.addr.v = NULL;
    CHECK_OK(vcpu_op(VCPUOP_register_runstate_memory_area, 0, &area));
}

static long register_phys(int cmd, unsigned long address)
{
    struct vcpu_register_time_memory_area op = {.addr.p = address};
    return vcpu_op(cmd, 0, &op);
}

TEST(by_machine_address)
{
    static const int commands[] = {REGISTER_TIME_PHYS, REGISTER_RUNSTATE_PHYS};
    for (unsigned i = 0; i < 2; i++) {
        CHECK_OK(register_phys(commands[i], maddr_of(other)));
        CHECK_ERR(register_phys(commands[i], mfn_of((void *)xen_start->pt_base) * PAGE_SIZE), XEN_EFAULT);
        CHECK_ERR(register_phys(commands[i], 0x40000000), XEN_EFAULT); /* in-guest code's */
        CHECK_ERR(register_phys(commands[i], NO_MFN * PAGE_SIZE), XEN_EFAULT);
        CHECK_OK(register_phys(commands[i], ~0ul));
    }
}
