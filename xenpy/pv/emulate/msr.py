"""Which model-specific registers a PV guest finds, and what it may do to them.

A domU has none of the machine's: a few are its own, some have a fixed value that may be written back, and the rest make #GP. The table
follows what Xen 4.15 and later tell a PV guest without `msr_relaxed`.

Ref: xl.cfg(5), msr_relaxed; AMD64 Architecture Programmer's Manual (APM), volume 2, appendix A;
Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), volume 4
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from xenpy.pv.emulate.machine import GuestFault, Vector
from xenpy.pv.paging import EFER_LMA, EFER_LME, is_canonical

if TYPE_CHECKING:
    from collections.abc import Callable

# Ref: APM, volume 2, appendix A, for the architectural ones and those from 0xc0010000; SDM, volume 4, 2.1, for the rest.
MSR_TSC: Final = 0x10
MSR_IA32_PLATFORM_ID: Final = 0x17
MSR_APIC_BASE: Final = 0x1B
MSR_IA32_UCODE_REV: Final = 0x8B
MSR_INTEL_PLATFORM_INFO: Final = 0xCE
MSR_INTEL_MISC_FEATURES_ENABLES: Final = 0x140
MSR_MCG_CAP: Final = 0x179
MSR_MCG_STATUS: Final = 0x17A
MSR_IA32_MISC_ENABLE: Final = 0x1A0
MSR_IA32_CR_PAT: Final = 0x277
MSR_EFER: Final = 0xC000_0080
MSR_FS_BASE: Final = 0xC000_0100
MSR_GS_BASE: Final = 0xC000_0101
MSR_SHADOW_GS_BASE: Final = 0xC000_0102
MSR_TSC_AUX: Final = 0xC000_0103
MSR_K8_SYSCFG: Final = 0xC001_0010
MSR_K8_HWCR: Final = 0xC001_0015

_PMU_INTEL: Final = (*range(0xC1, 0xC9), *range(0x186, 0x18E), *range(0x309, 0x30D), *range(0x38D, 0x391))
_PMU_AMD: Final = (*range(0xC001_0000, 0xC001_0008), *range(0xC001_0200, 0xC001_020C))
"""Performance counters. Ref: SDM, volume 4, 2.1; APM, volume 2, 13.2"""
_HYPERVISOR: Final = range(0x4000_0000, 0x4001_0000)

_EFER_SCE: Final = 1 << 0
_EFER_NXE: Final = 1 << 11
_EFER: Final = _EFER_SCE | EFER_LME | EFER_LMA | _EFER_NXE
_APIC_BASE_DEFAULT: Final = 0xFEE0_0000
_APIC_BASE_BSP: Final = 1 << 8
_APIC_BASE_ENABLE: Final = 1 << 11
_PAT: Final = 0x0000_0501_0007_0406
"""WB, WT, UC-, UC, WC, WP, UC, UC: the encoding of cacheability that PV page tables use, and no guest can change."""
_MISC_ENABLE_FAST_STRINGS: Final = 1 << 0
_MISC_ENABLE_BTS_UNAVAILABLE: Final = 1 << 11
_MISC_ENABLE_PEBS_UNAVAILABLE: Final = 1 << 12
_HWCR_TSC_FREQ_SEL: Final = 1 << 24
"""The TSC counts at the base frequency: Linux complains of firmware that leaves it clear."""


class MsrState(Protocol):
    """The part of a vCPU's state that MSRs show."""

    fs_base: int
    gs_base: int
    kernel_gs_base: int
    """The GS base that swapgs would bring: user mode's, as only the kernel gets to see it."""
    tsc_aux: int

    @property
    def vcpu_id(self) -> int:
        """Return the vCPU's number."""

    @property
    def is_intel(self) -> bool:
        """Tell whether CPUID leaf 0 shows the guest an Intel processor."""

    @property
    def has_gp_handler(self) -> bool:
        """Tell whether the guest has registered a handler of #GP."""

    def rdtsc(self) -> int:
        """Return the guest's time-stamp counter."""


def _refuse(_state: MsrState, _value: int) -> None:
    raise GuestFault(Vector.GP)


def _drop(_state: MsrState, _value: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Rule:
    """What an MSR reads as, and what a write does; a write may raise GuestFault."""

    read: Callable[[MsrState], int]
    write: Callable[[MsrState, int], None] = _refuse


def _fixed(value: int | Callable[[MsrState], int]) -> Rule:
    """Return the rule of an MSR whose value may only be written back."""

    def read(state: MsrState) -> int:
        return value if isinstance(value, int) else value(state)

    def write(state: MsrState, new: int) -> None:
        if new != read(state):
            raise GuestFault(Vector.GP)

    return Rule(read, write)


def _base(name: str) -> Rule:
    """Return the rule of a segment base."""

    def write(state: MsrState, gva: int) -> None:
        if not is_canonical(gva):
            raise GuestFault(Vector.GP)
        setattr(state, name, gva)

    return Rule(lambda state: int(getattr(state, name)), write)


def _set_tsc_aux(state: MsrState, value: int) -> None:
    if value >> 32:
        raise GuestFault(Vector.GP)
    state.tsc_aux = value


def _apic_base(state: MsrState) -> int:
    """Return an enabled LAPIC at the usual place, though a PV guest has none: Linux looks before it knows."""
    return _APIC_BASE_DEFAULT | _APIC_BASE_ENABLE | (0 if state.vcpu_id else _APIC_BASE_BSP)


_NOT_COUNTING: Final = Rule(lambda _: 0, _drop)
"""Without a virtual PMU its registers are there, and dead."""

_COMMON: Final[dict[int, Rule]] = {
    MSR_TSC: Rule(lambda state: state.rdtsc()),
    MSR_APIC_BASE: _fixed(_apic_base),
    MSR_IA32_UCODE_REV: _fixed(0),  # writing 0 before CPUID is how the revision is read
    MSR_MCG_CAP: _fixed(0),  # machine checks without banks
    MSR_MCG_STATUS: _fixed(0),
    MSR_IA32_CR_PAT: _fixed(_PAT),
    MSR_EFER: _fixed(_EFER),
    MSR_FS_BASE: _base("fs_base"),
    MSR_GS_BASE: _base("gs_base"),
    MSR_SHADOW_GS_BASE: _base("kernel_gs_base"),
    MSR_TSC_AUX: Rule(lambda state: state.tsc_aux, _set_tsc_aux),
}
_INTEL: Final[dict[int, Rule]] = _COMMON | {
    MSR_IA32_PLATFORM_ID: Rule(lambda _: 0, _drop),
    MSR_INTEL_PLATFORM_INFO: _fixed(0),  # no CPUID faulting
    MSR_INTEL_MISC_FEATURES_ENABLES: _fixed(0),
    MSR_IA32_MISC_ENABLE: _fixed(
        _MISC_ENABLE_FAST_STRINGS | _MISC_ENABLE_BTS_UNAVAILABLE | _MISC_ENABLE_PEBS_UNAVAILABLE
    ),
    **dict.fromkeys(_PMU_INTEL, _NOT_COUNTING),
}
_AMD: Final[dict[int, Rule]] = _COMMON | {
    MSR_K8_SYSCFG: _fixed(0),
    MSR_K8_HWCR: _fixed(_HWCR_TSC_FREQ_SEL),
    **dict.fromkeys(_PMU_AMD, _NOT_COUNTING),
}


def _rule(state: MsrState, index: int) -> Rule | None:
    return (_INTEL if state.is_intel else _AMD).get(index)


def read_msr(state: MsrState, index: int) -> int:
    """Return what the guest kernel reads from an MSR. Raises GuestFault(#GP) for one that it does not have.

    Before the guest has a handler of #GP such a one reads as 0: kernels read some of them early, and would die of the fault. Xen's own
    MSRs, 0x40000000 and on, are the caller's.
    """
    rule = _rule(state, index)
    if rule is not None:
        return rule.read(state)
    if state.has_gp_handler or index in _HYPERVISOR:
        raise GuestFault(Vector.GP)
    return 0


def write_msr(state: MsrState, index: int, value: int) -> None:
    """Do the guest kernel's write of an MSR. Raises GuestFault(#GP) for one that it does not have, or may not change so."""
    (_rule(state, index) or Rule(lambda _: 0)).write(state, value)
