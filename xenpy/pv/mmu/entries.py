"""Entries of a PV guest's page tables: which bits it may set, and which the hypervisor adds.

A 64-bit PV kernel runs in ring 3, so every present entry is a user one; bit 52 remembers which of them the kernel meant for itself.

Ref: xen/include/public/arch-x86/xen-x86_64.h (address space); AMD64 Architecture Programmer's Manual, volume 2, chapter 5 (bits)
"""

from __future__ import annotations

from typing import Final

from xenpy.memory import PAGE_SHIFT
from xenpy.pv.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_FRAME,
    PTE_GLOBAL,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
    is_canonical,
)

ENTRIES: Final = 512
"""Entries of a table, and descriptors of a segment page."""
ROOT_LEVEL: Final = 4
XEN_SLOTS: Final = range(256, 272)
"""Entries of an L4 that belong to the hypervisor."""
_ROOT_SHIFT: Final = 39
INVALID_MFN: Final = PTE_FRAME >> PAGE_SHIFT

_ALL: Final = (1 << 64) - 1
_AVAIL: Final = 0x7FF << 52 | 0x7 << 9
_NX: Final = 1 << 63
GUEST_KERNEL: Final = 1 << 52
ACCESSED_DIRTY: Final = PTE_ACCESSED | PTE_DIRTY

_UPPER_ALLOWED: Final = PTE_PRESENT | PTE_RW | PTE_USER | ACCESSED_DIRTY | _AVAIL | _NX
UPPER_DISALLOWED: Final = _ALL & ~(_UPPER_ALLOWED | PTE_FRAME)
"""Bits that no entry of an L2, L3 or L4 may have: large pages, cache attributes, and GLOBAL."""
L1_DISALLOWED: Final = UPPER_DISALLOWED & ~PTE_GLOBAL
"""Bits that no L1 entry may have: cache attributes, which are for domains with devices."""
SIMILAR: Final = _NX | _AVAIL | PTE_GLOBAL | ACCESSED_DIRTY | PTE_USER
"""Entries that differ in these bits only hold the same references."""


def adjust_l1(entry: int) -> int:
    """Return an L1 entry as the hypervisor stores it."""
    if not entry & PTE_PRESENT:
        return entry
    if not entry & PTE_USER:
        entry |= GUEST_KERNEL | PTE_USER
    if not entry & GUEST_KERNEL:
        entry |= PTE_GLOBAL
    return entry


def adjust_upper(entry: int, level: int) -> int:
    """Return an entry of an L2, L3 or L4 as the hypervisor stores it."""
    if not entry & PTE_PRESENT:
        return entry
    return entry | PTE_USER | (PTE_ACCESSED if level == ROOT_LEVEL else 0)


def frame_of(entry: int) -> int:
    """Return the mfn that an entry names."""
    return (entry & PTE_FRAME) >> PAGE_SHIFT


def is_guest_address(gva: int) -> bool:
    """Tell whether an address is canonical and not in the hypervisor's part of the address space."""
    return is_canonical(gva) and (gva >> _ROOT_SHIFT & ENTRIES - 1) not in XEN_SLOTS
