/*
 * vcpu_op of the running vCPU: its vcpu_info moves once and keeps working, its account adds up, and wrong numbers and
 * pointers are refused.
 */
#include "guest.h"

#define CROSSING (PAGE_SIZE - sizeof(vcpu_info_t) + 8)

static uint8_t info_page[PAGE_SIZE] PAGE_ALIGNED;
static uint8_t state_page[2 * PAGE_SIZE] PAGE_ALIGNED;
#define INFO_OFFSET 128

static long register_info(unsigned long gfn, uint32_t offset)
{
    struct vcpu_register_vcpu_info op = {.mfn = gfn, .offset = offset};
    return vcpu_op(VCPUOP_register_vcpu_info, 0, &op);
}

TEST(is_up)
{
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 0, 0), 1);
}

TEST(no_such_vcpu)
{
    for (unsigned cmd = VCPUOP_initialise; cmd <= VCPUOP_send_nmi; cmd++)
        CHECK_ERR(vcpu_op(cmd, 1, info_page), XEN_ENOENT);
    CHECK_ERR(vcpu_op(VCPUOP_is_up, 0xffffffff, 0), XEN_ENOENT);
}

TEST(up_of_a_running_vcpu)
{
    CHECK_OK(vcpu_op(VCPUOP_up, 0, 0));
    CHECK_EQ(vcpu_op(VCPUOP_is_up, 0, 0), 1);
}

TEST(vcpu_info_must_lie_in_one_page)
{
    CHECK(register_info(gfn_of(info_page), CROSSING) < 0);
    CHECK(register_info(gfn_of(info_page), PAGE_SIZE) < 0);
    CHECK(register_info(gfn_of(info_page), 0xfffffff0) < 0);
}

TEST(vcpu_info_must_lie_in_memory)
{
    CHECK_ERR(register_info(UNPOPULATED_GFN, 0), XEN_EINVAL);
}

TEST(vcpu_info_moves)
{
    volatile vcpu_info_t *info = (void *)(info_page + INFO_OFFSET);
    struct evtchn_bind_ipi bind = {.vcpu = 0};
    struct evtchn_send send;
    REQUIRE(map_shared_info());
    REQUIRE(event_channel_op(EVTCHNOP_bind_ipi, &bind) == 0);
    CHECK_OK(register_info(gfn_of(info_page), INFO_OFFSET));
    /* Events may have been missed around the move: the guest is told to look. */
    CHECK(info->evtchn_upcall_pending);
    info->evtchn_upcall_pending = 0;
    info->evtchn_pending_sel = 0;
    send.port = bind.port;
    CHECK_OK(event_channel_op(EVTCHNOP_send, &send));
    CHECK(info->evtchn_upcall_pending);
    CHECK_EQ(info->evtchn_pending_sel, 1);
}

TEST(vcpu_info_moves_once)
{
    CHECK(register_info(gfn_of(info_page), INFO_OFFSET) < 0);
}

TEST(time_is_kept_in_vcpu_info)
{
    volatile vcpu_time_info_t *time = &((volatile vcpu_info_t *)(info_page + INFO_OFFSET))->time;
    uint64_t before = system_time(), now = read_clock(time);
    CHECK(time->version > 0);
    CHECK(time->tsc_to_system_mul > 0);
    CHECK(now + 20 * MS > before && now < system_time() + 20 * MS);
}

TEST(runstate_adds_up)
{
    struct vcpu_runstate_info info;
    uint64_t sum = 0, before = system_time();
    CHECK_OK(vcpu_op(VCPUOP_get_runstate_info, 0, &info));
    CHECK_EQ(info.state, RUNSTATE_running);
    for (int i = 0; i < 4; i++)
        sum += info.time[i];
    CHECK(info.time[RUNSTATE_running] > 0);
    CHECK(sum <= system_time() && sum + 1000 * MS > before);
}

static void check_runstate_area(unsigned cmd, unsigned long offset)
{
    volatile struct vcpu_runstate_info *info = (void *)(state_page + offset);
    struct vcpu_register_runstate_memory_area area = {0};
    memset(state_page, 0xaa, sizeof state_page);
    if (cmd == VCPUOP_register_runstate_memory_area)
        area.addr.v = (void *)info;
    else
        area.addr.p = (unsigned long)info;
    CHECK_OK(vcpu_op(cmd, 0, &area));
    CHECK_EQ(info->state, RUNSTATE_running);
    CHECK(info->time[RUNSTATE_running] > 0);
    CHECK(!(info->state_entry_time >> 63));
    CHECK_EQ(state_page[offset + sizeof *info], 0xaa);
}

TEST(runstate_area)
{
    check_runstate_area(VCPUOP_register_runstate_memory_area, 64);
}

TEST(runstate_area_by_physical_address)
{
    check_runstate_area(14 /* VCPUOP_register_runstate_phys_area, of Xen 4.18's header */, 256);
}

TEST(runstate_area_across_pages)
{
    check_runstate_area(VCPUOP_register_runstate_memory_area, PAGE_SIZE - 16);
}

TEST(physical_areas_are_within_a_page)
{
    struct vcpu_register_runstate_memory_area area = {.addr.p = (unsigned long)state_page + PAGE_SIZE - 16};
    CHECK_ERR(vcpu_op(14, 0, &area), XEN_ENXIO);
    CHECK_ERR(vcpu_op(15 /* VCPUOP_register_vcpu_time_phys_area */, 0, &area), XEN_ENXIO);
}

static void check_second_clock(unsigned long offset)
{
    volatile struct vcpu_time_info *time = (void *)(state_page + offset);
    struct vcpu_register_time_memory_area area = {.addr.v = (void *)time};
    memset(state_page, 0, sizeof state_page);
    CHECK_OK(vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &area));
    CHECK(time->version && !(time->version & 1));
    CHECK_EQ(time->tsc_to_system_mul, vcpu_info(0)->time.tsc_to_system_mul);
    CHECK(time->system_time <= system_time());
}

TEST(second_clock)
{
    check_second_clock(1024);
}

TEST(second_clock_across_pages)
{
    check_second_clock(PAGE_SIZE - 16);
}

TEST(get_physid)
{
    struct vcpu_get_physid op;
    CHECK_ERR(vcpu_op(VCPUOP_get_physid, 0, &op), XEN_EINVAL);
}

TEST(initialise_of_a_running_vcpu)
{
    static struct vcpu_hvm_context context;
    CHECK_ERR(vcpu_op(VCPUOP_initialise, 0, &context), XEN_EEXIST);
}

TEST(bad_pointer)
{
    static const unsigned cmds[] = {VCPUOP_get_runstate_info, VCPUOP_set_periodic_timer, VCPUOP_set_singleshot_timer,
                                    VCPUOP_register_vcpu_info, VCPUOP_register_runstate_memory_area};
    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++)
        CHECK_ERR(vcpu_op(cmds[i], 0, BAD_POINTER), XEN_EFAULT);
}

TEST(unknown_command)
{
    CHECK_ERR(vcpu_op(99, 0, info_page), XEN_ENOSYS);
}
