"""What CPUID answers a PV guest: KVM's leaves without what belongs to the hypervisor or cannot be had in ring 3.

Ref: AMD64 Architecture Programmer's Manual, volume 3, appendix E; Intel SDM, volume 2, CPUID
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.domain.cpuid import HYPERVISOR_END, XEN_BASE, xen_leaves
from xenpy.memory import ADDRESS_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.kvm.vcpu import CpuidEntry
    from xenpy.pv.version import XenVersion


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


# MONITOR, DTES64, DS-CPL, VMX, SMX, EIST, TM2, CNXT-ID, xTPR, PDCM, PCID, DCA, x2APIC, TSC-deadline
_1_ECX_HIDDEN: Final = _bits(2, 3, 4, 5, 6, 7, 8, 10, 14, 15, 17, 18, 21, 24)
_1_ECX_HYPERVISOR: Final = 1 << 31
# VME, PSE, MCE, SEP, MTRR, PGE, MCA, PSE36, DS, ACPI, SS, HTT, TM, PBE
_1_EDX_HIDDEN: Final = _bits(1, 3, 7, 11, 12, 13, 14, 17, 21, 22, 27, 28, 29, 31)
# FSGSBASE, TSC_ADJUST, SGX, HLE, SMEP, INVPCID, RTM, PQM, MPX, PQE, SMAP, PT
_7_EBX_HIDDEN: Final = _bits(0, 1, 2, 4, 7, 10, 11, 12, 14, 15, 20, 25)
# UMIP, PKU, OSPKE, WAITPKG, CET_SS, TME, LA57, RDPID, KL, BUS_LOCK, ENQCMD, SGX_LC, PKS
_7_ECX_HIDDEN: Final = _bits(2, 3, 4, 5, 7, 13, 16, 22, 23, 24, 29, 30, 31)
_7_EDX_SHOWN: Final = _bits(2, 3, 4, 8, 14, 23)
"""AVX512_4VNNIW, 4FMAPS, FSRM, VP2INTERSECT, SERIALIZE, AVX512_FP16: speculation controls are MSRs, and AMX has no state here."""
_XCR0: Final = _bits(0, 1, 2, 5, 6, 7)
"""x87, SSE, AVX and AVX-512."""
_D1_EAX_SHOWN: Final = _bits(0, 1, 2)
"""XSAVEOPT, XSAVEC, XGETBV with ECX=1; not XSAVES, which is privileged."""
# SVM, EXTAPIC, OSVW, IBS, SKINIT, WDT, LWP, NODEID, TOPOEXT, performance counters, MONITORX
_81_ECX_HIDDEN: Final = _bits(2, 3, 9, 10, 12, 13, 15, 19, 22, 23, 24, 26, 27, 28, 29)
# as in leaf 1, and MP, 1 GiB pages, RDTSCP
_81_EDX_HIDDEN: Final = _bits(1, 3, 7, 12, 13, 14, 17, 19, 26, 27)
_88_EBX_SHOWN: Final = _bits(0, 2)
"""CLZERO, and FXRSTOR's error pointers."""
_EMPTY_LEAVES: Final = (
    5,
    6,
    0xA,
    0xB,
    0xF,
    0x10,
    0x12,
    0x14,
    0x1B,
    0x1C,
    0x1D,
    0x1E,
    0x1F,
    0x8000_000A,
    0x8000_001B,
    0x8000_001E,
)
_XSAVE_HEADER_END: Final = 576
"""Bytes of the legacy area and the header. Ref: Intel SDM, volume 1, 13.4"""


def xcr0(host: Sequence[CpuidEntry]) -> int:
    """Return the XCR0 of a guest, 0 without XSAVE."""
    for leaf, subleaf, _, (eax, _, _, _) in host:
        if leaf == 0xD and subleaf == 0:
            return eax & _XCR0
    return 0


def _xsave_size(host: Sequence[CpuidEntry], features: int) -> int:
    """Return the size of the standard-format save area of the features."""
    ends = [
        eax + ebx
        for leaf, subleaf, _, (eax, ebx, _, _) in host
        if leaf == 0xD and subleaf > 1 and features >> subleaf & 1
    ]
    return max([_XSAVE_HEADER_END, *ends])


def _trim(entry: CpuidEntry, host: Sequence[CpuidEntry], vcpu_id: int) -> CpuidEntry | None:
    leaf, subleaf, flags, (eax, ebx, ecx, edx) = entry
    if XEN_BASE <= leaf < HYPERVISOR_END:
        return None
    if leaf in _EMPTY_LEAVES:
        eax = ebx = ecx = edx = 0
    elif leaf == 1:
        ebx = ebx & 0xFF00 | 1 << 16 | (vcpu_id * 2 & 0xFF) << 24
        ecx = ecx & ~_1_ECX_HIDDEN | _1_ECX_HYPERVISOR
        edx &= ~_1_EDX_HIDDEN
    elif leaf == 7:
        eax, ebx, ecx, edx = (
            (eax, ebx & ~_7_EBX_HIDDEN, ecx & ~_7_ECX_HIDDEN, edx & _7_EDX_SHOWN)
            if not subleaf
            else (eax & 0x30, 0, 0, 0)
        )
    elif leaf == 0xD:
        features = xcr0(host)
        if subleaf == 0:
            size = _xsave_size(host, features)
            eax, ebx, ecx, edx = features, size, size, 0
        elif subleaf == 1:
            eax, ebx, ecx, edx = eax & _D1_EAX_SHOWN, 0, 0, 0
        elif not features >> subleaf & 1:
            return None
    elif leaf == 0x8000_0001:
        ecx, edx = ecx & ~_81_ECX_HIDDEN, edx & ~_81_EDX_HIDDEN
    elif leaf == 0x8000_0008:
        eax, ebx, ecx = eax & ~0xFF | min(eax & 0xFF, ADDRESS_BITS), ebx & _88_EBX_SHOWN, 0
    return leaf, subleaf, flags, (eax, ebx, ecx, edx)


def policy(host: Sequence[CpuidEntry], version: XenVersion, domid: int, vcpu_id: int, tsc_khz: int) -> list[CpuidEntry]:
    """Return every CPUID entry of a PV vCPU."""
    trimmed = [entry for entry in (_trim(entry, host, vcpu_id) for entry in host) if entry is not None]
    return trimmed + xen_leaves(version, domid, vcpu_id, tsc_khz, hvm=False)


class CpuidTable:
    """A policy that can be asked."""

    def __init__(self, entries: Sequence[CpuidEntry]) -> None:
        self._indexed = {(leaf, subleaf): registers for leaf, subleaf, flags, registers in entries if flags & 1}
        self._with_subleaves = {leaf for leaf, _ in self._indexed}
        self._plain = {leaf: registers for leaf, _, flags, registers in entries if not flags & 1}
        self.is_intel = self.ask(0, 0)[1] == _GENU

    def ask(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Return eax, ebx, ecx, edx; zeroes for what is not there."""
        return self._plain.get(leaf) or self._indexed.get((leaf, subleaf)) or (0, 0, 0, 0)

    def hypervisor_gap(self) -> range:
        """Return the leaves behind the last that is there of a hypervisor's: guests look at each 256th of them for another one."""
        last = max(
            (leaf for leaf in (*self._plain, *self._with_subleaves) if leaf in _HYPERVISOR_LEAVES),
            default=_HYPERVISOR_LEAVES.start,
        )
        return range(last + 1, _HYPERVISOR_LEAVES.stop)

    def has_subleaves(self, leaf: int) -> bool:
        """Tell whether the answer for a leaf depends on ECX."""
        return leaf in self._with_subleaves and leaf not in self._plain


_HYPERVISOR_LEAVES: Final = range(XEN_BASE, HYPERVISOR_END)
_GENU: Final = 0x756E_6547
"""EBX of leaf 0: "Genu"ineIntel."""
