"""The Xen that a guest believes it runs on.

Ref: xen/include/public/version.h, features.h
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

CAPABILITIES: Final = "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
"""The guest types of this Xen in XENVER_capabilities' form. The number is the interface's, which scripts look for; a space ends it."""


class XENFEAT(IntEnum):
    """Bit numbers of XENVER_get_features submap 0. Ref: xen/include/public/features.h"""

    writable_page_tables = 0
    writable_descriptor_tables = 1
    auto_translated_physmap = 2
    supervisor_mode_kernel = 3
    pae_pgdir_above_4gb = 4
    mmu_pt_update_preserve_ad = 5
    highmem_assist = 6
    gnttab_map_avail_bits = 7
    hvm_callback_vector = 8
    hvm_safe_pvclock = 9
    hvm_pirqs = 10
    dom0 = 11
    memory_op_vnode_supported = 13
    not_direct_mapped = 16
    direct_mapped = 17
    runstate_phys_area = 18
    vcpu_time_phys_area = 19


def _bits(*features: XENFEAT) -> int:
    return sum(1 << feature for feature in features)


PVH_FEATURES = _bits(
    XENFEAT.writable_page_tables,
    XENFEAT.auto_translated_physmap,
    XENFEAT.hvm_callback_vector,
    XENFEAT.hvm_safe_pvclock,
    XENFEAT.memory_op_vnode_supported,
    XENFEAT.not_direct_mapped,
    XENFEAT.runstate_phys_area,
    XENFEAT.vcpu_time_phys_area,
)
PV_FEATURES = _bits(
    XENFEAT.mmu_pt_update_preserve_ad,
    XENFEAT.highmem_assist,
    XENFEAT.gnttab_map_avail_bits,
    XENFEAT.memory_op_vnode_supported,
    XENFEAT.direct_mapped,
    XENFEAT.runstate_phys_area,
    XENFEAT.vcpu_time_phys_area,
)


@dataclass(frozen=True)
class XenVersion:
    """What XENVER_* and CPUID tell of the hypervisor."""

    major: int = 4
    minor: int = 20
    extraversion: str = ".0-xenpy"
    changeset: str = "unavailable"
    compiler: str = "python"
    compile_by: str = "xenpy"
    compile_domain: str = ""
    compile_date: str = ""
    commandline: str = ""

    @property
    def number(self) -> int:
        """Return major << 16 | minor, as XENVER_version does."""
        return self.major << 16 | self.minor
