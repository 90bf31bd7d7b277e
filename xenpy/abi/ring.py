"""The shared ring of split drivers: four indices, then a power of two of entries, requests and responses in turn.

Ref: xen/include/public/io/ring.h
"""

from __future__ import annotations

from typing import Final

SRING_HEADER_SIZE: Final = 64
"""Bytes before the first entry."""

INDEX_MASK: Final = 0xFFFF_FFFF
"""RING_IDX is an unsigned int; indices run free and wrap."""

SRING_REQ_PROD: Final = 0
SRING_REQ_EVENT: Final = 1
SRING_RSP_PROD: Final = 2
SRING_RSP_EVENT: Final = 3
"""Positions of the indices, counted in RING_IDX."""
