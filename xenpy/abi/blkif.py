"""Block device rings: operations, statuses, and the layouts of requests and responses.

A frontend lays out its ring as its `protocol` node says: with 8-byte alignment of 64-bit fields, or, on i386, with none.

Ref: xen/include/public/io/blkif.h, xen/include/public/io/protocols.h
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final


class BLKIF_OP(IntEnum):
    """What a request asks for; RESERVED_1 is nobody's."""

    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    RESERVED_1 = 4
    DISCARD = 5
    INDIRECT = 6


class BLKIF_RSP(IntEnum):
    """How a request went."""

    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


class VDISK(IntFlag):
    """Bits of the backend's `info` node."""

    CDROM = 1
    REMOVABLE = 2
    READONLY = 4


BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8

SECTOR_SHIFT: Final = 9
SECTOR_SIZE: Final = 1 << SECTOR_SHIFT
"""The unit of all that the protocol counts in sectors, whatever the medium's own may be."""

SEGMENT: Final = Struct("<IBB2x")
"""struct blkif_request_segment: gref, first_sect, last_sect"""

SEGMENTS_PER_INDIRECT_PAGE: Final = 4096 // SEGMENT.size


@dataclass(frozen=True, slots=True)
class BlkifLayout:
    """The layouts of one ABI."""

    request: Struct
    """struct blkif_request without seg: operation, nr_segments, handle, id, sector_number"""
    discard: Struct
    """struct blkif_request_discard: operation, flag, handle, id, sector_number, nr_sectors"""
    indirect: Struct
    """struct blkif_request_indirect: operation, indirect_op, nr_segments, id, sector_number, handle, indirect_grefs"""
    response: Struct
    """struct blkif_response: id, operation, status"""
    entry_size: int
    """Bytes from one entry of the ring to the next."""


X86_64: Final = BlkifLayout(Struct("<BBH4xQQ"), Struct("<BBH4xQQQ"), Struct("<BBH4xQQH2x8I"), Struct("<QBxh4x"), 112)
X86_32: Final = BlkifLayout(Struct("<BBHQQ"), Struct("<BBHQQQ"), Struct("<BBHQQH2x8I"), Struct("<QBxh"), 108)

LAYOUTS: Final = {"x86_64-abi": X86_64, "x86_32-abi": X86_32}
"""The frontend's `protocol` -> its layouts."""
NATIVE_PROTOCOL: Final = "x86_64-abi"
