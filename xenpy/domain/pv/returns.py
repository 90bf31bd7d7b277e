"""Whether IRET takes a frame that leads to ring 3: not all hosts' IRETQ, in ring 0 of the guest, checks all that a processor does.

Ref: AMD64 APM volume 2, sections 4.7 and 4.8 (descriptors); volume 3, IRET
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.pv.emulate.machine import Vector
from xenpy.pv.paging import is_canonical

if TYPE_CHECKING:
    from collections.abc import Callable

_RPL: Final = 3
_INDEX: Final = 0xFFF8
_ERROR: Final = 0xFFFC
"""Of a selector, what is told in an error code."""
_WRITABLE: Final = 1 << 41
_CONFORMING: Final = 1 << 42
_CODE: Final = 1 << 43
_NO_SYSTEM: Final = 1 << 44
_DPL_SHIFT: Final = 45
_PRESENT: Final = 1 << 47
_LONG: Final = 1 << 53
_WIDE: Final = 1 << 54


class Refusal(NamedTuple):
    """The exception that IRET raises."""

    vector: int
    error: int


def refusal(descriptor: Callable[[int], int], cs: int, ss: int, rip: int) -> Refusal | None:
    """Return what IRET to ring 3 raises for the two selectors and the address, None if it goes there.

    `descriptor` returns that which a selector names, 0 for none.
    """
    if not cs & _INDEX:
        return Refusal(Vector.GP, 0)
    code = descriptor(cs)
    dpl = code >> _DPL_SHIFT & _RPL
    if not code & _NO_SYSTEM or not code & _CODE or (not code & _CONFORMING and dpl != _RPL) or _both(code):
        return Refusal(Vector.GP, cs & _ERROR)
    if not code & _PRESENT:
        return Refusal(Vector.NP, cs & _ERROR)
    if not ss & _INDEX:
        return Refusal(Vector.GP, 0)
    data = descriptor(ss)
    if not data & _NO_SYSTEM or data & _CODE or not data & _WRITABLE or data >> _DPL_SHIFT & _RPL != _RPL:
        return Refusal(Vector.GP, ss & _ERROR)
    if not data & _PRESENT:
        return Refusal(Vector.SS, ss & _ERROR)
    if code & _LONG and not is_canonical(rip):
        return Refusal(Vector.GP, 0)
    return None


def _both(code: int) -> bool:
    """Tell whether a segment of code would be of 64 and of 32 bits."""
    return bool(code & _LONG and code & _WIDE)
