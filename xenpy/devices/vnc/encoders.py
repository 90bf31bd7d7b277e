"""Rectangles as bytes. An encoder belongs to one viewer: its streams go on from rectangle to rectangle.

Ref: RFC 6143, 7.7.1; rfbproto.rst, Zlib Encoding, Tight Encoding
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from xenpy.devices.vnc.frame import Frame, Rect
from xenpy.devices.vnc.protocol import RECTANGLE, U32, Encoding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.devices.vnc.pixels import PixelFormat

SUPPORTED: Final = (Encoding.TIGHT, Encoding.ZLIB, Encoding.RAW)
_MAX_WIDTH: Final = 2048
"""Of a rectangle of Tight."""
_MAX_PIXELS: Final = 1 << 19
"""Of a rectangle: what it becomes has a length of 22 bits in Tight, even where a pixel takes 4 bytes and nothing is saved."""
_UNCOMPRESSED: Final = 12
"""Shorter data is not compressed in Tight."""
_BASIC: Final = b"\0"
"""Stream 0, no filter."""
_CONTINUED: Final = 0x80
_DIGIT: Final = 7
_DIGIT_MASK: Final = (1 << _DIGIT) - 1
_FAST: Final = 1


class Encoder:
    """Encodes for one viewer."""

    def __init__(self) -> None:
        self.encoding = Encoding.RAW
        self.level = _FAST
        """How hard it compresses; counts from the first rectangle on."""
        self._streams: dict[Encoding, zlib._Compress] = {}

    def rectangles(self, frame: Frame, rect: Rect, pixel_format: PixelFormat) -> Iterator[bytes]:
        """Yield a part of a frame, in as many rectangles as it takes."""
        for part in _parts(rect):
            yield RECTANGLE.pack(*part, self.encoding) + self._encode(frame.cut(part), pixel_format)

    def _encode(self, pixels: bytes, pixel_format: PixelFormat) -> bytes:
        match self.encoding:
            case Encoding.TIGHT:
                data = pixel_format.tight(pixels)
                if len(data) < _UNCOMPRESSED:
                    return _BASIC + data
                data = self._compress(data)
                return _BASIC + _compact(len(data)) + data
            case Encoding.ZLIB:
                data = self._compress(pixel_format.convert(pixels))
                return U32.pack(len(data)) + data
        return pixel_format.convert(pixels)

    def _compress(self, data: bytes) -> bytes:
        stream = self._streams.get(self.encoding)
        if stream is None:
            stream = self._streams[self.encoding] = zlib.compressobj(self.level)
        return stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)


def _parts(rect: Rect) -> Iterator[Rect]:
    """Yield rectangles that make up one, none of them too large."""
    for x in range(rect.x, rect.x + rect.width, _MAX_WIDTH):
        width = min(_MAX_WIDTH, rect.x + rect.width - x)
        step = _MAX_PIXELS // width
        for y in range(rect.y, rect.y + rect.height, step):
            yield Rect(x, y, width, min(step, rect.y + rect.height - y))


def _compact(length: int) -> bytes:
    """Return a length in one to three bytes, of 7, 7 and 8 bits, the lowest first."""
    low, middle, high = length & _DIGIT_MASK, length >> _DIGIT & _DIGIT_MASK, length >> _DIGIT * 2
    if high:
        return bytes([low | _CONTINUED, middle | _CONTINUED, high])
    return bytes([low | _CONTINUED, middle]) if middle else bytes([low])
