"""The extents of a PV guest's reservations, which are machine frames.

Ref: xen/include/public/memory.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.errors import Errno, XenError
from xenpy.hypercalls.pv import mmu_of

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

MAX_EXTENT_ORDER: Final = 9
"""A domU without hardware may ask for extents of up to 2 MiB. Ref: Xen command line, memop-max-order"""
_ADDRESS_BITS: Final = 0xFF
_CHECK_EVERY: Final = 64


def address_bits(mem_flags: int) -> int:
    """Return how many bits XENMEMF_* flags allow machine addresses to have, 0 meaning any."""
    return mem_flags & _ADDRESS_BITS


def release_extent(call: Call, op: Any, mfn: int, _gva: int) -> bool:
    """Take an extent of frames away from the guest; tell whether all of it was there."""
    reservation = mmu_of(call).reservation
    return all(reservation.surrender(frame, call.checkpoint) for frame in range(mfn, mfn + (1 << op.extent_order)))


def populate_extent(call: Call, op: Any, pfn: int, gva: int) -> bool:
    """Give the guest an extent of frames with pfns, and write its mfn to `gva`; tell whether there was one."""
    mfn = _allocate(call, op)
    if mfn is None:
        return False
    mmu_of(call).reservation.set_pfns(mfn, pfn, 1 << op.extent_order)
    return _report(call, mfn, gva)


def add_extents(call: Call, op: Any, start: int, count: int) -> int:
    """Give the guest extents of frames without pfns, their mfns going to its list if it has one; return how many it has now."""
    for done in range(start, count):
        mfn = _allocate(call, op)
        if mfn is None:
            return done
        if op.extent_start and not _report(call, mfn, op.extent_start + done * call.word_size):
            return done
        if done % _CHECK_EVERY == _CHECK_EVERY - 1:
            call.checkpoint()
    return count


def _allocate(call: Call, op: Any) -> int | None:
    domain = call.domain
    if domain.memory.ram_pages + (1 << op.extent_order) > domain.max_pages:
        return None
    return mmu_of(call).reservation.allocate(op.extent_order, address_bits(op.mem_flags))


def _report(call: Call, mfn: int, gva: int) -> bool:
    try:
        call.store_words(gva, [mfn])
    except XenError as error:
        if error.errno is not Errno.EFAULT:
            raise
        return False
    return True
