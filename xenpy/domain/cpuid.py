"""What CPUID answers a guest: KVM's leaves trimmed to what Xen would show, and Xen's own.

Ref: xen/include/public/arch-x86/cpuid.h; AMD64 Architecture Programmer's Manual, volume 3, appendix E
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.memory import ADDRESS_BITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.kvm.vcpu import CpuidEntry
    from xenpy.pv.version import XenVersion

XEN_BASE: Final = 0x4000_0000
XEN_MSR: Final = 0x4000_0000
"""The MSR that fills in a hypercall page."""
HYPERVISOR_END: Final = 0x4001_0000
_XENV, _MMXE, _NVMM = 0x566E6558, 0x65584D4D, 0x4D4D566E

_HVM_CPUID_VCPU_ID_PRESENT: Final = 1 << 3
_HVM_CPUID_DOMID_PRESENT: Final = 1 << 4
_HVM_CPUID_UPCALL_VECTOR: Final = 1 << 6


_LEAF1_ECX_MONITOR: Final = 1 << 3
_LEAF1_ECX_HYPERVISOR: Final = 1 << 31
_LEAF1_EDX_HTT: Final = 1 << 28
_LEAF_PMU: Final = 0xA
_LEAF_XSAVE: Final = 0xD
_LEAF_TOPOLOGY: Final = (0xB, 0x1F)
_LEVEL_THREAD: Final = 1
_LEVEL_CORE: Final = 2


def apic_id(vcpu_id: int) -> int:
    """Return the LAPIC id of a vCPU: twice its number, as Xen has it."""
    return vcpu_id * 2


def _topology(vcpu_id: int, vcpus: int) -> list[CpuidEntry]:
    """Return leaf 0xb: one thread a core, all cores in one package."""
    shift = max(1, (apic_id(vcpus - 1)).bit_length())
    x2apic = apic_id(vcpu_id)
    return [
        (0xB, 0, 1, (1, 1, _LEVEL_THREAD << 8, x2apic)),
        (0xB, 1, 1, (shift, vcpus, _LEVEL_CORE << 8 | 1, x2apic)),
        (0xB, 2, 1, (0, 0, 2, x2apic)),
    ]


def _trim(entry: CpuidEntry, vcpu_id: int, vcpus: int) -> CpuidEntry | None:
    """Return a host leaf as the guest may see it, or None to leave it out."""
    leaf, subleaf, flags, (eax, ebx, ecx, edx) = entry
    if XEN_BASE <= leaf < HYPERVISOR_END or leaf in _LEAF_TOPOLOGY:
        return None
    if leaf == 1:
        ebx = ebx & 0xFFFF | min(255, vcpus * 2) << 16 | (apic_id(vcpu_id) & 0xFF) << 24
        ecx = (ecx | _LEAF1_ECX_HYPERVISOR) & ~_LEAF1_ECX_MONITOR
        edx = edx | _LEAF1_EDX_HTT if vcpus > 1 else edx & ~_LEAF1_EDX_HTT
    elif leaf == _LEAF_PMU:
        eax = ebx = ecx = edx = 0
    elif leaf == 0x8000_0008:
        eax = eax & ~0xFF | min(eax & 0xFF, ADDRESS_BITS)
        ecx = ecx & ~0xF0FF | (vcpus * 2 - 1) & 0xFF
    elif leaf == 0x8000_001E:
        eax, ebx = apic_id(vcpu_id), ebx & ~0xFF | vcpu_id & 0xFF
    return leaf, subleaf, flags, (eax, ebx, ecx, edx)


def xen_leaves(
    version: XenVersion, domid: int, vcpu_id: int, tsc_khz: int, *, hvm: bool, tsc_mode: int = 0
) -> list[CpuidEntry]:
    """Return the hypervisor leaves from 0x40000000 on."""
    features = _HVM_CPUID_VCPU_ID_PRESENT | _HVM_CPUID_DOMID_PRESENT | _HVM_CPUID_UPCALL_VECTOR
    leaves: list[CpuidEntry] = [
        (XEN_BASE, 0, 0, (XEN_BASE + 5, _XENV, _MMXE, _NVMM)),
        (XEN_BASE + 1, 0, 0, (version.number, 0, 0, 0)),
        (XEN_BASE + 2, 0, 0, (1, XEN_MSR, 0 if hvm else 1, 0)),
        (XEN_BASE + 3, 0, 1, (0, tsc_mode, tsc_khz, 0)),
        (XEN_BASE + 3, 1, 1, (0, 0, 0, 0)),
        (XEN_BASE + 3, 2, 1, (tsc_khz, 0, 0, 0)),
        (XEN_BASE + 4, 0, 0, (features, vcpu_id, domid, 0) if hvm else (0, 0, 0, 0)),
        (XEN_BASE + 5, 0, 1, (0, 0 if hvm else ADDRESS_BITS, 0, 0)),
    ]
    return leaves


def xcr0_features(host: Sequence[CpuidEntry]) -> int:
    """Return the XCR0 bits that a guest may set, 0 without XSAVE."""
    for leaf, subleaf, _, (eax, _, _, edx) in host:
        if leaf == _LEAF_XSAVE and subleaf == 0:
            return edx << 32 | eax
    return 0


def policy(
    host: Sequence[CpuidEntry], version: XenVersion, domid: int, vcpu_id: int, vcpus: int, tsc_khz: int
) -> list[CpuidEntry]:
    """Return every CPUID entry of a PVH vCPU."""
    trimmed = [entry for entry in (_trim(entry, vcpu_id, vcpus) for entry in host) if entry is not None]
    return trimmed + _topology(vcpu_id, vcpus) + xen_leaves(version, domid, vcpu_id, tsc_khz, hvm=True)
