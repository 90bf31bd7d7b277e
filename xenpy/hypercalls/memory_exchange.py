"""memory_op for PV guests alone: exchanging frames, and where the machine-to-physical table is.

Ref: xen/include/public/memory.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import memory as abi
from xenpy.abi._xen64 import ffi
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.domids import own_domain
from xenpy.hypercalls.machine_memory import MAX_EXTENT_ORDER, address_bits
from xenpy.hypercalls.memory import memory_op
from xenpy.hypercalls.pv import mmu_of, pv_domain

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

_WORD_BITS: Final = 64


@memory_op.handles(abi.XENMEM_exchange)
def exchange(call: Call, op: Any) -> None:
    """Take extents of frames and give others instead; `nr_exchanged` counts those taken even when the rest is refused."""
    mmu = mmu_of(call)
    given, got = getattr(op, "in"), op.out
    _check(op, given, got)
    if op.nr_exchanged == given.nr_extents:
        return
    own_domain(call, given.domid)
    chunk_order = max(given.extent_order, got.extent_order)
    given_step, got_step = 1 << chunk_order - given.extent_order, 1 << chunk_order - got.extent_order
    size = 1 << given.extent_order
    try:
        for chunk in range(op.nr_exchanged // given_step, given.nr_extents // given_step):
            mfns = call.words(given.extent_start + chunk * given_step * call.word_size, given_step)
            where = got.extent_start + chunk * got_step * call.word_size
            pfns = call.words(where, got_step)
            frames = [mfn + index for mfn in mfns for index in range(size)]
            extents = mmu.reservation.exchange(frames, got.extent_order, got_step, address_bits(got.mem_flags))
            op.nr_exchanged = (chunk + 1) * given_step
            for mfn, pfn in zip(extents, pfns, strict=True):
                mmu.reservation.set_pfns(mfn, pfn, 1 << got.extent_order)
            call.store_words(where, extents)
            call.checkpoint()
    except XenError:
        offset = ffi.offsetof("struct xen_memory_exchange", "nr_exchanged")
        call.store_words(call.args[1] + offset, [op.nr_exchanged])
        raise


def _check(op: Any, given: Any, got: Any) -> None:
    """Refuse sizes that do not match. Raises XenError: EPERM, EINVAL."""
    if max(given.extent_order, got.extent_order) > MAX_EXTENT_ORDER:
        raise XenError(Errno.EPERM, f"extents of 2^{given.extent_order} and 2^{got.extent_order} pages")
    pages = given.nr_extents << given.extent_order
    if (
        op.nr_exchanged > given.nr_extents
        or given.domid != got.domid
        or pages >> _WORD_BITS
        or pages != got.nr_extents << got.extent_order
    ):
        raise XenError(Errno.EINVAL, "what is given and what is wanted differ in size")


@memory_op.handles(abi.XENMEM_machphys_mapping)
def machphys_mapping(call: Call, op: Any) -> None:
    """Tell where the guest sees the machine-to-physical table, and which mfn is the last in it."""
    op.v_start, op.v_end, op.max_mfn = pv_domain(call).machphys


@memory_op.handles(abi.XENMEM_machphys_mfn_list)
def machphys_mfn_list(call: Call, op: Any) -> None:
    """List the first mfns of the machine-to-physical table's 2 MiB extents, as many as there is room for."""
    mfns = pv_domain(call).machphys_mfns[: op.max_extents]
    if mfns:
        call.store_words(op.extent_start, mfns)
    op.nr_extents = len(mfns)
