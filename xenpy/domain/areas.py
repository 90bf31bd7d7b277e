"""Structures that are kept current in guest memory: a vCPU's clock and its runstate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import Errno, XenError
from xenpy.kvm.constants import MSR_KVM_SYSTEM_TIME_NEW, XenVcpuAttr
from xenpy.pv.shared_info import LEGACY_MAX_VCPUS, TIME_OFFSET, VCPU_INFO_SIZE

if TYPE_CHECKING:
    from xenpy.domain.vcpu import Vcpu


def place_time(vcpu: Vcpu) -> None:
    """Have KVM keep the time in vcpu_info current, wherever the guest sees vcpu_info now."""
    gpa = _vcpu_info_gpa(vcpu)
    if gpa is None:
        return
    if vcpu.domain.kvm_xen:
        vcpu.request(lambda: vcpu.kvm.xen_set_attr(XenVcpuAttr.VCPU_INFO, gpa=gpa))
    else:
        vcpu.request(lambda: _point_pvclock(vcpu, gpa + TIME_OFFSET))


def _point_pvclock(vcpu: Vcpu, gpa: int) -> None:
    """Have KVM write its own pvclock, which has vcpu_time_info's layout, to `gpa`."""
    vcpu.kvm.set_msrs({MSR_KVM_SYSTEM_TIME_NEW: gpa | 1})


def _vcpu_info_gpa(vcpu: Vcpu) -> int | None:
    domain = vcpu.domain
    info = domain.shared_info.vcpu_info[vcpu.vcpu_id]
    if info.gpa is not None:
        return info.gpa
    if domain.shared_info_gfn is None or vcpu.vcpu_id >= LEGACY_MAX_VCPUS:
        return None
    return (domain.shared_info_gfn << 12) + vcpu.vcpu_id * VCPU_INFO_SIZE


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
    gpa = _area(vcpu, address, physical=physical)
    vcpu.request(lambda: vcpu.kvm.xen_set_attr(XenVcpuAttr.VCPU_TIME_INFO, gpa=gpa))
