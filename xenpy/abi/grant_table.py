"""Grant table commands, flags and statuses.

Ref: xen/include/public/grant_table.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xenpy.abi.op import Op

GNTTABOP_map_grant_ref: Final = Op(0, "map_grant_ref", "gnttab_map_grant_ref", out=True)
GNTTABOP_unmap_grant_ref: Final = Op(1, "unmap_grant_ref", "gnttab_unmap_grant_ref", out=True)
GNTTABOP_setup_table: Final = Op(2, "setup_table", "gnttab_setup_table", out=True)
GNTTABOP_transfer: Final = Op(4, "transfer", "gnttab_transfer", out=True)
GNTTABOP_copy: Final = Op(5, "copy", "gnttab_copy", out=True)
GNTTABOP_query_size: Final = Op(6, "query_size", "gnttab_query_size", out=True)
GNTTABOP_unmap_and_replace: Final = Op(7, "unmap_and_replace", "gnttab_unmap_and_replace", out=True)
GNTTABOP_set_version: Final = Op(8, "set_version", "gnttab_set_version", out=True)
GNTTABOP_get_status_frames: Final = Op(9, "get_status_frames", "gnttab_get_status_frames", out=True)
GNTTABOP_get_version: Final = Op(10, "get_version", "gnttab_get_version", out=True)
GNTTABOP_swap_grant_ref: Final = Op(11, "swap_grant_ref", "gnttab_swap_grant_ref", out=True)


class GNTST(IntEnum):
    """How an operation on a grant went."""

    okay = 0
    general_error = -1
    bad_domain = -2
    bad_gntref = -3
    bad_handle = -4
    bad_virt_addr = -5
    bad_dev_addr = -6
    no_device_space = -7
    permission_denied = -8
    bad_page = -9
    bad_copy_arg = -10
    address_too_big = -11
    eagain = -12
    no_space = -13


GTF_invalid: Final = 0
GTF_permit_access: Final = 1
GTF_accept_transfer: Final = 2
GTF_transitive: Final = 3
GTF_type_mask: Final = 3
GTF_readonly: Final = 1 << 2
GTF_transfer_committed: Final = 1 << 2
GTF_transfer_completed: Final = 1 << 3
"""Of an entry of type GTF_accept_transfer."""
GTF_reading: Final = 1 << 3
GTF_writing: Final = 1 << 4
GTF_sub_page: Final = 1 << 8

GNTMAP_device_map: Final = 1 << 0
GNTMAP_host_map: Final = 1 << 1
GNTMAP_readonly: Final = 1 << 2
GNTMAP_application_map: Final = 1 << 3
GNTMAP_contains_pte: Final = 1 << 4
GNTMAP_guest_avail0: Final = 16
"""The number of the first bit of those that an entry of a page table gets."""

GNTCOPY_source_gref: Final = 1 << 0
GNTCOPY_dest_gref: Final = 1 << 1

GNTTAB_NR_RESERVED_ENTRIES: Final = 8
GNTTAB_RESERVED_CONSOLE: Final = 0
GNTTAB_RESERVED_XENSTORE: Final = 1

GRANT_ENTRY_SIZE_V1: Final = 8
GRANT_ENTRY_SIZE_V2: Final = 16
GRANT_STATUS_SIZE: Final = 2
INVALID_GFN: Final = (1 << 64) - 1
"""Stands for a frame that is mapped nowhere; all ones in the caller's word size."""
