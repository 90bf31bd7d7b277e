"""MMU hypercalls of PV guests: their numbers, commands and flags. Ref: xen/include/public/xen.h, arch-x86/xen.h"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xenpy.abi.op import Op

DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2


class MMU(IntEnum):
    """What to do with `val` at `ptr`, whose low bits say so."""

    NORMAL_PT_UPDATE = 0
    MACHPHYS_UPDATE = 1
    PT_UPDATE_PRESERVE_AD = 2
    PT_UPDATE_NO_TRANSLATE = 3


UVMF_TLB_FLUSH: Final = 1
UVMF_INVLPG: Final = 2
UVMF_FLUSHTYPE_MASK: Final = 3
UVMF_LOCAL: Final = 0
UVMF_ALL: Final = 4

MMUEXT_PIN_L1_TABLE: Final = Op(0, "PIN_L1_TABLE", "mmuext_op")
MMUEXT_PIN_L2_TABLE: Final = Op(1, "PIN_L2_TABLE", "mmuext_op")
MMUEXT_PIN_L3_TABLE: Final = Op(2, "PIN_L3_TABLE", "mmuext_op")
MMUEXT_PIN_L4_TABLE: Final = Op(3, "PIN_L4_TABLE", "mmuext_op")
MMUEXT_UNPIN_TABLE: Final = Op(4, "UNPIN_TABLE", "mmuext_op")
MMUEXT_NEW_BASEPTR: Final = Op(5, "NEW_BASEPTR", "mmuext_op")
MMUEXT_TLB_FLUSH_LOCAL: Final = Op(6, "TLB_FLUSH_LOCAL", "mmuext_op")
MMUEXT_INVLPG_LOCAL: Final = Op(7, "INVLPG_LOCAL", "mmuext_op")
MMUEXT_TLB_FLUSH_MULTI: Final = Op(8, "TLB_FLUSH_MULTI", "mmuext_op")
MMUEXT_INVLPG_MULTI: Final = Op(9, "INVLPG_MULTI", "mmuext_op")
MMUEXT_TLB_FLUSH_ALL: Final = Op(10, "TLB_FLUSH_ALL", "mmuext_op")
MMUEXT_INVLPG_ALL: Final = Op(11, "INVLPG_ALL", "mmuext_op")
MMUEXT_FLUSH_CACHE: Final = Op(12, "FLUSH_CACHE", "mmuext_op")
MMUEXT_SET_LDT: Final = Op(13, "SET_LDT", "mmuext_op")
MMUEXT_NEW_USER_BASEPTR: Final = Op(15, "NEW_USER_BASEPTR", "mmuext_op")
MMUEXT_CLEAR_PAGE: Final = Op(16, "CLEAR_PAGE", "mmuext_op")
MMUEXT_COPY_PAGE: Final = Op(17, "COPY_PAGE", "mmuext_op")
MMUEXT_FLUSH_CACHE_GLOBAL: Final = Op(18, "FLUSH_CACHE_GLOBAL", "mmuext_op")
MMUEXT_MARK_SUPER: Final = Op(19, "MARK_SUPER", "mmuext_op")
MMUEXT_UNMARK_SUPER: Final = Op(20, "UNMARK_SUPER", "mmuext_op")
