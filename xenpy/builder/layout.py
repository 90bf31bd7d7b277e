"""Where things are in a PVH guest's physical space, and the memory map that tells of it.

Ref: Xen docs/misc/pvh.pandoc; the addresses are those of Xen's own toolstack (tools/libs/light/libxl_x86.c)
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xenpy.abi.start_info import XEN_HVM_MEMMAP_TYPE
from xenpy.errors import ConfigError
from xenpy.memory import ADDRESS_BITS, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

MMIO_HOLE_START: Final = 0xFC000000
"""Low RAM ends here at the latest; the ACPI tables, special pages and local APICs are above."""
HIGH_RAM_START: Final = 1 << 32

ACPI_START: Final = MMIO_HOLE_START
LAPIC_BASE: Final = 0xFEE00000

SPECIAL_PAGES_GFN: Final = 0xFEFF8
SPECIAL_PAGES: Final = 8
XENSTORE_GFN: Final = SPECIAL_PAGES_GFN + 4
IDENT_PT_GFN: Final = SPECIAL_PAGES_GFN + 6
CONSOLE_GFN: Final = SPECIAL_PAGES_GFN + 7

REAL_MODE_END: Final = 1 << 20
"""Below it kernels look for BIOS tables and put AP start-up code: nothing of ours goes there."""

MAX_RAM: Final = (1 << ADDRESS_BITS) - (HIGH_RAM_START - MMIO_HOLE_START)


class MemoryMapEntry(NamedTuple):
    """A range of guest-physical addresses, `size` in bytes, and what it is."""

    gpa: int
    size: int
    type: XEN_HVM_MEMMAP_TYPE


class MemoryLayout(NamedTuple):
    """How much RAM is below the hole and how much from 4 GiB up, in bytes."""

    low: int
    high: int

    @classmethod
    def of(cls, size: int) -> MemoryLayout:
        """Return the layout of `size` bytes of RAM. Raises ConfigError unless they are whole pages within the space."""
        if size <= 0 or size & PAGE_MASK or size > MAX_RAM:
            raise ConfigError(f"memory of {size} bytes: whole pages up to {MAX_RAM >> 30} GiB would be right")
        low = min(size, MMIO_HOLE_START)
        return cls(low, size - low)

    def memory_map(self, acpi_size: int) -> tuple[MemoryMapEntry, ...]:
        """Return the map a guest is given, ascending; `acpi_size` bytes, whole pages, are ACPI's."""
        kind = XEN_HVM_MEMMAP_TYPE
        entries = [
            MemoryMapEntry(0, self.low, kind.RAM),
            MemoryMapEntry(ACPI_START, acpi_size, kind.NVS),
            MemoryMapEntry(SPECIAL_PAGES_GFN << PAGE_SHIFT, SPECIAL_PAGES * PAGE_SIZE, kind.RESERVED),
        ]
        if self.high:
            entries.append(MemoryMapEntry(HIGH_RAM_START, self.high, kind.RAM))
        return tuple(entries)


def page_up(size: int) -> int:
    """Round up to whole pages, in bytes."""
    return (size + PAGE_MASK) & ~PAGE_MASK
