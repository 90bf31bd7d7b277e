"""mmu_update and update_va_mapping: checked changes of page-table entries.

Ref: xen/include/public/xen.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.mmu import (
    MMU,
    UVMF_ALL,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_LOCAL,
    UVMF_TLB_FLUSH,
)
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import hypercall
from xenpy.hypercalls.pv import foreign_is_io, foreign_refusal, mmu_of, progress, pv_vcpu, store_progress, vcpu_mask
from xenpy.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.hypercalls.call import Call
    from xenpy.pv.mmu import Mmu

_CMD_MASK: Final = 7
_COMMANDS: Final = frozenset(MMU)
_CHUNK: Final = 128
_WORDS: Final = 2
_WORD: Final = 8


def _requests(call: Call, gva: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the (ptr, val) of each request of an array, which is read piecewise. Raises XenError(EFAULT) where it is not readable."""
    step = _CHUNK
    while count:
        step = min(step, count)
        try:
            words = call.words(gva, step * _WORDS, _WORD)
        except XenError:
            if step == 1:
                raise
            step = 1  # the requests before the one that cannot be read count
            continue
        for index in range(0, step * _WORDS, _WORDS):
            yield words[index], words[index + 1]
        gva += step * _WORDS * _WORD
        count -= step
        if count:
            call.checkpoint()


@hypercall(1, "mmu_update")
def mmu_update(call: Call) -> None:
    """Carry out an array of struct mmu_update until one is refused; `pdone` counts those before."""
    mmu = mmu_of(call)
    count, done = progress(call)
    foreigndom = call.args[3]
    table_owner = foreigndom >> 16 & 0xFFFF
    io = count > 0 and foreign_is_io(call, foreigndom & 0xFFFF)
    try:
        if count and table_owner and table_owner - 1 != call.domain.domid:
            raise foreign_refusal(call, table_owner - 1)
        for ptr, value in _requests(call, call.args[0], count):
            _carry_out(call, mmu, ptr, value, io=io)
            done += 1
    finally:
        store_progress(call, done)


def _carry_out(call: Call, mmu: Mmu, ptr: int, value: int, *, io: bool) -> None:
    command = ptr & _CMD_MASK
    if command not in _COMMANDS:
        raise XenError(Errno.ENOSYS, f"mmu_update {command}")
    if command == MMU.MACHPHYS_UPDATE:
        if io:
            raise XenError(Errno.EINVAL, "I/O space has no pfns")
        mmu.set_pfn(ptr >> PAGE_SHIFT, value)
    else:
        preserve_ad = command == MMU.PT_UPDATE_PRESERVE_AD
        mmu.update(ptr - command, value, call.checkpoint, preserve_ad=preserve_ad, io=io)


@hypercall(14, "update_va_mapping")
def update_va_mapping(call: Call) -> None:
    """Change the L1 entry of an address in the page tables in use, then drop translations as the flags say."""
    gva, value, flags = call.args[0], call.args[1], call.args[2]
    mmu_of(call).update_va(pv_vcpu(call).kernel_l4, gva, value)
    _flush(call, gva, flags)


@hypercall(22, "update_va_mapping_otherdomain")
def update_va_mapping_otherdomain(call: Call) -> None:
    """Do the same to map a page of another domain, which a domU may not: the caller is the only one it may name, as DOMID_SELF."""
    mmu_of(call)
    domid = call.args[3] & 0xFFFF
    if foreign_is_io(call, domid):
        raise foreign_refusal(call, domid)
    update_va_mapping(call)


def _flush(call: Call, gva: int, flags: int) -> None:
    kind = flags & UVMF_FLUSHTYPE_MASK
    if kind not in (UVMF_TLB_FLUSH, UVMF_INVLPG):
        return
    vcpu = pv_vcpu(call)
    page = gva if kind == UVMF_INVLPG else None
    whom = flags & ~UVMF_FLUSHTYPE_MASK
    if whom == UVMF_ALL:
        vcpu.flush_on(None, page)
    elif whom != UVMF_LOCAL:
        vcpu.flush_on(vcpu_mask(call, whom), page)
    elif page is None:
        vcpu.flush_tlb()
    else:
        vcpu.invlpg(page)
