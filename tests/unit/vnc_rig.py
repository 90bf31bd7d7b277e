"""The other end of a VNC session, and what it shows and does."""

from __future__ import annotations

import random
import struct
import threading
import zlib

from xenpy.devices.vnc.frame import Frame, Rect
from xenpy.devices.vnc.pixels import NATIVE, PixelFormat
from xenpy.devices.vnc.session import Session

RAW, ZLIB, TIGHT, RESIZE, EXTENDED = 0, 6, 7, -223, -258
WIDTH, HEIGHT = 70, 50
TRUE_32 = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


class Hands:
    """Takes note of what a viewer does."""

    def __init__(self) -> None:
        self.keys: list[tuple[int, bool]] = []
        self.places: list[tuple[int, int, int]] = []
        self.released = threading.Event()

    def key(self, code: int, *, pressed: bool) -> None:
        self.keys.append((code, pressed))
        if not pressed:
            self.released.set()

    def pointer(self, x: int, y: int, buttons: int) -> None:
        self.places.append((x, y, buttons))


def noise(width: int = WIDTH, height: int = HEIGHT, seed: int = 1) -> Frame:
    return Frame(width, height, random.Random(seed).randbytes(width * height * 4))


def painted(frame: Frame, rect: Rect, pixel: bytes = b"\1\2\3\0") -> Frame:
    data = bytearray(frame.data)
    for y in range(rect.y, rect.y + rect.height):
        at = (y * frame.width + rect.x) * 4
        data[at : at + rect.width * 4] = pixel * rect.width
    return Frame(frame.width, frame.height, bytes(data))


class Viewer:
    """The other end of a session: keeps a picture as it is told to, of pixels of `size` bytes."""

    def __init__(self, frame: Frame, *, password: str | None = None, size: int = 4) -> None:
        self.hands = Hands()
        self.opened: list[bool] = []
        self.session = Session("a guest", frame, self.hands, password, self.opened.append)
        self.size = size
        self.width = self.height = 0
        self.pixels = bytearray()
        self.rects: list[tuple[int, int, int, int]] = []
        self.others: list[int] = []
        self._streams = {ZLIB: zlib.decompressobj(), TIGHT: zlib.decompressobj()}

    def take(self, count: int) -> bytes:
        data = bytes(self.session.out[:count])
        assert len(data) == count
        del self.session.out[:count]
        return data

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def say(self, data: bytes) -> None:
        self.session.receive(data)

    def enter(self, *encodings: int) -> None:
        assert self.take(12) == b"RFB 003.008\n"
        self.say(b"RFB 003.008\n")
        assert self.take(2) == b"\1\1"
        self.say(b"\1")
        assert self.take(4) == bytes(4)
        self.say(b"\1")
        self.begin()
        self.say(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def begin(self) -> None:
        self.width, self.height = self.unpack(">HH")
        assert PixelFormat.parse(self.take(16)) == NATIVE
        assert self.take(self.unpack(">I")[0]) == b"a guest"
        self.pixels = bytearray(self.width * self.height * self.size)

    def ask(self, *, incremental: bool = True, rect: tuple[int, int, int, int] = (0, 0, 65535, 65535)) -> None:
        self.say(struct.pack(">BBHHHH", 3, incremental, *rect))

    def show(self, frame: Frame) -> bool:
        """Have the session send what it has to, and take it in."""
        if not self.session.update(frame):
            return False
        self.hear()
        return True

    def hear(self) -> None:
        kind, count = self.unpack(">BxH")
        assert kind == 0
        self.rects = []
        for _ in range(count):
            x, y, width, height, encoding = self.unpack(">HHHHi")
            if encoding == RESIZE:
                self.width, self.height = width, height
                self.pixels = bytearray(width * height * self.size)
            elif encoding == EXTENDED:
                self.others.append(encoding)
            else:
                self.rects.append((x, y, width, height))
                self.put(x, y, width, height, self.decode(encoding, width * height))
        assert not self.session.out

    def decode(self, encoding: int, pixels: int) -> bytes:
        if encoding == RAW:
            return self.take(pixels * self.size)
        if encoding == ZLIB:
            return self._streams[ZLIB].decompress(self.take(self.unpack(">I")[0]))
        assert encoding == TIGHT
        assert self.take(1) == b"\0"
        if pixels * 3 < 12:
            rgb = self.take(pixels * 3)
        else:
            length = 0
            for shift in (0, 7, 14):
                (byte,) = self.take(1)
                length |= (byte if shift == 14 else byte & 0x7F) << shift
                if byte < 0x80:
                    break
            rgb = self._streams[TIGHT].decompress(self.take(length))
        assert len(rgb) == pixels * 3
        data = bytearray(pixels * 4)
        data[0::4], data[1::4], data[2::4] = rgb[2::3], rgb[1::3], rgb[0::3]
        return bytes(data)

    def put(self, x: int, y: int, width: int, height: int, data: bytes) -> None:
        assert x + width <= self.width
        assert y + height <= self.height
        assert len(data) == width * height * self.size
        row = width * self.size
        for line in range(height):
            at = ((y + line) * self.width + x) * self.size
            self.pixels[at : at + row] = data[line * row : (line + 1) * row]

    def sees(self, frame: Frame) -> bool:
        return all(self.pixels[colour::4] == frame.data[colour::4] for colour in range(3))
