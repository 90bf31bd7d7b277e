"""Walking a guest's page tables: 4-level, PAE, two-level, or none.

Ref: AMD64 Architecture Programmer's Manual, volume 2, chapter 5
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from xenpy.memory import GuestMemory

CR0_PE: Final = 1 << 0
CR0_WP: Final = 1 << 16
CR0_PG: Final = 1 << 31
CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10

PTE_PRESENT: Final = 1 << 0
PTE_RW: Final = 1 << 1
PTE_USER: Final = 1 << 2
PTE_ACCESSED: Final = 1 << 5
PTE_DIRTY: Final = 1 << 6
PTE_PSE: Final = 1 << 7
PTE_GLOBAL: Final = 1 << 8
PTE_NX: Final = 1 << 63
PTE_FRAME: Final = 0x000F_FFFF_FFFF_F000


def is_canonical(gva: int) -> bool:
    """Tell whether bits 63:47 of an address are all alike."""
    return gva >> 47 in (0, 0x1FFFF)


def _fault(gva: int) -> XenError:
    return XenError(Errno.EFAULT, f"gva {gva:#x} is not mapped")


def _walk_long(memory: GuestMemory, table: int, gva: int, shift: int, *, write: bool) -> int:
    """Walk 8-byte entries from the level whose index starts at bit `shift`."""
    words = memory.u64
    while True:
        entry_gpa = table + (gva >> shift & 0x1FF) * 8
        memory.check(entry_gpa, 8)
        entry: int = words[entry_gpa >> 3]
        if not entry & PTE_PRESENT or (write and not entry & PTE_RW):
            raise _fault(gva)
        if shift == 12:
            return entry & PTE_FRAME | gva & 0xFFF
        if entry & PTE_PSE and shift <= 30:
            mask = (1 << shift) - 1
            return entry & PTE_FRAME & ~mask | gva & mask
        table = entry & PTE_FRAME
        shift -= 9


def _walk_two_level(memory: GuestMemory, cr3: int, cr4: int, gva: int, *, write: bool) -> int:
    table = cr3 & 0xFFFF_F000
    for shift in (22, 12):
        entry = int.from_bytes(memory.read(table + (gva >> shift & 0x3FF) * 4, 4), "little")
        if not entry & PTE_PRESENT or (write and not entry & PTE_RW):
            raise _fault(gva)
        if shift == 22 and entry & PTE_PSE and cr4 & CR4_PSE:
            return (entry >> 13 & 0xFF) << 32 | entry & 0xFFC0_0000 | gva & 0x3F_FFFF  # PSE-36
        table = entry & 0xFFFF_F000
    return table | gva & 0xFFF


def translate(memory: GuestMemory, cr0: int, cr3: int, cr4: int, efer: int, gva: int, *, write: bool = False) -> int:
    """Return the gpa that a supervisor access to `gva` reaches, by the given control registers.

    Raises XenError(EFAULT) where such an access would fault. Accessed and dirty bits are left alone.
    """
    write = write and bool(cr0 & CR0_WP)
    if not cr0 & CR0_PG:
        return gva & 0xFFFF_FFFF
    if efer & EFER_LMA:
        if not is_canonical(gva):
            raise _fault(gva)
        return _walk_long(memory, cr3 & PTE_FRAME, gva, 39, write=write)
    gva &= 0xFFFF_FFFF
    if not cr4 & CR4_PAE:
        return _walk_two_level(memory, cr3, cr4, gva, write=write)
    root = memory.read_u64((cr3 & 0xFFFF_FFE0) + (gva >> 30) * 8)
    if not root & PTE_PRESENT:
        raise _fault(gva)
    return _walk_long(memory, root & PTE_FRAME, gva, 21, write=write)
