"""set_gdt and update_descriptor: the guest's own segment descriptors.

Ref: xen/include/public/arch-x86/xen.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import hypercall
from xenpy.hypercalls.pv import mmu_of, pv_domain, pv_vcpu
from xenpy.memory import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.descriptors import FIRST_RESERVED_GDT_ENTRY, MAX_LDT_ENTRIES
from xenpy.pv.mmu.entries import ENTRIES, is_guest_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.hypercalls.call import Call

_DESCRIPTOR: Final = 8


@hypercall(2, "set_gdt")
def set_gdt(call: Call) -> None:
    """Load the guest's part of the calling vCPU's GDT: `entries` descriptors in whole frames."""
    mmu, vcpu = mmu_of(call), pv_vcpu(call)
    entries = call.args[1] & 0xFFFFFFFF
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(Errno.EINVAL, f"a GDT of {entries} entries")
    mfns = call.words(call.args[0], (entries + ENTRIES - 1) // ENTRIES) if entries else ()
    mmu.tables_of(vcpu.vcpu_id).replace_gdt(mfns)
    vcpu.set_gdt(mfns, entries)


@hypercall(10, "update_descriptor")
def update_descriptor(call: Call) -> None:
    """Write one descriptor at a machine address."""
    domain = pv_domain(call)
    domain.mmu.write_descriptor(call.args[0], call.args[1])
    for vcpu in domain.vcpus:
        vcpu.forget_selectors()


def check_ldt(gva: int, entries: int) -> None:
    """Raise XenError(EINVAL) for an LDT that cannot be."""
    if gva & PAGE_MASK or not is_guest_address(gva) or entries > MAX_LDT_ENTRIES:
        raise XenError(Errno.EINVAL, f"an LDT of {entries} entries at {gva:#x}")


def ldt_frames(translate: Callable[[int], int], gva: int, entries: int) -> list[int]:
    """Return the frames of an LDT by what `translate` tells of its addresses, 0 for a page that is not there. Raises XenError(EINVAL)."""
    check_ldt(gva, entries)
    mfns = []
    for page in range(gva, gva + entries * _DESCRIPTOR, PAGE_SIZE):
        try:
            mfns.append(translate(page) >> PAGE_SHIFT)
        except XenError:
            mfns.append(0)
    return mfns


def load_ldt(call: Call, gva: int, entries: int) -> None:
    """Load the calling vCPU's LDT. Raises XenError(EINVAL)."""
    mmu, vcpu = mmu_of(call), pv_vcpu(call)
    gva = gva if entries else 0
    mmu.tables_of(vcpu.vcpu_id).replace_ldt(ldt_frames(vcpu.translate, gva, entries))
    vcpu.set_ldt(gva, entries)
