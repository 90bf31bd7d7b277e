"""The ring of a keyboard and pointer: events of 40 bytes from the backend to the frontend.

Ref: xen/include/public/io/kbdif.h
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

IN_CONS: Final = 0
IN_PROD: Final = 1
"""Positions in the page, in words of 4 bytes; indices run free and wrap."""
INDEX_MASK: Final = 0xFFFF_FFFF
XENKBD_IN_RING_OFFS: Final = 1024
XENKBD_IN_RING_SIZE: Final = 2048
XENKBD_IN_EVENT_SIZE: Final = 40
XENKBD_IN_RING_LEN: Final = XENKBD_IN_RING_SIZE // XENKBD_IN_EVENT_SIZE


class XENKBD_TYPE(IntEnum):
    """What an event tells."""

    MOTION = 1
    KEY = 3
    POS = 4


MOTION: Final = Struct("<B3xiii24x")
"""type; rel_x, rel_y, rel_z. Of a position: abs_x, abs_y, rel_z."""
KEY: Final = Struct("<BB2xI32x")
"""type, pressed; keycode as linux/input-event-codes.h has it, for keys and buttons"""
