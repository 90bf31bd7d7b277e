"""Numbers and layouts of the Remote Framebuffer protocol.

Ref: RFC 6143, 7.1 to 7.8; rfbproto.rst (Tight, Zlib, QEMU's extended key event)
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

VERSION: Final = b"RFB 003.008\n"
MINORS: Final = {b"RFB 003.003\n": 3, b"RFB 003.007\n": 7, VERSION: 8}
"""What a viewer may answer -> the minor version it speaks."""
FIRST_WITH_CHOICE: Final = 7
"""The minor version from which on the viewer chooses among the kinds of security."""
FIRST_WITH_REASON: Final = 8
"""... from which on it hears the result where there was nothing to check, and a reason where it failed."""

CHALLENGE_SIZE: Final = 16
MAX_PASSWORD: Final = 8

U8: Final = Struct(">B")
U32: Final = Struct(">I")
S32: Final = Struct(">i")
SERVER_INIT: Final = Struct(">HH16sI")
"""width, height, pixel format, length of the name that follows"""
SET_PIXEL_FORMAT: Final = Struct(">3x16s")
SET_ENCODINGS: Final = Struct(">xH")
UPDATE_REQUEST: Final = Struct(">BHHHH")
KEY_EVENT: Final = Struct(">B2xI")
POINTER_EVENT: Final = Struct(">BHH")
CUT_TEXT: Final = Struct(">3xI")
EXTENDED_KEY: Final = Struct(">HII")
"""whether pressed, keysym, scan code; behind the kind of the message"""
UPDATE: Final = Struct(">BxH")
"""type, number of rectangles"""
RECTANGLE: Final = Struct(">HHHHi")
COLOUR_MAP: Final = Struct(">BxHH")


class Security(IntEnum):
    """Kinds of security."""

    NONE = 1
    VNC = 2


class Result(IntEnum):
    """How the check of security ended."""

    OK = 0
    FAILED = 1


class Client(IntEnum):
    """Messages of a viewer."""

    SET_PIXEL_FORMAT = 0
    SET_ENCODINGS = 2
    UPDATE_REQUEST = 3
    KEY_EVENT = 4
    POINTER_EVENT = 5
    CUT_TEXT = 6
    QEMU = 255


class Server(IntEnum):
    """Messages of a server."""

    UPDATE = 0
    SET_COLOUR_MAP = 1


class Encoding(IntEnum):
    """Encodings of rectangles, and what a viewer can do beyond."""

    RAW = 0
    ZLIB = 6
    TIGHT = 7
    DESKTOP_SIZE = -223
    LEVEL_0 = -256
    LEVEL_9 = -247
    EXTENDED_KEY = -258


class Button(IntEnum):
    """Bits of a pointer event's mask."""

    LEFT = 1 << 0
    MIDDLE = 1 << 1
    RIGHT = 1 << 2
    WHEEL_UP = 1 << 3
    WHEEL_DOWN = 1 << 4
