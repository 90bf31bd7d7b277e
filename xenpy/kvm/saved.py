"""A vCPU's registers as plain data: what KVM keeps of one, in KVM's own layouts.

Ref: linux/kvm.h, Documentation/virt/kvm/api.rst
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import _kvm_ioctl as request
from xenpy.abi._kvm import ffi
from xenpy.kvm.constants import Sync
from xenpy.kvm.system import checked_ioctl, pointer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.kvm.vcpu import KvmVcpu

MSR_TSC: Final = 0x10
MSR_TSC_DEADLINE: Final = 0x6E0
_STRUCTS: Final = {
    "xcrs": ("kvm_xcrs", request.KVM_GET_XCRS, request.KVM_SET_XCRS),
    "xsave": ("kvm_xsave", request.KVM_GET_XSAVE, request.KVM_SET_XSAVE),
    "debugregs": ("kvm_debugregs", request.KVM_GET_DEBUGREGS, request.KVM_SET_DEBUGREGS),
}
"""In the order of restoring: XSAVE's contents are checked against XCR0."""
_IN_KERNEL: Final = {
    "lapic": ("kvm_lapic_state", request.KVM_GET_LAPIC, request.KVM_SET_LAPIC),
    "mp_state": ("kvm_mp_state", request.KVM_GET_MP_STATE, request.KVM_SET_MP_STATE),
    "vcpu_events": ("kvm_vcpu_events", request.KVM_GET_VCPU_EVENTS, request.KVM_SET_VCPU_EVENTS),
}
"""Of a vCPU whose interrupts KVM delivers, beside the others."""


@dataclass(frozen=True, slots=True)
class KvmState:
    """The registers of one vCPU: `structs` by name, each in the layout of its ioctl; `msrs` without the time-stamp counter's."""

    regs: bytes
    sregs: bytes
    structs: dict[str, bytes]
    msrs: dict[int, int]
    tsc: int


def save(kvm: KvmVcpu, msrs: Sequence[int], *, in_kernel: bool = False) -> KvmState:
    """Return the registers of a vCPU that stands still; `in_kernel` says that KVM delivers its interrupts."""
    wanted = _STRUCTS | _IN_KERNEL if in_kernel else _STRUCTS
    structs = {name: _read(kvm.fd, struct, get, name) for name, (struct, get, _) in wanted.items()}
    values: dict[int, int] = {}
    for msr in msrs:  # one by one: what this processor has not got must not hide those behind it
        values |= kvm.get_msrs([msr])
    tsc = kvm.get_msrs([MSR_TSC])[MSR_TSC]
    return KvmState(
        bytes(ffi.buffer(ffi.addressof(kvm.regs))), bytes(ffi.buffer(ffi.addressof(kvm.sregs))), structs, values, tsc
    )


def load(kvm: KvmVcpu, state: KvmState, tsc: int) -> None:
    """Give a new vCPU registers, and a time-stamp counter that goes on from `tsc`."""
    ffi.buffer(ffi.addressof(kvm.regs))[:] = state.regs
    ffi.buffer(ffi.addressof(kvm.sregs))[:] = state.sregs
    kvm.dirty(Sync.REGS | Sync.SREGS)
    in_kernel = "lapic" in state.structs
    if in_kernel:
        kvm.store()  # the LAPIC's state depends on its base address, which is among these; events come last
    _write_msrs(kvm, {**state.msrs, MSR_TSC: tsc})
    for name, (struct, _, set_) in (_STRUCTS | _IN_KERNEL).items():
        if name in state.structs:
            _write(kvm.fd, struct, set_, state.structs[name], name)
    if in_kernel and (deadline := state.msrs.get(MSR_TSC_DEADLINE)):
        kvm.set_msrs({MSR_TSC_DEADLINE: deadline})  # without a LAPIC in that mode it was ignored


def _write_msrs(kvm: KvmVcpu, values: dict[int, int]) -> None:
    """Write MSRs, but for those that the kernel can be asked for and refuses to change."""
    left = list(values.items())
    while left:
        left = left[kvm.set_msrs(dict(left)) + 1 :]


def _read(fd: int, struct: str, number: int, what: str) -> bytes:
    value: Any = ffi.new(f"struct {struct} *")
    checked_ioctl(fd, number, pointer(value), f"read {what}")
    return bytes(ffi.buffer(value))


def _write(fd: int, struct: str, number: int, data: bytes, what: str) -> None:
    value: Any = ffi.new(f"struct {struct} *")
    ffi.buffer(value)[:] = data
    checked_ioctl(fd, number, pointer(value), f"write {what}")
