"""Who tells a domain the time: KVM, or, while time does not go as the host's, we.

A guest computes system time from its TSC by a vcpu_time_info: system_time + ((tsc - tsc_timestamp) << shift) * mul >> 32. KVM keeps that
current for a clock that goes as the host's, and leaps when it is told to. For a clock at any other rate KVM is told to leave the structure
alone, and one that we write once holds until the rate changes: its multiplier is the rate.

Ref: xen/include/public/xen.h, struct vcpu_time_info
"""

from __future__ import annotations

import time
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpy.domain.areas import publish_time
from xenpy.errors import HostError
from xenpy.kvm.constants import KVM_INVALID_GPA, MSR_KVM_SYSTEM_TIME_NEW, XenVcpuAttr
from xenpy.pv.shared_info import LEGACY_MAX_VCPUS, TIME_OFFSET, VCPU_INFO_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.pv.time import SystemClock

_TIME_INFO: Final = Struct("<IIQQIbBxx")
"""version, (pad), tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags"""
_MSR_TSC: Final = 0x10
_NS_PER_KHZ: Final = 1_000_000
_MUL_BITS: Final = 32
_SHIFT_MIN: Final = -31
_STOPPED: Final = 1, _SHIFT_MIN
"""A multiplier and shift that make any number of ticks no time at all; Linux divides by the multiplier, so it must not be 0."""
_TRIES: Final = 5


def scale_of(tsc_khz: int, rate: float) -> tuple[int, int]:
    """Return tsc_to_system_mul and tsc_shift for a TSC of that frequency and a clock of that rate."""
    if not rate:
        return _STOPPED
    from fractions import Fraction

    scale = Fraction(rate) * _NS_PER_KHZ / tsc_khz
    shift = 0
    while scale >= 1:
        scale, shift = scale / 2, shift + 1
    while scale < Fraction(1, 2) and shift > _SHIFT_MIN:
        scale, shift = scale * 2, shift - 1
    return int(scale * (1 << _MUL_BITS)), shift


class Timekeeper:
    """Keeps every vcpu_time_info of a domain in step with its clock."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.own = False
        """Whether vcpu_time_info is ours to write, not KVM's."""
        self._second: dict[int, int] = {}
        """By vCPU: where KVM keeps a second copy."""

    def kvm_copies(self, vcpu: Vcpu) -> bool:
        """Tell whether KVM keeps a vCPU's second vcpu_time_info as well as the first."""
        return self._second.get(vcpu.vcpu_id, KVM_INVALID_GPA) != KVM_INVALID_GPA

    def change(self, action: Callable[[SystemClock], None]) -> None:
        """Change the clock, and all that goes by it. While no vCPU runs, the host's lock being held only if all sleep. Raises HostError."""
        domain = self._domain
        if not all(vcpu.kvm.tsc_khz() for vcpu in domain.vcpus):
            raise HostError("KVM does not tell the frequency of the TSC here, so guests' time cannot be changed")
        with domain.host.lock:
            for vcpu in domain.vcpus:
                vcpu.account.clock_changes()
            action(domain.clock)
            was_own, self.own = self.own, domain.clock.rate != 1
            if not self.own:
                domain.vm.set_clock(domain.clock.now())
            if self.own or was_own:
                for vcpu in domain.vcpus:
                    self._place(vcpu)
            domain.write_wallclock()
            if domain.kernel_events is not None:
                domain.kernel_events.clock_changed()
            domain.watchdogs.clock_changed()
            for vcpu in domain.vcpus:
                vcpu.time_published = b""
                vcpu.clock_changed()

    def place(self, vcpu: Vcpu) -> None:
        """Keep the time current in vcpu_info, which the guest has placed anew, and in a second area that it has registered."""
        vcpu.request(lambda: self._place(vcpu))

    def _place(self, vcpu: Vcpu) -> None:
        """Do so while the vCPU does not run."""
        gpa, by_kvm = vcpu_info_gpa(vcpu), not self.own
        if self._domain.kvm_xen:
            if gpa is not None:
                vcpu.kvm.xen_set_attr(XenVcpuAttr.VCPU_INFO, gpa=gpa if by_kvm else KVM_INVALID_GPA)
            self._place_second(vcpu, by_kvm=by_kvm)
        elif gpa is not None:
            # KVM's own pvclock has vcpu_time_info's layout.
            vcpu.kvm.set_msrs({MSR_KVM_SYSTEM_TIME_NEW: gpa + TIME_OFFSET | 1 if by_kvm else 0})
        if self.own and gpa is not None:
            self._write(vcpu)

    def _place_second(self, vcpu: Vcpu, *, by_kvm: bool) -> None:
        """Have KVM keep the second copy where it can, which is within a page that it may write to."""
        area = vcpu.time_area
        whole = area is not None and area.rest is None
        second = area.address if area is not None and whole and by_kvm else KVM_INVALID_GPA
        if second == self._second.get(vcpu.vcpu_id, KVM_INVALID_GPA):
            return
        try:
            vcpu.kvm.xen_set_attr(XenVcpuAttr.VCPU_TIME_INFO, gpa=second)
        except OSError as error:
            self._domain.log("time-area", f"vcpu_time_info at gpa {second:#x}: {error}; it is written by Python")
            vcpu.kvm.xen_set_attr(XenVcpuAttr.VCPU_TIME_INFO, gpa=KVM_INVALID_GPA)
            second = KVM_INVALID_GPA
        self._second[vcpu.vcpu_id] = second

    def _write(self, vcpu: Vcpu) -> None:
        """Write vcpu_time_info ourselves. The guest must not be reading it."""
        view = self._domain.shared_info.vcpu_info[vcpu.vcpu_id].view[TIME_OFFSET:VCPU_INFO_SIZE]
        tsc, now = self._sample(vcpu)
        version = int.from_bytes(view[:4], "little")
        mul, shift = scale_of(vcpu.kvm.tsc_khz(), self._domain.clock.rate)
        data = _TIME_INFO.pack((version + 2) & 0xFFFF_FFFE, 0, tsc, max(0, now), mul, shift, 0)
        view[:] = data
        publish_time(vcpu)

    def _sample(self, vcpu: Vcpu) -> tuple[int, int]:
        """Return a vCPU's TSC and the system time of the same moment: of several tries that which took least."""
        best = 0, 0
        least = None
        for _ in range(_TRIES):
            before, started = self._domain.clock.now(), time.monotonic_ns()
            tsc = vcpu.kvm.get_msrs([_MSR_TSC])[_MSR_TSC]
            took, after = time.monotonic_ns() - started, self._domain.clock.now()
            if least is None or took < least:
                least, best = took, (tsc, (before + after) // 2)
        return best


def vcpu_info_gpa(vcpu: Vcpu) -> int | None:
    """Return where the guest sees a vCPU's vcpu_info, None while it does not."""
    domain = vcpu.domain
    info = domain.shared_info.vcpu_info[vcpu.vcpu_id]
    if info.gpa is not None:
        return info.gpa
    if domain.shared_info_gfn is None or vcpu.vcpu_id >= LEGACY_MAX_VCPUS:
        return None
    return (domain.shared_info_gfn << 12) + vcpu.vcpu_id * VCPU_INFO_SIZE
