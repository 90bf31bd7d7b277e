/*
 * xen_version: each command tells what the header says it does, into a buffer of the header's size and not beyond it.
 */
#include "guest.h"

#define VIRT_START_64 0xffff800000000000ull
#define VIRT_START_32 0xf5800000u

static struct {
    char text[XEN_CAPABILITIES_INFO_LEN];
    uint8_t guard;
} buffer;

/* The text of a command, or NULL if it fails, has no end, or is followed by something that should not have changed. */
static const char *text_of(unsigned cmd, size_t size)
{
    memset(&buffer, 0xaa, sizeof buffer);
    if (xen_version(cmd, &buffer) < 0 || ((uint8_t *)&buffer)[size] != 0xaa)
        return NULL;
    for (size_t i = 0; i < size; i++)
        if (!buffer.text[i])
            return buffer.text;
    return NULL;
}

TEST(version)
{
    uint32_t regs[4];
    long version = xen_version(XENVER_version, 0);
    cpuid(0x40000001, 0, regs);
    CHECK_EQ(version, regs[0]);
    CHECK(version >> 16 >= 4);
}

TEST(extraversion)
{
    const char *text = text_of(XENVER_extraversion, XEN_EXTRAVERSION_LEN);
    CHECK(text && text[0] == '.');
}

TEST(compile_info)
{
    struct xen_compile_info info;
    memset(&info, 0xaa, sizeof info);
    CHECK_OK(xen_version(XENVER_compile_info, &info));
    CHECK(strlen(info.compiler) > 0 && strlen(info.compiler) < sizeof info.compiler);
    CHECK(strlen(info.compile_by) < sizeof info.compile_by);
    CHECK(strlen(info.compile_domain) < sizeof info.compile_domain);
    CHECK(strlen(info.compile_date) < sizeof info.compile_date);
}

TEST(capabilities)
{
    const char *text = text_of(XENVER_capabilities, XEN_CAPABILITIES_INFO_LEN);
    CHECK(text && starts_with(text, "xen-"));
}

TEST(changeset)
{
    CHECK(text_of(XENVER_changeset, XEN_CHANGESET_INFO_LEN));
}

TEST(platform_parameters)
{
    struct xen_platform_parameters parameters = {0};
    CHECK_OK(xen_version(XENVER_platform_parameters, &parameters));
    CHECK(parameters.virt_start == (xen_ulong_t)(BITS == 64 ? VIRT_START_64 : VIRT_START_32));
}

TEST(get_features)
{
    struct xen_feature_info info = {.submap_idx = 0};
    CHECK_OK(xen_version(XENVER_get_features, &info));
    CHECK(info.submap & 1 << XENFEAT_auto_translated_physmap);
    CHECK(info.submap & 1 << XENFEAT_hvm_callback_vector);
    CHECK(info.submap & 1 << XENFEAT_hvm_safe_pvclock);
    CHECK(!(info.submap & 1 << XENFEAT_dom0));
    CHECK(!(info.submap & 1 << XENFEAT_supervisor_mode_kernel));
}

TEST(get_features_of_no_submap)
{
    struct xen_feature_info info = {.submap_idx = XENFEAT_NR_SUBMAPS};
    CHECK_ERR(xen_version(XENVER_get_features, &info), XEN_EINVAL);
}

TEST(pagesize)
{
    CHECK_EQ(xen_version(XENVER_pagesize, 0), PAGE_SIZE);
    CHECK_ERR(xen_version(XENVER_pagesize, &buffer), XEN_EINVAL);
}

TEST(guest_handle)
{
    static const uint8_t want[16] = {0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 1, 2, 3, 4, 5, 6, 7, 8};
    memset(&buffer, 0xaa, sizeof buffer);
    CHECK_OK(xen_version(XENVER_guest_handle, &buffer));
    CHECK(memcmp(&buffer, want, sizeof want) == 0);
    CHECK_EQ((uint8_t)buffer.text[16], 0xaa);
}

/* The hypervisor's command line and build id are the privileged domain's to know. */
TEST(commandline_is_denied)
{
    memset(&buffer, 0xaa, sizeof buffer);
    CHECK_OK(xen_version(XENVER_commandline, &buffer));
    CHECK(streq(buffer.text, "<denied>"));
}

TEST(build_id_is_denied)
{
    CHECK_ERR(xen_version(XENVER_build_id, 0), XEN_EPERM);
}

TEST(bad_pointer)
{
    static const unsigned cmds[] = {XENVER_extraversion, XENVER_compile_info,        XENVER_capabilities,
                                    XENVER_changeset,    XENVER_platform_parameters, XENVER_get_features,
                                    XENVER_guest_handle};
    for (unsigned i = 0; i < ARRAY_SIZE(cmds); i++)
        CHECK_ERR(xen_version(cmds[i], BAD_POINTER), XEN_EFAULT);
}

TEST(unknown_command)
{
    CHECK_ERR(xen_version(99, &buffer), XEN_ENOSYS);
}
