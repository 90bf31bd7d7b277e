"""mmuext_op: pinning, the page tables in use, and flushes.

Ref: xen/include/public/xen.h, struct mmuext_op
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import mmu as abi
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.descriptors import load_ldt
from xenpy.hypercalls.dispatch import hypercall
from xenpy.hypercalls.pv import (
    foreign_is_io,
    foreign_refusal,
    mmu_of,
    progress,
    pv_domain,
    pv_vcpu,
    store_progress,
    vcpu_mask,
)
from xenpy.memory import PAGE_SIZE
from xenpy.pv.mmu.entries import is_guest_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.abi.op import Op
    from xenpy.hypercalls.call import Call

_TAG: Final = "mmuext_op"

_HANDLERS: Final[dict[int, Callable[[Call, Any], None]]] = {}


def _handles(*ops: Op) -> Callable[[Callable[[Call, Any], None]], Callable[[Call, Any], None]]:
    def declare(function: Callable[[Call, Any], None]) -> Callable[[Call, Any], None]:
        for op in ops:
            _HANDLERS[op.number] = function
        return function

    return declare


@hypercall(26, "mmuext_op")
def mmuext_op(call: Call) -> None:
    """Carry out an array of struct mmuext_op until one is refused; `pdone` counts those before."""
    pv_domain(call)
    count, done = progress(call)
    gva, foreigndom = call.args[0], call.args[3] & 0xFFFF
    if foreign_is_io(call, foreigndom):
        raise foreign_refusal(call, foreigndom)
    stride = call.struct_size(_TAG)
    try:
        for index in range(count):
            if index % 16 == 15:
                call.checkpoint()
            op = call.struct(_TAG, gva)
            handler = _HANDLERS.get(op.cmd)
            if handler is None:
                raise XenError(Errno.ENOSYS, f"mmuext_op: no command {op.cmd}")
            handler(call, op)
            gva += stride
            done += 1
    finally:
        store_progress(call, done)


@_handles(abi.MMUEXT_PIN_L1_TABLE, abi.MMUEXT_PIN_L2_TABLE, abi.MMUEXT_PIN_L3_TABLE, abi.MMUEXT_PIN_L4_TABLE)
def pin_table(call: Call, op: Any) -> None:
    """Make a frame a page table of the level that the command names."""
    mmu_of(call).pin(op.arg1.mfn, op.cmd - abi.MMUEXT_PIN_L1_TABLE.number + 1, call.checkpoint)


@_handles(abi.MMUEXT_UNPIN_TABLE)
def unpin_table(call: Call, op: Any) -> None:
    """Let a page table be one only for as long as it is used."""
    mmu_of(call).unpin(op.arg1.mfn, call.checkpoint)


@_handles(abi.MMUEXT_NEW_BASEPTR)
def new_baseptr(call: Call, op: Any) -> None:
    """Have the calling vCPU's kernel run on another L4."""
    mmu, vcpu, mfn = mmu_of(call), pv_vcpu(call), op.arg1.mfn
    old = vcpu.kernel_l4
    if mfn == old:
        vcpu.load_base(mfn)
        return
    mmu.take_base(mfn, call.checkpoint, kernel=True)
    vcpu.load_base(mfn)
    if old:
        mmu.drop_base(old, call.checkpoint, kernel=True)


@_handles(abi.MMUEXT_NEW_USER_BASEPTR)
def new_user_baseptr(call: Call, op: Any) -> None:
    """Have the calling vCPU's user mode run on another L4, or on none."""
    mmu, vcpu, mfn = mmu_of(call), pv_vcpu(call), op.arg1.mfn
    old = vcpu.user_l4
    if mfn == old:
        return
    if mfn:
        mmu.take_base(mfn, call.checkpoint, kernel=False)
    vcpu.load_user_base(mfn)
    if old:
        mmu.drop_base(old, call.checkpoint, kernel=False)


# -- flushes ----------------------------------------------------------------------------------------------------------


@_handles(abi.MMUEXT_TLB_FLUSH_LOCAL)
def tlb_flush_local(call: Call, _op: Any) -> None:
    """Drop the calling vCPU's translations."""
    pv_vcpu(call).flush_tlb()


@_handles(abi.MMUEXT_INVLPG_LOCAL)
def invlpg_local(call: Call, op: Any) -> None:
    """Drop the calling vCPU's translation of one address."""
    if is_guest_address(op.arg1.linear_addr):
        pv_vcpu(call).invlpg(op.arg1.linear_addr)


@_handles(abi.MMUEXT_TLB_FLUSH_MULTI, abi.MMUEXT_INVLPG_MULTI)
def flush_multi(call: Call, op: Any) -> None:
    """Drop translations of the vCPUs in a bitmap."""
    try:
        vcpu_ids = vcpu_mask(call, op.arg2.vcpumask)
    except XenError as error:
        raise XenError(Errno.EINVAL, "the bitmap of vCPUs cannot be read") from error
    _flush(call, op, vcpu_ids, whole=op.cmd == abi.MMUEXT_TLB_FLUSH_MULTI.number)


@_handles(abi.MMUEXT_TLB_FLUSH_ALL, abi.MMUEXT_INVLPG_ALL)
def flush_all(call: Call, op: Any) -> None:
    """Drop translations of all vCPUs of the domain."""
    _flush(call, op, None, whole=op.cmd == abi.MMUEXT_TLB_FLUSH_ALL.number)


def _flush(call: Call, op: Any, vcpu_ids: list[int] | None, *, whole: bool) -> None:
    if whole:
        pv_vcpu(call).flush_on(vcpu_ids, None)
    elif is_guest_address(op.arg1.linear_addr):
        pv_vcpu(call).flush_on(vcpu_ids, op.arg1.linear_addr)


@_handles(abi.MMUEXT_FLUSH_CACHE)
def flush_cache(_call: Call, _op: Any) -> None:
    """Refuse: flushing caches is for domains with devices."""
    raise XenError(Errno.EACCES, "the domain has no devices")


@_handles(abi.MMUEXT_FLUSH_CACHE_GLOBAL)
def flush_cache_global(_call: Call, _op: Any) -> None:
    """Refuse the same for all processors, by another number, as Xen does."""
    raise XenError(Errno.EINVAL, "the domain has no devices")


# -- the rest ---------------------------------------------------------------------------------------------------------


@_handles(abi.MMUEXT_SET_LDT)
def set_ldt(call: Call, op: Any) -> None:
    """Load the calling vCPU's local descriptor table."""
    load_ldt(call, op.arg1.linear_addr, op.arg2.nr_ents)


@_handles(abi.MMUEXT_CLEAR_PAGE)
def clear_page(call: Call, op: Any) -> None:
    """Fill a frame with zeroes."""
    mmu_of(call).write_page(op.arg1.mfn, bytes(PAGE_SIZE))


@_handles(abi.MMUEXT_COPY_PAGE)
def copy_page(call: Call, op: Any) -> None:
    """Copy a frame to another."""
    mmu = mmu_of(call)
    mmu.write_page(op.arg1.mfn, mmu.read_page(op.arg2.src_mfn))


@_handles(abi.MMUEXT_MARK_SUPER, abi.MMUEXT_UNMARK_SUPER)
def mark_super(_call: Call, _op: Any) -> None:
    """Refuse: PV guests have no large pages."""
    raise XenError(Errno.EOPNOTSUPP, "PV guests have no large pages")
