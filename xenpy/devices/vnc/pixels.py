"""Pixels as a viewer wants them.

Ref: RFC 6143, 7.4; rfbproto.rst, Tight Encoding (TPIXEL)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from struct import Struct
from typing import Final

from xenpy.devices.vnc.frame import PIXEL
from xenpy.errors import XenpyError

_FORMAT: Final = Struct(">BBBBHHHBBB3x")
_SIZES: Final = (8, 16, 32)
_BYTE: Final = 0xFF
_BITS: Final = 8
_TRUE_DEPTH: Final = 24
_MAPPED: Final = 8
_BLUE, _GREEN, _RED = range(3)  # where a pixel of a frame has them
_MAP_RED, _MAP_GREEN, _MAP_BLUE = (7, 0), (7, 3), (3, 6)
_MAP_CHANNEL: Final = 0xFFFF


class ViewerError(XenpyError):
    """A viewer broke the protocol, or may not connect."""


@dataclass(frozen=True)
class PixelFormat:
    """How a viewer's pixels are made up. `red`, `green` and `blue` are the highest value and the lowest bit."""

    bits: int
    depth: int
    big_endian: bool
    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]
    mapped: bool = False

    @classmethod
    def parse(cls, data: bytes) -> PixelFormat:
        """Return the format that 16 bytes describe; a colour map is ours to choose. Raises ViewerError."""
        bits, depth, big, true, *channels = _FORMAT.unpack(data)
        if bits not in _SIZES:
            raise ViewerError(f"pixels of {bits} bits")
        if not true:
            if bits != _MAPPED:
                raise ViewerError(f"a colour map of {bits} bits")
            return cls(bits, depth, False, _MAP_RED, _MAP_GREEN, _MAP_BLUE, mapped=True)
        highest, lowest = channels[:3], channels[3:]
        if any(shift >= bits or value << shift >> bits for value, shift in zip(highest, lowest, strict=True)):
            raise ViewerError(f"colours up to {highest} from bits {lowest} on, in pixels of {bits} bits")
        red, green, blue = zip(highest, lowest, strict=True)
        return cls(bits, depth, bool(big), red, green, blue)

    def pack(self) -> bytes:
        """Return the 16 bytes that describe it."""
        (red, red_at), (green, green_at), (blue, blue_at) = self.red, self.green, self.blue
        return _FORMAT.pack(
            self.bits, self.depth, self.big_endian, not self.mapped, red, green, blue, red_at, green_at, blue_at
        )

    def colour_map(self) -> bytes:
        """Return red, green and blue, of 16 bits each, for every pixel that there is."""
        channels = (self.red, self.green, self.blue)
        return b"".join(
            ((pixel >> shift & most) * _MAP_CHANNEL // most).to_bytes(2, "big")
            for pixel in range(1 << self.bits)
            for most, shift in channels
        )

    def convert(self, pixels: bytes) -> bytes:
        """Return a frame's pixels in this format."""
        if self == NATIVE:
            return pixels
        size = self.bits // _BITS
        out = bytearray(len(pixels) // PIXEL * size)
        for place, tables in enumerate(self._tables):
            parts = [pixels[channel::PIXEL].translate(table) for channel, table in tables]
            if len(parts) == 1:
                out[place::size] = parts[0]
            elif parts:
                value = 0
                for part in parts:
                    value |= int.from_bytes(part, "little")
                out[place::size] = value.to_bytes(len(parts[0]), "little")
        return bytes(out)

    @cached_property
    def _tables(self) -> list[list[tuple[int, bytes]]]:
        """For each byte of a pixel, the channels that have bits in it, and what each of their values puts there."""
        size = self.bits // _BITS
        result = []
        for place in range(size):
            down = (size - 1 - place if self.big_endian else place) * _BITS
            tables = []
            for channel, (most, shift) in ((_RED, self.red), (_GREEN, self.green), (_BLUE, self.blue)):
                # Rounded down, so that bits of a value stay where they were: 5 of 8 are the upper 5.
                values = ((value * (most + 1) >> _BITS) << shift for value in range(_BYTE + 1))
                table = bytes(value >> down & _BYTE for value in values)
                if any(table):
                    tables.append((channel, table))
            result.append(tables)
        return result

    def tight(self, pixels: bytes) -> bytes:
        """Return a frame's pixels as the Tight encoding has them: three bytes each where nothing is lost by it."""
        full = (self.red[0], self.green[0], self.blue[0]) == (_BYTE,) * 3
        if self.bits != NATIVE.bits or self.depth != _TRUE_DEPTH or not full:
            return self.convert(pixels)
        rgb = bytearray(len(pixels) // PIXEL * 3)
        for place, channel in enumerate((_RED, _GREEN, _BLUE)):
            rgb[place::3] = pixels[channel::PIXEL]
        return bytes(rgb)


NATIVE: Final = PixelFormat(32, _TRUE_DEPTH, False, (_BYTE, 16), (_BYTE, 8), (_BYTE, 0))
"""That of frames."""
