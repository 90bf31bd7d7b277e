"""The page of a framebuffer: its geometry, and where its pixels are.

Ref: xen/include/public/io/fbif.h
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

GEOMETRY: Final = Struct("<16xiiIIB")
"""struct xenfb_page up to pd: width, height in pixels, line_length, mem_length in bytes, depth in bits"""
PD_ENTRIES: Final = 256
"""Pages that list the pages of pixels."""


@dataclass(frozen=True, slots=True)
class FbifLayout:
    """What differs between ABIs: where pd is, in bytes, and the array type code of an unsigned long."""

    pd: int
    word: str


LAYOUTS: Final = {"x86_64-abi": FbifLayout(40, "Q"), "x86_32-abi": FbifLayout(36, "I")}
"""The frontend's `protocol` -> its layout."""
