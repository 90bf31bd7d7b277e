"""What the hypercalls of PV guests have in common: whose memory they mean, and whose translations they drop."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.mmu import DOMID_IO, DOMID_XEN
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.domids import refusal

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call
    from xenpy.pv.mmu import Mmu, PvDomain, PvVcpu

_PREEMPTED: Final = 1 << 31
"""Set in the count of a call that Xen restarts after letting others in; it then goes on counting from what `pdone` holds."""
_MASK32: Final = 0xFFFFFFFF
_BITS: Final = 64


def pv_domain(call: Call) -> PvDomain:
    """Return the caller's domain as a PV one. Raises XenError(ENOSYS) when it is not."""
    if not call.domain.is_pv:
        raise XenError(Errno.ENOSYS, "the hypercall is for PV guests")
    return cast("PvDomain", call.domain)


def pv_vcpu(call: Call) -> PvVcpu:
    """Return the calling vCPU as that of a PV domain."""
    return cast("PvVcpu", call.vcpu)


def mmu_of(call: Call) -> Mmu:
    """Return the MMU of the caller's domain. Raises XenError(ENOSYS) when it is not a PV one."""
    return pv_domain(call).mmu


def foreign_is_io(call: Call, domid: int) -> bool:
    """Check which domain a call means by its foreigndom; tell whether it is DOMID_IO, which has no memory but I/O space.

    Raises XenError: ESRCH for a domain that is not there, and for the caller by its own number; EPERM for all that a domU may not touch.
    """
    if domid == DOMID_SELF:
        return False
    if domid == call.domain.domid:
        raise XenError(Errno.ESRCH, "the caller is DOMID_SELF here")
    if domid == DOMID_IO:
        return True
    raise foreign_refusal(call, domid)


def foreign_refusal(call: Call, domid: int) -> XenError:
    """Return how a domain that is not the caller is refused: EPERM. Raises XenError(ESRCH) if it is not there."""
    if domid in (DOMID_IO, DOMID_XEN):
        return XenError(Errno.EPERM, f"domain {domid:#x} is the hypervisor's")
    return refusal(call, domid)


def vcpu_mask(call: Call, gva: int) -> list[int]:
    """Return the numbers in a bitmap of vCPUs that the guest passes by pointer; excess bits are ignored. Raises XenError(EFAULT)."""
    count = len(call.domain.vcpus)
    words = call.words(gva, (count + _BITS - 1) // _BITS)
    return [vcpu_id for vcpu_id in range(count) if words[vcpu_id // _BITS] >> vcpu_id % _BITS & 1]


def progress(call: Call) -> tuple[int, int]:
    """Return (how many elements the caller's array has, how many it had dealt with before)."""
    array, count, pdone = call.args[0], call.args[1] & _MASK32, call.args[2]
    if not count & _PREEMPTED:
        return count, 0
    if not array:
        return 0, 0
    done = 0
    if pdone:
        with suppress(XenError):
            (done,) = call.words(pdone, 1, 4)
    return count & ~_PREEMPTED, done


def store_progress(call: Call, done: int) -> None:
    """Tell the guest how many elements of its array have been dealt with, if it wants to know and has room for the number."""
    if call.args[2]:
        with suppress(XenError):
            call.store_words(call.args[2], [done], 4)
