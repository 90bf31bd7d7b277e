"""The transport of 9pfs: a page with indices and grants, and two rings of bytes, one for each direction.

Ref: xen/include/public/io/9pfs.h, xen/include/public/io/ring.h (DEFINE_XEN_FLEX_RING_AND_INTF), docs/misc/9pfs.pandoc
"""

from __future__ import annotations

from typing import Final

XEN_9PFS_VERSION: Final = 1
MIN_RING_ORDER: Final = 1
MAX_RING_ORDER: Final = 9
"""Pages of both rings together, as a power of two: what one page of grants holds."""

IN_CONS: Final = 0
IN_PROD: Final = 1
OUT_CONS: Final = 16
OUT_PROD: Final = 17
RING_ORDER: Final = 32
RING_REFS: Final = 33
"""Positions in the page, in words of 4 bytes; indices run free and wrap."""
INDEX_MASK: Final = 0xFFFF_FFFF
