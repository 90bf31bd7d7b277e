"""What cannot be built as a PV guest, and what the message says of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from builder_images import Load, elf, note
from pv_rig import KERNEL_AT, MIB, VIRT_BASE, build, check, pv_elf, pv_notes

from xenpy.abi.elfnote import XEN_ELFNOTE
from xenpy.errors import ConfigError
from xenpy.memory import PAGE_SIZE, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

XEN_START = 0xFFFF800000000000
BEYOND = VIRT_BASE + KERNEL_AT + (1 << 20)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    assert not memory.regions or memory.ram_pages, "refused or built"
    memory.close()


def refused(memory: GuestMemory, reason: str, data: bytes, size: int = 32 * MIB, **options: Any) -> str:
    with pytest.raises(ConfigError, match=reason) as caught:
        build(memory, Path("kernel"), data, size, **options)
    assert "would be right" in str(caught.value) or "not a 64-bit PV kernel: it" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (elf([Load(KERNEL_AT)]), "kernel: not a 64-bit PV kernel: it has no Xen ELF notes"),
        (
            elf([Load(KERNEL_AT)], pv_notes(), bits=32, machine=3),
            "it is a 32-bit one, and those are not supported; its 64-bit build would",
        ),
        (elf([], pv_notes()), "kernel: no segment to load"),
        (pv_elf(ENTRY=BEYOND), rf"kernel: its entry point {BEYOND:#x} .*\[0xffffffff80200000, 0xffffffff80204000\)"),
        (pv_elf(ENTRY=VIRT_BASE), "its entry point"),
        (pv_elf(HYPERCALL_PAGE=VIRT_BASE + KERNEL_AT + 8), "HYPERCALL_PAGE is 0xffffffff80200008; a page in"),
        (pv_elf(HYPERCALL_PAGE=BEYOND), f"HYPERCALL_PAGE is {BEYOND:#x}; a page in"),
        (pv_elf(HV_START_LOW=XEN_START + 1), "HV_START_LOW is 0xffff800000000001; at most 0xffff800000000000"),
        (pv_elf(VIRT_BASE=VIRT_BASE + 8), "VIRT_BASE is 0xffffffff80000008; a page's address"),
        (pv_elf(PADDR_OFFSET=KERNEL_AT + 1), r"segment 0 .* is below XEN_ELFNOTE_PADDR_OFFSET 0x200001"),
        (pv_elf(VIRT_BASE=XEN_START, ENTRY=XEN_START + KERNEL_AT), r"the kernel .* would be at \[0xffff800000200000"),
        (pv_elf(VIRT_BASE=1 << 47, ENTRY=(1 << 47) + KERNEL_AT), r"the kernel .* would be at \[0x800000200000"),
        (
            pv_elf(VIRT_BASE=(1 << 47) - 5 * MIB // 2, ENTRY=(1 << 47) - MIB // 2),
            "initial mapping .* an address range within",
        ),
        (
            pv_elf(VIRT_BASE=(1 << 64) - 5 * MIB // 2, ENTRY=(1 << 64) - MIB // 2),
            "initial mapping .* an address range within",
        ),
        (pv_elf(INIT_P2M=XEN_START), r"INIT_P2M would be at \[0xffff800000000000, 0xffff800000010000\)"),
        (pv_elf(INIT_P2M=(1 << 47) - PAGE_SIZE), "INIT_P2M would be at"),
        (pv_elf(INIT_P2M=VIRT_BASE - PAGE_SIZE), "reaches into the kernel's mapping at 0xffffffff80000000"),
        (
            pv_elf(FEATURES=b"!auto_translated_physmap"),
            "requires auto_translated_physmap, .*a PV kernel that does without",
        ),
        (
            pv_elf(FEATURES=b"!dom0|!hvm_pirqs|!writable_page_tables", PHYS32_ENTRY=KERNEL_AT),
            'requires hvm_pirqs, dom0, which .*type="pvh" would',
        ),
    ],
)
def test_kernels(memory: GuestMemory, data: bytes, reason: str) -> None:
    refused(memory, reason, data)
    assert memory.regions == (), "no memory was added for it"


def test_a_32_bit_kernel_is_named_as_one_although_its_last_note_is_cut_short(memory: GuestMemory) -> None:
    """As that of GRUB's image is."""
    cut = pv_notes() + note(XEN_ELFNOTE.PAE_MODE, b"yes,bimodal\0")[:-8]
    refused(memory, "it is a 32-bit one", elf([Load(KERNEL_AT)], cut, bits=32, machine=3))
    with pytest.raises(ConfigError, match="truncated"):
        build(memory, Path("kernel"), elf([Load(KERNEL_AT)], cut))


def test_features_depend_on_what_is_offered(memory: GuestMemory) -> None:
    data = pv_elf(FEATURES=b"!writable_page_tables|!pae_pgdir_above_4gb|!mmu_pt_update_preserve_ad|dom0")
    refused(memory, "requires mmu_pt_update_preserve_ad, which", data, features=0)
    check(memory, build(memory, Path("kernel"), data))


@pytest.mark.parametrize(
    ("notes", "ramdisk"), [({}, None), ({}, 5 * MIB), ({"MOD_START_PFN": 1, "INIT_P2M": 1 << 39}, 5 * MIB)]
)
@pytest.mark.parametrize("kernel_at", [KERNEL_AT, 50 * MIB, 3 << 29])
def test_the_memory_that_is_named_is_the_least_that_will_do(
    memory: GuestMemory, notes: dict[str, Any], ramdisk: int | None, kernel_at: int
) -> None:
    data = pv_elf(at=kernel_at, ENTRY=VIRT_BASE + kernel_at, **notes)
    options: dict[str, Any] = {"ramdisk": b"x" * ramdisk} if ramdisk else {}
    message = refused(memory, "kernel(?: and ramdisk)?: does not fit.*memory=", data, PAGE_SIZE, **options)
    assert ("and ramdisk" in message) == bool(ramdisk)
    found = re.search(r"memory=(\d+) or more", message)
    assert found
    least = int(found[1])
    refused(memory, f"memory={least} or more", data, (least - 1) * MIB, **options)
    check(memory, build(memory, Path("kernel"), data, least * MIB, **options))


def test_too_few_of_many_pages_to_start_with(memory: GuestMemory) -> None:
    refused(memory, "of a guest that starts with 0x10; memory=", pv_elf(), nr_pages=16)


def test_a_kernel_for_addresses_that_no_guest_has(memory: GuestMemory) -> None:
    data = pv_elf(at=1 << 40, VIRT_BASE=0, ENTRY=1 << 40)
    refused(memory, "does not fit: needs pages up to 0x10000004 .*; pages below 0xff00000 would", data)


def test_a_kernel_whose_physical_addresses_are_virtual(memory: GuestMemory) -> None:
    data = pv_elf(at=VIRT_BASE + KERNEL_AT)
    refused(memory, r"the kernel \(.* less XEN_ELFNOTE_PADDR_OFFSET 0x0\) would be at \[0x1ffffffff00200000", data)


@pytest.mark.parametrize("size", [0, -PAGE_SIZE, PAGE_SIZE + 1, 1 << 40, (1 << 40) - (1 << 32) + PAGE_SIZE])
def test_sizes_of_memory(memory: GuestMemory, size: int) -> None:
    refused(memory, f"memory of {size} bytes: whole pages up to 1044480 MiB", pv_elf(), size)


@pytest.mark.parametrize("nr_pages", [0, -1, 8193])
def test_numbers_of_pages(memory: GuestMemory, nr_pages: int) -> None:
    refused(memory, f"{nr_pages} pages to start with: 1 to 8192", pv_elf(), nr_pages=nr_pages)


def test_a_base_that_large_pages_cannot_back(memory: GuestMemory) -> None:
    with pytest.raises(ValueError, match="base_mfn 0x100001 is no multiple of 0x200"):
        build(memory, Path("kernel"), pv_elf(), base_mfn=0x100001)


@pytest.mark.parametrize(
    ("cmdline", "reason"), [("x" * 1024, "has 1024 bytes; at most 1023"), ("é" * 512, "has 1024 bytes")]
)
def test_a_command_line_that_is_too_long(memory: GuestMemory, cmdline: str, reason: str) -> None:
    refused(memory, f"kernel: the command line {reason}", pv_elf(), cmdline=cmdline)


def test_a_command_line_with_a_nul(memory: GuestMemory) -> None:
    refused(memory, "contains a NUL", pv_elf(), cmdline="a\0b")


# -- initrd -----------------------------------------------------------------------------------------------------------


def empty(path: Path) -> None:
    path.touch()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def nothing(path: Path) -> None:
    assert not path.exists()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (empty, "empty or not a regular file"),
        (fifo, "empty or not a regular file"),
        (Path.mkdir, "empty or not a regular file"),
        (nothing, "cannot read the ramdisk: No such file"),
    ],
)
def test_initrds_that_are_none(memory: GuestMemory, tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "initrd"
    make(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ConfigError, match=f"{path}: {reason}"):
        build(memory, Path("kernel"), pv_elf(), ramdisk=path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before, "the file was closed"


def test_an_empty_initrd_in_memory(memory: GuestMemory) -> None:
    refused(memory, "ramdisk: empty", pv_elf(), ramdisk=b"")


def test_an_initrd_larger_than_any_guest(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)
    refused(memory, f"kernel and {path}: does not fit", pv_elf(MOD_START_PFN=1), ramdisk=path)


def test_an_initrd_too_large_for_the_kernels_address_space(memory: GuestMemory, tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    with path.open("wb") as stream:
        stream.truncate(2 << 30)
    reason = r"kernel: the initial mapping \(kernel, initrd, start-up tables\) would be at \[0xffffffff80000000, 0x1"
    refused(memory, reason, pv_elf(), 4 << 30, ramdisk=path)
