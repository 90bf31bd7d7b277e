"""The register state a PVH vCPU starts with: at boot, or from struct vcpu_hvm_context.

Ref: docs/misc/pvh.pandoc, xen/include/public/hvm/hvm_vcpu.h
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi.vcpu import VCPU_HVM_MODE_32B
from xenpy.codec import plain
from xenpy.errors import Errno, XenError
from xenpy.kvm.constants import MpState, Sync
from xenpy.pv.paging import CR0_PE, CR0_PG, EFER_LMA, EFER_LME

if TYPE_CHECKING:
    from xenpy.kvm.vcpu import KvmVcpu

CR0_ET: Final = 1 << 4
RFLAGS_RESERVED: Final = 1 << 1
_RFLAGS_VM: Final = 1 << 17
_CODE: Final = 0xC9B  # 32-bit code, execute/read, accessed, present, 4 KiB granularity
_CODE_64: Final = 0xA9B
_DATA: Final = 0xC93
_TSS: Final = 0x8B
_TSS_LIMIT: Final = 0x67


@plain
@dataclass(frozen=True, slots=True)
class StartState:
    """Registers, and segments as name -> (base, limit, attributes in VMCB form: type, s, dpl, p, avl, l, db, g)."""

    regs: dict[str, int]
    control: dict[str, int]
    segments: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def apply(self, kvm: KvmVcpu) -> None:
        """Load the state; the vCPU is runnable afterwards only if its MP state says so."""
        for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip"):
            setattr(kvm.regs, name, self.regs.get(name, 0))
        kvm.regs.rflags = self.regs.get("rflags", 0) | RFLAGS_RESERVED
        for name, value in self.control.items():
            setattr(kvm.sregs, name, value)
        for name, (base, limit, attributes) in self.segments.items():
            _set_segment(getattr(kvm.sregs, name), base, limit, attributes)
        kvm.dirty(Sync.REGS | Sync.SREGS)


def _set_segment(segment: Any, base: int, limit: int, attributes: int) -> None:
    segment.base, segment.limit = base, limit
    segment.type = attributes & 0xF
    segment.s = attributes >> 4 & 1
    segment.dpl = attributes >> 5 & 3
    segment.present = attributes >> 7 & 1
    segment.avl = attributes >> 8 & 1
    segment.l = attributes >> 9 & 1
    segment.db = attributes >> 10 & 1
    segment.g = attributes >> 11 & 1
    segment.unusable = not segment.present
    segment.selector = 0


def _flat(code: int) -> dict[str, tuple[int, int, int]]:
    data = (0, 0xFFFF_FFFF, _DATA)
    return {
        "cs": (0, 0xFFFF_FFFF, code), "ds": data, "es": data, "ss": data, "fs": data, "gs": data,
        "tr": (0, _TSS_LIMIT, _TSS), "ldt": (0, 0, 0x82 & ~0x80),
    }  # fmt: skip


def pvh_entry(eip: int, start_info: int) -> StartState:
    """Return the state in which a PVH kernel is entered: 32-bit protected mode, flat, EBX = start_info."""
    return StartState(
        {"rip": eip, "rbx": start_info}, {"cr0": CR0_PE | CR0_ET, "cr3": 0, "cr4": 0, "efer": 0}, _flat(_CODE)
    )


def load(context: Any) -> StartState:
    """Return the state that struct vcpu_hvm_context describes. Raises XenError(EINVAL) where Xen would."""
    if context.mode == VCPU_HVM_MODE_32B:
        return _load_32(context.cpu_regs.x86_32)
    return _load_64(context.cpu_regs.x86_64)


def _check_flags(flags: int) -> None:
    if flags & _RFLAGS_VM:
        raise XenError(Errno.EINVAL, "virtual-8086 mode")


def _load_32(source: Any) -> StartState:
    _check_flags(source.eflags)
    if source.cr0 & CR0_PG and not source.cr0 & CR0_PE:
        raise XenError(Errno.EINVAL, "paging without protected mode")
    names = ("ax", "bx", "cx", "dx", "si", "di", "sp", "bp", "ip", "flags")
    regs = {f"r{name}": getattr(source, f"e{name}") for name in names}
    segments = {
        name: (getattr(source, f"{name}_base"), getattr(source, f"{name}_limit"), getattr(source, f"{name}_ar"))
        for name in ("cs", "ds", "ss", "es", "tr")
    }
    if not segments["cs"][2] & 0x80:
        raise XenError(Errno.EINVAL, "CS is not present")
    efer = source.efer | (EFER_LMA if source.efer & EFER_LME and source.cr0 & CR0_PG else 0)
    control = {"cr0": source.cr0 | CR0_ET, "cr3": source.cr3, "cr4": source.cr4, "efer": efer}
    return StartState(regs, control, segments)


def _load_64(source: Any) -> StartState:
    _check_flags(source.rflags)
    needed = CR0_PE | CR0_PG
    if source.cr0 & needed != needed or not source.efer & EFER_LME:
        raise XenError(Errno.EINVAL, "64-bit mode needs CR0.PE, CR0.PG and EFER.LME")
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "rip", "rflags")
    control = {"cr0": source.cr0 | CR0_ET, "cr3": source.cr3, "cr4": source.cr4, "efer": source.efer | EFER_LMA}
    return StartState({name: getattr(source, name) for name in names}, control, _flat(_CODE_64))


def make_first(kvm: KvmVcpu, state: StartState) -> None:
    """Load the boot vCPU, which runs at once."""
    state.apply(kvm)
    kvm.set_mp_state(MpState.RUNNABLE)
