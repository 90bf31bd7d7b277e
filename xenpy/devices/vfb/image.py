"""Pictures: rows of pixels, and PNG files of them.

Ref: RFC 2083 (PNG)
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from struct import pack
from typing import Final

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_BITS: Final = 8
_TRUECOLOUR: Final = 2
_NO_FILTER: Final = b"\0"


@dataclass(frozen=True, slots=True)
class Image:
    """A picture of `width` by `height` pixels; `rgb` has three bytes for each, row by row from the top."""

    width: int
    height: int
    rgb: bytes

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        """Return red, green and blue of a pixel."""
        red, green, blue = self.rgb[(at := (y * self.width + x) * 3) : at + 3]
        return red, green, blue

    def png(self) -> bytes:
        """Return the picture as a PNG file."""
        row = self.width * 3
        rows = b"".join(_NO_FILTER + self.rgb[at : at + row] for at in range(0, len(self.rgb), row))
        header = pack(">IIBBBBB", self.width, self.height, _BITS, _TRUECOLOUR, 0, 0, 0)
        return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))


def packed(data: bytes, row: int, height: int, stride: int) -> bytes:
    """Return rows of `row` bytes without what is between them; `stride` is the bytes from row to row."""
    if stride == row:
        return data[: row * height]
    return b"".join(data[at : at + row] for at in range(0, stride * height, stride))


def from_xrgb(pixels: bytes, width: int, height: int) -> Image:
    """Return the picture of little-endian pixels of 32 bits, blue first."""
    rgb = bytearray(width * height * 3)
    for colour in range(3):
        rgb[colour::3] = pixels[2 - colour :: 4]
    return Image(width, height, bytes(rgb))
