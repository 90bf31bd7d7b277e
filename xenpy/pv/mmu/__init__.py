"""Page typing and page-table updates of 64-bit PV guests, without KVM: the state behind mmu_update, mmuext_op and their kin."""

from xenpy.pv.mmu.layout import FrameType
from xenpy.pv.mmu.mmu import Mmu
from xenpy.pv.mmu.protocols import Mappable, PvDomain, PvVcpu

__all__ = ["FrameType", "Mappable", "Mmu", "PvDomain", "PvVcpu"]
