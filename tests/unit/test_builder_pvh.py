from __future__ import annotations

import struct
from typing import Any

import pytest
from builder_images import CODE, ENTRY, FEATURES, GUEST_OS, KERNEL_AT, PHYS32_RELOC, Load, elf, note, pvh_elf
from builder_images import PHYS32_ENTRY as ENTRY_NOTE

from xenpy.builder import pvh
from xenpy.builder.kernel import load_kernel
from xenpy.errors import ConfigError
from xenpy.memory import PAGE_SIZE, GuestMemory

MIB = 1 << 20
RAM, RESERVED, NVS = 1, 2, 4


@pytest.fixture
def memory():
    memory = GuestMemory()
    yield memory
    memory.close()


@pytest.fixture
def build(memory, tmp_path):
    def build(data: bytes, size: int = 16 * MIB, **options: Any) -> pvh.PvhStart:
        path = tmp_path / "kernel"
        path.write_bytes(data)
        with load_kernel(path) as kernel:
            return pvh.build_pvh(memory, kernel, size=size, **options)

    return build


def text_at(memory: GuestMemory, gpa: int) -> bytes:
    return memory.read(gpa, PAGE_SIZE).split(b"\0")[0]


def start_info(memory: GuestMemory, gpa: int) -> dict[str, Any]:
    """Read the start info as a guest does."""
    names = (
        "magic",
        "version",
        "flags",
        "nr_modules",
        "modlist",
        "cmdline",
        "rsdp",
        "memmap",
        "memmap_entries",
        "reserved",
    )
    info: dict[str, Any] = dict(zip(names, struct.unpack("<IIIIQQQQII", memory.read(gpa, 56)), strict=True))
    assert (info["magic"], info["version"], info["flags"], info["reserved"]) == (0x336EC578, 1, 0, 0)
    info["modules"] = [
        struct.unpack("<QQQQ", memory.read(info["modlist"] + 32 * index, 32)) for index in range(info["nr_modules"])
    ]
    info["map"] = [
        struct.unpack("<QQII", memory.read(info["memmap"] + 24 * index, 24)) for index in range(info["memmap_entries"])
    ]
    info["cmdline"] = text_at(memory, info["cmdline"])
    return info


def test_kernel_and_start_info(build, memory):
    start = build(pvh_elf(), cmdline="console=hvc0 x=é", vcpus=2)
    assert (start.entry_eip, start.load_offset) == (KERNEL_AT, 0)
    assert memory.read(KERNEL_AT, len(CODE)) == CODE
    assert start.kernel == (KERNEL_AT, KERNEL_AT + len(CODE) + 0x1000)
    info = start_info(memory, start.start_info_gpa)
    assert start.start_info_gpa >= start.kernel.end
    assert start.start_info_gpa < start.kernel.end + 2 * PAGE_SIZE
    assert info["cmdline"] == "console=hvc0 x=é".encode()
    assert (info["nr_modules"], info["modlist"]) == (0, 0)
    assert memory.read(info["rsdp"], 8) == b"RSD PTR "
    assert (info["rsdp"], [entry[:3] for entry in info["map"]]) == (start.rsdp_gpa, list(start.memory_map))


@pytest.mark.parametrize("bits", [32, 64])
def test_entry_of_zero(build, memory, bits):
    machine = 62 if bits == 64 else 3
    start = build(pvh_elf(at=0, bits=bits, machine=machine))
    assert (start.entry_eip, memory.read(0, len(CODE))) == (0, CODE)
    assert start.start_info_gpa >= MIB


def test_memory_map_below_the_hole(build, memory):
    start = build(pvh_elf(), 64 * MIB)
    (ram, nvs, special) = start_info(memory, start.start_info_gpa)["map"]
    assert ram == (0, 64 * MIB, RAM, 0)
    assert nvs[0] == 0xFC000000
    assert (nvs[1] % PAGE_SIZE, nvs[2:]) == (0, (NVS, 0))
    assert special == (0xFEFF8000, 0x8000, RESERVED, 0)
    assert memory.read(0xFEFFC000, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert memory.read(0xFEFFF000, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_memory_map_around_the_hole(build, memory):
    start = build(pvh_elf(), 5 << 30)
    entries = [entry[:3] for entry in start_info(memory, start.start_info_gpa)["map"]]
    assert entries[0] == (0, 0xFC000000, RAM)
    assert entries[-1] == (1 << 32, (5 << 30) - 0xFC000000, RAM)
    assert memory.is_ram(0x100000 + (1 << 20) // 8)
    assert not memory.is_ram(0xFD000)


@pytest.mark.parametrize("size", [0, -PAGE_SIZE, PAGE_SIZE + 1, 1 << 40])
def test_impossible_sizes_of_memory(build, size):
    with pytest.raises(ConfigError, match="memory of"):
        build(pvh_elf(), size)


@pytest.mark.parametrize(("vcpus", "max_vcpus"), [(0, None), (2, 1), (1, 5000)])
def test_impossible_numbers_of_vcpus(build, vcpus, max_vcpus):
    with pytest.raises(ConfigError, match="vcpus="):
        build(pvh_elf(), vcpus=vcpus, max_vcpus=max_vcpus)


# -- kernels ----------------------------------------------------------------------------------------------------------


def test_segments_go_where_they_want(build, memory):
    loads = [
        Load(0x400000, b"later", vaddr=0xFFFFFFFF81000000),
        Load(0x200000, b"first", memsz=0x2000, vaddr=0),
        Load(0x800000, b"", memsz=0x1000),
        Load(0xFFFFFFFF00000000, b"", memsz=0),
    ]
    start = build(elf(loads, note(ENTRY_NOTE, 0x400000)))
    assert (memory.read(0x200000, 6), memory.read(0x400000, 6)) == (b"first\0", b"later\0")
    assert start.kernel == (0x200000, 0x801000)


def test_holes_of_the_file_read_as_zeroes(build, memory):
    code = b"\1" * 0x1000 + bytes(0x40000) + b"\2" * 0x1000
    build(pvh_elf(code))
    assert memory.read(KERNEL_AT, len(code)) == code


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (elf([Load(KERNEL_AT)]), r"lacks .*PHYS32_ENTRY \(18\).*CONFIG_PVH"),
        (elf([Load(KERNEL_AT)], note(ENTRY, 1) + note(5, b"xen-3.0") + note(8, b"generic")), 'type="pv"'),
        (elf([], note(ENTRY_NOTE, 0)), "no segment to load"),
        (
            elf([Load(KERNEL_AT), Load(KERNEL_AT + len(CODE) - 1)], note(ENTRY_NOTE, KERNEL_AT)),
            "segment 0 .*overlaps segment 1",
        ),
        (pvh_elf(entry=KERNEL_AT + (1 << 20)), r"PHYS32_ENTRY 0x300000 .*\[0x200000, 0x201800\) would be right"),
        (pvh_elf(at=64 * MIB), r"segment 0 .*beyond low RAM \[0, 0x1000000\); memory=65 or more"),
        (pvh_elf(at=0xFFFFFFFF81000000), "linked for physical addresses below 0xfc000000"),
        (pvh_elf(at=0xFF000000), "linked for physical addresses below 0xfc000000"),
    ],
)
def test_kernels_that_cannot_be_loaded(build, data, reason):
    with pytest.raises(ConfigError, match=f"kernel: .*{reason}"):
        build(data)


def relocatable(*words: int) -> bytes:
    return pvh_elf(at=0x4000000, entry=0x4000010, extra=note(PHYS32_RELOC, struct.pack(f"<{len(words)}I", *words)))


def test_relocation_when_the_place_is_not_ram(build, memory):
    start = build(relocatable(0x200000, 0x300000, 0xFFFFFF))
    assert (start.load_offset, start.entry_eip) == (0x400000 - 0x4000000, 0x400010)
    assert memory.read(0x400000, len(CODE)) == CODE
    assert start.kernel.start == 0x400000


def test_no_relocation_when_the_place_is_ram(build):
    assert build(relocatable(0x200000), 128 * MIB).load_offset == 0


@pytest.mark.parametrize("words", [(0x200000, 0x1000000), (0x200000, 0x200000, 0x2007FF), (0x1000000, 1, 0x1000000)])
def test_relocation_within_its_bounds_only(build, words):
    with pytest.raises(ConfigError, match="beyond low RAM"):
        build(relocatable(*words))


@pytest.mark.parametrize(
    ("extra", "legacy"),
    [
        (b"", False),
        (note(GUEST_OS, b"linux\0"), True),
        (note(GUEST_OS, b"linux\0") + note(FEATURES, b"linux_rsdp_unrestricted"), False),
    ],
)
def test_rsdp_where_an_old_linux_looks(build, memory, extra, legacy):
    start = build(pvh_elf(extra=extra))
    assert (start.rsdp_gpa == 0xFFFC0) == legacy
    assert memory.read(start.rsdp_gpa, 8) == b"RSD PTR "


# -- initrd and command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_file", [True, False])
def test_initrd(build, memory, tmp_path, as_file):
    content = b"initrd" * 3000
    path = tmp_path / "initrd"
    path.write_bytes(content)
    start = build(pvh_elf(), ramdisk=path if as_file else content)
    info = start_info(memory, start.start_info_gpa)
    assert start.ramdisk is not None
    assert info["modules"] == [(start.ramdisk.start, len(content), 0, 0)]
    assert start.ramdisk.start % PAGE_SIZE == 0
    assert start.ramdisk.start >= start.start_info_gpa + len(info["cmdline"])
    assert memory.read(start.ramdisk.start, len(content)) == content


def test_initrd_below_a_kernel_at_the_end_of_ram(build, memory):
    content = b"\xaa" * (4 * MIB)
    start = build(pvh_elf(at=14 * MIB), ramdisk=content)
    assert start.ramdisk is not None
    assert start.ramdisk.start >= MIB
    assert start.ramdisk.end <= 14 * MIB
    assert memory.read(start.ramdisk.start, len(content)) == content
    assert memory.read(14 * MIB, len(CODE)) == CODE


def test_initrd_that_does_not_fit(build, tmp_path):
    path = tmp_path / "initrd"
    path.write_bytes(bytes(20 * MIB))
    with pytest.raises(ConfigError, match=r"initrd: the initrd .*does not fit.*memory=23 or more") as caught:
        build(pvh_elf(), ramdisk=path)
    needed = int(str(caught.value).split("memory=")[1].split()[0])
    other = GuestMemory()
    with load_kernel(tmp_path / "kernel") as kernel:
        assert pvh.build_pvh(other, kernel, size=needed * MIB, ramdisk=path).ramdisk is not None
    other.close()


def test_initrd_that_fits_in_no_guest(build, tmp_path):
    with (tmp_path / "initrd").open("wb") as stream:
        stream.truncate(5 << 30)
    with pytest.raises(ConfigError, match=r"initrd: .*does not fit.*at most 0xfbdfd000 would be right"):
        build(pvh_elf(), 8 << 30, ramdisk=tmp_path / "initrd")


@pytest.mark.parametrize(("name", "reason"), [("empty", "empty"), ("nowhere", "No such file"), (".", "Is a directory")])
def test_initrds_that_cannot_be_read(build, tmp_path, name, reason):
    (tmp_path / "empty").touch()
    path = tmp_path / name
    with pytest.raises(ConfigError, match=f"^{path}: .*{reason}"):
        build(pvh_elf(), ramdisk=path)


def test_initrd_of_no_bytes(build):
    with pytest.raises(ConfigError, match="ramdisk: empty"):
        build(pvh_elf(), ramdisk=b"")


def test_command_lines_that_the_kernel_would_cut(build, memory, tmp_path):
    path = tmp_path / "kernel"
    path.write_bytes(pvh_elf())
    with load_kernel(path) as kernel:
        kernel.cmdline_max = 10
        with pytest.raises(ConfigError, match="kernel: the command line has 11 bytes; the kernel takes at most 10"):
            pvh.build_pvh(memory, kernel, size=16 * MIB, cmdline="x" * 11)
    with pytest.raises(ConfigError, match="NUL"):
        build(pvh_elf(), cmdline="a\0b")
