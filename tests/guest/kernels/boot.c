/*
 * What a PVH kernel is handed: start_info, its memory map, command line, modules and ACPI tables, and the registers it is
 * entered with. Wants the command line "one two=2" and a module of 5000 bytes, each the number of its place, modulo 251.
 */
#include "guest.h"

#define MODULE_SIZE 5000

TEST(magic_and_version)
{
    CHECK_EQ(start_info()->magic, XEN_HVM_START_MAGIC_VALUE);
    CHECK(start_info()->version >= 1);
}

TEST(cmdline)
{
    CHECK(streq(command_line(), "one two=2"));
}

TEST(module)
{
    const struct hvm_modlist_entry *module = (void *)(unsigned long)start_info()->modlist_paddr;
    const uint8_t *bytes;
    CHECK_EQ(start_info()->nr_modules, 1);
    CHECK_EQ(module->size, MODULE_SIZE);
    CHECK_EQ(module->paddr % PAGE_SIZE, 0);
    bytes = (void *)(unsigned long)module->paddr;
    for (unsigned i = 0; i < MODULE_SIZE; i++)
        CHECK_EQ(bytes[i], i % 251);
}

TEST(memory_map_holds_what_was_handed_over)
{
    const struct hvm_memmap_table_entry *map = (void *)(unsigned long)start_info()->memmap_paddr;
    const struct hvm_modlist_entry *module = (void *)(unsigned long)start_info()->modlist_paddr;
    uint64_t places[] = {start_info_gpa, start_info()->cmdline_paddr, module->paddr, module->paddr + module->size - 1,
                         (unsigned long)hypercall_page};
    CHECK(start_info()->memmap_entries > 0);
    for (unsigned place = 0; place < ARRAY_SIZE(places); place++) {
        bool found = false;
        for (unsigned i = 0; i < start_info()->memmap_entries; i++)
            found |= places[place] >= map[i].addr && places[place] - map[i].addr < map[i].size;
        CHECK(found);
    }
}

TEST(rsdp)
{
    const uint8_t *rsdp = (void *)(unsigned long)start_info()->rsdp_paddr;
    uint8_t sum = 0;
    CHECK(rsdp);
    CHECK(memcmp(rsdp, "RSD PTR ", 8) == 0);
    for (unsigned i = 0; i < 20; i++)
        sum += rsdp[i];
    CHECK_EQ(sum, 0);
}
