"""Building a PVH guest: memory, kernel, ramdisk, ACPI tables and struct hvm_start_info.

Ref: xen-doc misc/pvh.pandoc; xen/include/public/arch-x86/hvm/start_info.h
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy.abi._xen64 import ffi
from xenpy.abi.start_info import XEN_HVM_MEMMAP_TYPE, XEN_HVM_START_MAGIC_VALUE, XEN_HVM_START_VERSION
from xenpy.builder import acpi
from xenpy.errors import ConfigError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xenpy.builder.kernel import KernelImage
    from xenpy.memory import GuestMemory

MMIO_START: Final = 0xFC00_0000
"""Low RAM ends here at the latest: ACPI tables, special pages and LAPICs lie above."""
ACPI_GPA: Final = 0xFC00_0000
SPECIAL_GPA: Final = 0xFEFF_8000
SPECIAL_PAGES: Final = 8
STORE_GFN: Final = (SPECIAL_GPA >> PAGE_SHIFT) + 4
CONSOLE_GFN: Final = (SPECIAL_GPA >> PAGE_SHIFT) + 7
HIGH_RAM_GPA: Final = 1 << 32
_MIB: Final = 1 << 20
_MIN_LOAD_GPA: Final = PAGE_SIZE
"""Nothing is put at address 0, which some guests take for "none"."""

MemoryMap = tuple[tuple[int, int, int], ...]
"""(base, size, type) ascending, types of XEN_HVM_MEMMAP_TYPE."""


@dataclass(frozen=True)
class PvhStart:
    """What the boot vCPU and the toolstack must know of a guest that was built."""

    entry: int
    start_info_gpa: int
    memory_map: MemoryMap
    moved: int = 0
    """By how much the kernel was loaded away from where it is linked, in bytes."""
    store_gfn: int = STORE_GFN
    console_gfn: int = CONSOLE_GFN


def _round_up(value: int, unit: int = PAGE_SIZE) -> int:
    return (value + unit - 1) // unit * unit


def _populate(memory: GuestMemory, size: int, acpi_size: int) -> MemoryMap:
    """Add RAM, the ACPI area and the special pages; return the map."""
    low = min(size, MMIO_START)
    memory.add_ram(0, low)
    memory.add_ram(ACPI_GPA, _round_up(acpi_size))
    memory.add_ram(SPECIAL_GPA, SPECIAL_PAGES << PAGE_SHIFT)
    entries = [
        (0, low, XEN_HVM_MEMMAP_TYPE.RAM),
        (ACPI_GPA, _round_up(acpi_size), XEN_HVM_MEMMAP_TYPE.NVS),
        (SPECIAL_GPA, SPECIAL_PAGES << PAGE_SHIFT, XEN_HVM_MEMMAP_TYPE.RESERVED),
    ]
    if size > low:
        memory.add_ram(HIGH_RAM_GPA, size - low)
        entries.append((HIGH_RAM_GPA, size - low, XEN_HVM_MEMMAP_TYPE.RAM))
    return tuple((base, length, int(kind)) for base, length, kind in entries)


def _extent(kernel: KernelImage) -> tuple[int, int]:
    """Return the physical range [start, end) that the kernel's segments take. Raises ConfigError if it has none."""
    loadable = [segment for segment in kernel.elf.loadable if segment.memsz]
    if not loadable:
        raise ConfigError(f"{kernel.path}: no segment to load; a kernel has at least one PT_LOAD of some size")
    return min(s.paddr for s in loadable), max(s.paddr + s.memsz for s in loadable)


def _load(memory: GuestMemory, kernel: KernelImage, low_end: int) -> tuple[int, int]:
    """Copy the kernel in; return by how much it was moved and where it ends. Raises ConfigError if it does not fit."""
    start, end = _extent(kernel)
    delta = 0
    reloc = kernel.notes.phys32_reloc
    if (end > low_end or start < _MIN_LOAD_GPA) and reloc is not None:
        lowest = _round_up(max(reloc.min, _MIN_LOAD_GPA), reloc.align)
        if lowest <= reloc.max and lowest + end - start <= min(low_end, reloc.max + 1):
            delta = lowest - start
    if end + delta > low_end:
        need = -(-(end + delta) // _MIB)
        raise ConfigError(
            f"{kernel.path}: the kernel needs memory up to {end + delta:#x}, the guest's ends at {low_end:#x}; "
            f"memory = {need + 16} would be enough for it"
        )
    for segment in kernel.elf.loadable:
        if segment.filesz:
            kernel.copy(memory, segment.paddr + delta, segment.offset, segment.filesz)
    return delta, end + delta


def _load_ramdisk(memory: GuestMemory, path: Path, floor: int, low_end: int) -> tuple[int, int]:
    """Read the ramdisk to the top of low RAM; return its (gpa, size). Raises ConfigError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            gpa = (low_end - size) & ~(PAGE_SIZE - 1)
            if gpa < floor:
                raise ConfigError(
                    f"{path}: the ramdisk has {size} bytes, and {max(0, low_end - floor)} are free behind the kernel; "
                    f"memory = {-(-(floor + size) // _MIB) + 32} would be enough"
                )
            view = memory.view(gpa, size)
            done = 0
            while done < size:
                count = file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise ConfigError(f"{path}: changed while it was being read")
                done += count
    except OSError as error:
        raise ConfigError(f"{path}: ramdisk: {error.strerror}") from None
    return gpa, size


def build_pvh(
    memory: GuestMemory,
    kernel: KernelImage,
    *,
    ramdisk: Path | None,
    cmdline: str,
    memory_mib: int,
    vcpus: int,
    maxvcpus: int,
    apic_id: Callable[[int], int],
) -> PvhStart:
    """Build a PVH guest in empty memory and return where it starts. Raises ConfigError.

    Low RAM is [0, min(memory, 0xfc000000)); the rest starts at 4 GiB. Everything the guest is told of lies below 4 GiB, struct
    hvm_start_info right behind the kernel: guests that map little at first can see it there.
    """
    if kernel.pvh_refusal is not None:
        raise ConfigError(kernel.pvh_refusal)
    if kernel.cmdline_max and len(cmdline.encode()) > kernel.cmdline_max:
        raise ConfigError(f"{kernel.path}: the command line has {len(cmdline)} characters; the kernel takes {kernel.cmdline_max}")
    tables = acpi.build(ACPI_GPA, vcpus, maxvcpus, apic_id)
    memory_map = _populate(memory, memory_mib * _MIB, len(tables))
    memory.write(ACPI_GPA, tables)
    low_end = memory_map[0][1]
    delta, kernel_end = _load(memory, kernel, low_end)
    info_gpa = _round_up(kernel_end)
    blob_size = _info_size(cmdline, memory_map)
    module = None
    if ramdisk is not None:
        module = _load_ramdisk(memory, ramdisk, _round_up(info_gpa + blob_size), low_end)
    elif info_gpa + blob_size > low_end:
        raise ConfigError(f"{kernel.path}: no room behind the kernel for start_info; give the guest more memory")
    memory.write(info_gpa, _start_info(info_gpa, cmdline, memory_map, module))
    entry = kernel.notes.phys32_entry
    assert entry is not None
    return PvhStart((entry + delta) & 0xFFFF_FFFF, info_gpa, memory_map, delta)


def _info_size(cmdline: str, memory_map: MemoryMap) -> int:
    return len(_start_info(0, cmdline, memory_map, (0, 0)))


def _start_info(base: int, cmdline: str, memory_map: MemoryMap, module: tuple[int, int] | None) -> bytes:
    """Return struct hvm_start_info for gpa `base`, with its command line, module list and memory map behind it."""
    info = ffi.new("struct hvm_start_info *")
    info.magic = XEN_HVM_START_MAGIC_VALUE
    info.version = XEN_HVM_START_VERSION
    blob = bytearray(ffi.sizeof("struct hvm_start_info"))

    def place(data: bytes) -> int:
        blob.extend(bytes(-len(blob) % 8))
        blob.extend(data)
        return base + len(blob) - len(data)

    info.cmdline_paddr = place(cmdline.encode() + b"\0")
    info.rsdp_paddr = ACPI_GPA
    if module is not None:
        entry = ffi.new("struct hvm_modlist_entry *")
        entry.paddr, entry.size = module
        info.nr_modules = 1
        info.modlist_paddr = place(bytes(ffi.buffer(entry)))
    table = ffi.new("struct hvm_memmap_table_entry[]", len(memory_map))
    for row, (start, size, kind) in zip(table, memory_map, strict=True):
        row.addr, row.size, row.type = start, size, kind
    info.memmap_paddr = place(bytes(ffi.buffer(table)))
    info.memmap_entries = len(memory_map)
    blob[: ffi.sizeof("struct hvm_start_info")] = bytes(ffi.buffer(info))
    return bytes(blob)
