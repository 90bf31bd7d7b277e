"""Segment descriptors of a PV guest: which are safe, and what is changed to make them so.

Ref: AMD64 Architecture Programmer's Manual, volume 2, section 4.8 (layout); xen/include/public/arch-x86/xen-x86_64.h (selectors)
"""

from __future__ import annotations

from typing import Final

from xenpy.errors import Errno, XenError

FIRST_RESERVED_GDT_ENTRY: Final = 7168
MAX_LDT_ENTRIES: Final = 8192
FLAT_KERNEL_CS: Final = 0xE033

_ACCESSED: Final = 1 << 40
_TYPE_SHIFT: Final = 40
_CALL_GATE: Final = 0xC
_SEGMENT: Final = 1 << 44  # code or data
_DPL_SHIFT: Final = 45
_DPL: Final = 3 << _DPL_SHIFT
_PRESENT: Final = 1 << 47
_GATE_RESERVED: Final = 0xFF << 32
_SELECTOR_SHIFT: Final = 16
_RPL: Final = 3
_TABLE_INDICATOR: Final = 4


def fix_descriptor(descriptor: int) -> int:
    """Return a descriptor as it may be in a table that the CPU uses.

    Present ones get DPL 3, since the guest's kernel runs there, and code and data segments count as accessed, so that the CPU never writes
    to the table. A call gate gets DPL 0, and its selector RPL 3: using it faults, and the fault can be emulated.
    Raises XenError(EINVAL) for other system descriptors, and for gates to anywhere but the guest's own segments.
    """
    if not descriptor & _PRESENT:
        return descriptor
    if descriptor & _SEGMENT:
        return descriptor | _DPL | _ACCESSED
    kind = descriptor >> _TYPE_SHIFT & 0xF
    if not kind:  # the second half of a call gate
        return descriptor
    selector = descriptor >> _SELECTOR_SHIFT & 0xFFFF
    own = selector >> 3 < FIRST_RESERVED_GDT_ENTRY or selector & _TABLE_INDICATOR or selector == FLAT_KERNEL_CS
    if kind != _CALL_GATE or not own or descriptor & _GATE_RESERVED:
        raise XenError(Errno.EINVAL, f"descriptor {descriptor:#x}")
    selector |= _RPL
    return descriptor & ~(_DPL | 0xFFFF << _SELECTOR_SHIFT) | selector << _SELECTOR_SHIFT
