"""memory_op commands. Ref: xen/include/public/memory.h"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xenpy.abi.op import Op

XENMEM_increase_reservation: Final = Op(0, "increase_reservation", "xen_memory_reservation")
XENMEM_decrease_reservation: Final = Op(1, "decrease_reservation", "xen_memory_reservation")
XENMEM_maximum_ram_page: Final = Op(2, "maximum_ram_page")
XENMEM_current_reservation: Final = Op(3, "current_reservation", "xen_memory_domain")
XENMEM_maximum_reservation: Final = Op(4, "maximum_reservation", "xen_memory_domain")
XENMEM_machphys_mfn_list: Final = Op(5, "machphys_mfn_list", "xen_machphys_mfn_list", out=True)
XENMEM_populate_physmap: Final = Op(6, "populate_physmap", "xen_memory_reservation")
XENMEM_add_to_physmap: Final = Op(7, "add_to_physmap", "xen_add_to_physmap", out=True)
XENMEM_memory_map: Final = Op(9, "memory_map", "xen_memory_map", out=True)
XENMEM_machine_memory_map: Final = Op(10, "machine_memory_map")
XENMEM_exchange: Final = Op(11, "exchange", "xen_memory_exchange", out=True)
XENMEM_machphys_mapping: Final = Op(12, "machphys_mapping", "xen_machphys_mapping", out=True)
XENMEM_set_memory_map: Final = Op(13, "set_memory_map", "xen_foreign_memory_map")
XENMEM_maximum_gpfn: Final = Op(14, "maximum_gpfn", "xen_memory_domain")
XENMEM_remove_from_physmap: Final = Op(15, "remove_from_physmap", "xen_remove_from_physmap")
XENMEM_add_to_physmap_batch: Final = Op(23, "add_to_physmap_batch", "xen_add_to_physmap_batch", out=True)

E820_ENTRY_SIZE: Final = 20


class XENMAPSPACE(IntEnum):
    """What add_to_physmap can map."""

    shared_info = 0
    grant_table = 1
    gmfn = 2
    gmfn_range = 3
    gmfn_foreign = 4
    dev_mmio = 5


XENMAPIDX_grant_table_status: Final = 0x8000_0000
