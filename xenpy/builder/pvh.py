"""The PVH domain builder: kernel, initrd, start info, memory map and ACPI tables in fresh guest memory.

Low RAM holds, ascending, the kernel where it wants to be, a block with hvm_start_info and all it points to, and the initrd. The
block comes directly behind the kernel because early boot code sees little more than its own image: Linux's early page tables
reach 1 GiB.

Ref: Xen docs/misc/pvh.pandoc, xen/include/public/arch-x86/hvm/start_info.h
"""

from __future__ import annotations

import itertools
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi._xen64 import ffi
from xenpy.abi.start_info import XEN_HVM_START_MAGIC_VALUE, XEN_HVM_START_VERSION
from xenpy.builder.acpi import LEGACY_RSDP_GPA, MAX_VCPUS, AcpiTables, build_acpi, twice
from xenpy.builder.layout import (
    ACPI_START,
    HIGH_RAM_START,
    MMIO_HOLE_START,
    REAL_MODE_END,
    SPECIAL_PAGES,
    SPECIAL_PAGES_GFN,
    MemoryLayout,
    MemoryMapEntry,
    page_up,
)
from xenpy.errors import ConfigError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from xenpy.builder.elf import Segment
    from xenpy.builder.kernel import KernelImage

_ALIGN: Final = 8
_MIB: Final = 1 << 20


class Extent(NamedTuple):
    """A range of guest-physical addresses, the end not included."""

    start: int
    end: int


class PvhStart(NamedTuple):
    """What the first vCPU starts with, and where the builder put things."""

    entry_eip: int
    """EIP, in flat 32-bit protected mode without paging."""
    start_info_gpa: int
    """EBX."""
    kernel: Extent
    load_offset: int
    """How far the kernel was moved from its own physical addresses, in bytes; may be negative."""
    ramdisk: Extent | None
    rsdp_gpa: int
    memory_map: tuple[MemoryMapEntry, ...]
    """As in hvm_start_info, and for XENMEM_memory_map."""


def build_pvh(
    memory: GuestMemory,
    kernel: KernelImage,
    *,
    size: int,
    cmdline: str = "",
    ramdisk: Path | bytes | None = None,
    vcpus: int = 1,
    max_vcpus: int | None = None,
    apic_id: Callable[[int], int] = twice,
) -> PvhStart:
    """Populate an empty guest-physical space with `size` bytes of RAM and a kernel ready to start.

    Of `max_vcpus` processors, by default `vcpus`, the first `vcpus` are present. Raises ConfigError, which names the file and
    what would be right, if the kernel is no PVH kernel, if something does not fit, or if the initrd cannot be read.

    Ref: Xen docs/misc/pvh.pandoc
    """
    if kernel.pvh_refusal is not None:
        raise ConfigError(kernel.pvh_refusal)
    layout = MemoryLayout.of(size)
    entry, offset = _place(kernel, layout.low)
    acpi = build_acpi(vcpus, _checked_vcpus(vcpus, max_vcpus), apic_id)
    memory_map = layout.memory_map(len(acpi.data))
    _add_memory(memory, layout, acpi)
    occupied = [
        Extent(segment.paddr + offset, segment.paddr + offset + segment.memsz) for segment in kernel.elf.loadable
    ]
    for segment in kernel.elf.loadable:
        if segment.filesz:
            kernel.copy(memory, segment.paddr + offset, segment.offset, segment.filesz)
    extent = Extent(min(each.start for each in occupied), max(each.end for each in occupied))
    free = _FreeLow(layout.low, extent)
    block = _StartInfo(kernel, cmdline, has_ramdisk=ramdisk is not None, memory_map=memory_map)
    start_info_gpa = free.take(block.size, f"{kernel.path}: the start info").start
    loaded = None if ramdisk is None else _load_ramdisk(memory, ramdisk, free)
    rsdp_gpa = _place_rsdp(memory, kernel, acpi, extent)
    memory.write(start_info_gpa, block.encode(start_info_gpa, loaded, rsdp_gpa))
    return PvhStart(entry + offset, start_info_gpa, extent, offset, loaded, rsdp_gpa, memory_map)


# -- memory -----------------------------------------------------------------------------------------------------------


def _checked_vcpus(vcpus: int, max_vcpus: int | None) -> int:
    if max_vcpus is None:
        max_vcpus = vcpus
    if not 1 <= vcpus <= max_vcpus <= MAX_VCPUS:
        raise ConfigError(f"vcpus={vcpus}, maxvcpus={max_vcpus}: 1 <= vcpus <= maxvcpus <= {MAX_VCPUS} would be right")
    return max_vcpus


def _add_memory(memory: GuestMemory, layout: MemoryLayout, acpi: AcpiTables) -> None:
    memory.add_ram(0, layout.low)
    if layout.high:
        memory.add_ram(HIGH_RAM_START, layout.high)
    memory.add_ram(ACPI_START, len(acpi.data))
    memory.write(ACPI_START, acpi.data)
    memory.add_ram(SPECIAL_PAGES_GFN << PAGE_SHIFT, SPECIAL_PAGES * PAGE_SIZE)


def _place_rsdp(memory: GuestMemory, kernel: KernelImage, acpi: AcpiTables, occupied: Extent) -> int:
    """Return the RSDP's gpa; a Linux that does not take it from the start info gets a copy where it looks for one."""
    rsdp = Extent(LEGACY_RSDP_GPA, LEGACY_RSDP_GPA + len(acpi.rsdp))
    unrestricted = kernel.notes.guest_os != "linux" or kernel.notes.supports("linux_rsdp_unrestricted")
    if unrestricted or (rsdp.start < occupied.end and occupied.start < rsdp.end):
        return acpi.rsdp_gpa
    memory.write(rsdp.start, acpi.rsdp)
    return rsdp.start


class _FreeLow:
    """The low RAM that the kernel leaves free: above it, and below it down to where real-mode things are."""

    def __init__(self, low_end: int, kernel: Extent) -> None:
        self._low_end = low_end
        self._spaces = [Extent(max(page_up(kernel.end), REAL_MODE_END), low_end)]
        self._spaces.append(Extent(REAL_MODE_END, kernel.start & -PAGE_SIZE))

    def take(self, size: int, what: str) -> Extent:
        """Return `size` bytes in whole pages, as low as possible above the kernel, else below. Raises ConfigError."""
        size = page_up(size)
        for index, (start, end) in enumerate(self._spaces):
            if end - start >= size:
                self._spaces[index] = Extent(start + size, end)
                return Extent(start, start + size)
        first = self._spaces[0].start
        need = -(-(first + size) // _MIB)
        remedy = f"memory={need} or more" if need * _MIB <= MMIO_HOLE_START else f"at most {MMIO_HOLE_START - first:#x}"
        raise ConfigError(
            f"{what} ({size:#x} bytes) does not fit in RAM beside the kernel: "
            f"[{first:#x}, {self._low_end:#x}) is free; {remedy} would be right"
        )


# -- kernel -----------------------------------------------------------------------------------------------------------


def _place(kernel: KernelImage, low_end: int) -> tuple[int, int]:
    """Return the kernel's entry and how far to move it. Raises ConfigError if it fits nowhere."""
    name, entry = kernel.path, kernel.notes.phys32_entry
    segments = sorted(kernel.elf.loadable, key=lambda segment: segment.paddr)
    if not segments or entry is None:
        raise ConfigError(f"{name}: no segment to load; an ELF executable with PT_LOAD segments would be right")
    for below, above in itertools.pairwise(segments):
        if below.paddr + below.memsz > above.paddr:
            raise ConfigError(f"{name}: {below} overlaps {above}; disjoint physical addresses would be right")
    if not any(segment.paddr <= entry < segment.paddr + segment.memsz for segment in segments):
        raise ConfigError(
            f"{name}: XEN_ELFNOTE_PHYS32_ENTRY {entry:#x} is in none of its segments; a physical address in "
            f"[{segments[0].paddr:#x}, {segments[-1].paddr + segments[-1].memsz:#x}) would be right"
        )
    outside = next((segment for segment in segments if segment.paddr + segment.memsz > low_end), None)
    if outside is None:
        return entry, 0
    offset = _relocation(kernel, segments, low_end)
    if offset is None:
        need = -(-max(segment.paddr + segment.memsz for segment in segments) // _MIB)
        raise ConfigError(f"{name}: {outside} is beyond low RAM [0, {low_end:#x}); {_remedy(need)}")
    return entry, offset


def _remedy(need: int) -> str:
    if need * _MIB > MMIO_HOLE_START:
        return f"a kernel linked for physical addresses below {MMIO_HOLE_START:#x} would be right"
    return f"memory={need} or more would be right"


def _relocation(kernel: KernelImage, segments: list[Segment], low_end: int) -> int | None:
    """Return how far to move a relocatable kernel so that it lies in low RAM, or None if it cannot be moved there."""
    reloc = kernel.notes.phys32_reloc
    if reloc is None:
        return None
    start, end = segments[0].paddr, segments[-1].paddr + segments[-1].memsz
    moved = -(-max(reloc.min, REAL_MODE_END) // reloc.align) * reloc.align + start % reloc.align
    if moved + end - start > min(reloc.max + 1, low_end):
        return None
    return moved - start


# -- initrd -----------------------------------------------------------------------------------------------------------


def _load_ramdisk(memory: GuestMemory, ramdisk: Path | bytes, free: _FreeLow) -> Extent:
    if isinstance(ramdisk, bytes):
        if not ramdisk:
            raise ConfigError("ramdisk: empty; an initramfs (cpio archive) would be right")
        where = free.take(len(ramdisk), "ramdisk")
        memory.write(where.start, ramdisk)
        return Extent(where.start, where.start + len(ramdisk))
    try:
        with ramdisk.open("rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode) or not status.st_size:
                raise ConfigError(f"{ramdisk}: empty or not a regular file; an initramfs (cpio archive) would be right")
            where = free.take(status.st_size, f"{ramdisk}: the initrd")
            target = memory.view(where.start, status.st_size)
            done = 0
            while done < status.st_size:
                count = stream.readinto(target[done:])
                if not count:
                    raise ConfigError(f"{ramdisk}: changed while it was being read")
                done += count
    except OSError as error:
        raise ConfigError(f"{ramdisk}: cannot read the ramdisk: {error.strerror}") from error
    return Extent(where.start, where.start + status.st_size)


# -- start info -------------------------------------------------------------------------------------------------------


class _StartInfo:
    """hvm_start_info and what it points to, in one piece; all sizes are known before any address is."""

    def __init__(
        self, kernel: KernelImage, cmdline: str, *, has_ramdisk: bool, memory_map: tuple[MemoryMapEntry, ...]
    ) -> None:
        self._cmdline = _encode_cmdline(kernel, cmdline)
        self._memory_map = memory_map
        sizes = [
            ffi.sizeof("struct hvm_start_info"),
            ffi.sizeof("struct hvm_modlist_entry") * has_ramdisk,
            ffi.sizeof("struct hvm_memmap_table_entry") * len(memory_map),
            len(self._cmdline),
        ]
        self._offsets = list(_running_total(sizes))
        self.size = self._offsets[-1]

    def encode(self, gpa: int, ramdisk: Extent | None, rsdp_gpa: int) -> bytes:
        """Return the block as it is at `gpa`."""
        _, modlist, memmap, cmdline, _ = (gpa + offset for offset in self._offsets)
        info = {
            "magic": XEN_HVM_START_MAGIC_VALUE,
            "version": XEN_HVM_START_VERSION,
            "nr_modules": 1 if ramdisk else 0,
            "modlist_paddr": modlist if ramdisk else 0,
            "cmdline_paddr": cmdline,
            "rsdp_paddr": rsdp_gpa,
            "memmap_paddr": memmap,
            "memmap_entries": len(self._memory_map),
        }
        pieces = [
            _struct("hvm_start_info", info),
            _struct("hvm_modlist_entry", {"paddr": ramdisk.start, "size": ramdisk.end - ramdisk.start})
            if ramdisk
            else b"",
            b"".join(
                _struct("hvm_memmap_table_entry", {"addr": entry.gpa, "size": entry.size, "type": entry.type})
                for entry in self._memory_map
            ),
            self._cmdline,
        ]
        block = bytearray(self.size)
        for offset, piece in zip(self._offsets, pieces, strict=False):
            block[offset : offset + len(piece)] = piece
        return bytes(block)


def _encode_cmdline(kernel: KernelImage, cmdline: str) -> bytes:
    encoded = cmdline.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise ConfigError("the kernel command line contains a NUL")
    if kernel.cmdline_max and len(encoded) > kernel.cmdline_max:
        raise ConfigError(
            f"{kernel.path}: the command line has {len(encoded)} bytes; the kernel takes at most {kernel.cmdline_max}"
        )
    return encoded + b"\0"


def _struct(name: str, values: dict[str, int]) -> bytes:
    return bytes(ffi.buffer(ffi.new(f"struct {name} *", values)))


def _running_total(sizes: list[int]) -> Iterator[int]:
    total = 0
    for size in sizes:
        yield total
        total += -(-size // _ALIGN) * _ALIGN
    yield total
