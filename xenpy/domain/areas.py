"""Structures in guest memory that the guest asks to be kept current: a vCPU's runstate and a second copy of its clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from xenpy.domain.vcpu import Vcpu


def _area(vcpu: Vcpu, address: int, *, physical: bool) -> int:
    gpa = address if physical else vcpu.translate(address, write=True)
    vcpu.domain.memory.check(gpa, 1)
    return gpa


def register_runstate(vcpu: Vcpu, address: int, *, physical: bool) -> None:
    """Keep struct vcpu_runstate_info current at a guest address. Raises XenError(EFAULT)."""
    wide = vcpu.domain.shared_info.layout.word_bits == 64
    vcpu.account.publish_at(vcpu.domain.memory, _area(vcpu, address, physical=physical), wide=wide)


def register_time(vcpu: Vcpu, address: int, *, physical: bool) -> None:
    """Keep a second vcpu_time_info current, where the kernel can do that. Raises XenError: ENOSYS where it cannot, EFAULT."""
    if not vcpu.domain.kvm_xen:
        raise XenError(Errno.ENOSYS, "KVM keeps only one clock a vCPU here")
    vcpu.time_area = _area(vcpu, address, physical=physical)
    vcpu.domain.timekeeper.place(vcpu)
