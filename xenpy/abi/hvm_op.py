"""hvm_op commands. Ref: xen/include/public/hvm/hvm_op.h"""

from __future__ import annotations

from typing import Final

from xenpy.abi.op import Op

HVMOP_set_param: Final = Op(0, "set_param", "xen_hvm_param")
HVMOP_get_param: Final = Op(1, "get_param", "xen_hvm_param", out=True)
HVMOP_flush_tlbs: Final = Op(5, "flush_tlbs")
HVMOP_pagetable_dying: Final = Op(9, "pagetable_dying", "xen_hvm_pagetable_dying")
HVMOP_get_time: Final = Op(10, "get_time", "xen_hvm_get_time", out=True)
HVMOP_get_mem_type: Final = Op(15, "get_mem_type", "xen_hvm_get_mem_type", out=True)
HVMOP_set_evtchn_upcall_vector: Final = Op(23, "set_evtchn_upcall_vector", "xen_hvm_evtchn_upcall_vector")

HVMMEM_ram_rw: Final = 0
HVMMEM_ram_ro: Final = 1
HVMMEM_mmio_dm: Final = 2

FIRST_USABLE_VECTOR: Final = 16
"""LAPICs do not deliver lower vectors."""
