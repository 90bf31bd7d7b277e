/*
 * CPUID and the hypercall page's MSR: the leaves by which a guest finds Xen and itself.
 */
#include "guest.h"

#define XEN 0x40000000u

TEST(signature)
{
    uint32_t regs[4];
    cpuid(XEN, 0, regs);
    CHECK(regs[0] >= XEN + 4 && regs[0] < XEN + 0x100);
    CHECK_EQ(regs[1], XEN_CPUID_SIGNATURE_EBX);
    CHECK_EQ(regs[2], XEN_CPUID_SIGNATURE_ECX);
    CHECK_EQ(regs[3], XEN_CPUID_SIGNATURE_EDX);
}

TEST(no_other_hypervisor_beside_it)
{
    uint32_t regs[4];
    cpuid(XEN + 0x100, 0, regs);
    CHECK(regs[1] != XEN_CPUID_SIGNATURE_EBX);
    CHECK(regs[1] != 0x4b4d564b /* KVMK */);
}

TEST(hypervisor_bit)
{
    uint32_t regs[4];
    cpuid(1, 0, regs);
    CHECK(regs[2] >> 31);
}

TEST(hypercall_page)
{
    uint32_t regs[4];
    cpuid(XEN + 2, 0, regs);
    CHECK_EQ(regs[0], 1);
    CHECK_EQ(regs[1], 0x40000000);
}

TEST(time)
{
    uint32_t regs[4];
    uint64_t start, ticks;
    cpuid(XEN + 3, 0, regs);
    CHECK(regs[2] > 100000); /* kHz */
    /* What it says of the TSC is true within a factor that no clock error reaches. */
    start = rdtsc();
    for (uint64_t until = system_time() + 10 * MS; system_time() < until;)
        ;
    ticks = rdtsc() - start;
    CHECK(ticks >= (uint64_t)regs[2] * 9 && ticks < (uint64_t)regs[2] * 1000);
}

TEST(who_we_are)
{
    uint32_t regs[4];
    cpuid(XEN + 4, 0, regs);
    CHECK(regs[0] & XEN_HVM_CPUID_VCPU_ID_PRESENT);
    CHECK_EQ(regs[1], 0);
    CHECK(regs[0] & XEN_HVM_CPUID_DOMID_PRESENT);
    CHECK(regs[2] > 0 && regs[2] < DOMID_FIRST_RESERVED);
}

TEST(vendor_is_a_processors)
{
    uint32_t regs[4];
    cpuid(0, 0, regs);
    CHECK(regs[0] >= 1 && regs[1] && regs[2] && regs[3]);
}

static volatile bool faulted;

static void skip_wrmsr(struct frame *frame)
{
    faulted = true;
    frame->ip += 2;
}

#define GP 13

TEST(hypercall_page_where_there_can_be_none)
{
    on_vector(GP, skip_wrmsr);
    faulted = false;
    wrmsr(0x40000000, (unsigned long)hypercall_page + 8);
    CHECK(faulted);
    faulted = false;
    wrmsr(0x40000000, UNPOPULATED);
    CHECK(faulted);
    on_vector(GP, NULL);
    CHECK(xen_version(XENVER_version, 0) > 0);
}
