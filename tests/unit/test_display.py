"""Framebuffers and keyboards, with a guest that draws and one that lies."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import pytest
from xenbus_rig import DOMID, FakeDriver, FakeServices

from xenpy.abi.fbif import GEOMETRY
from xenpy.abi.kbdif import (
    IN_CONS,
    IN_PROD,
    INDEX_MASK,
    XENKBD_IN_EVENT_SIZE,
    XENKBD_IN_RING_LEN,
    XENKBD_IN_RING_OFFS,
)
from xenpy.abi.xenbus import XenbusState
from xenpy.config.devices import VfbConfig, VkbConfig
from xenpy.devices import vfb, vkbd
from xenpy.devices.registry import DeviceOptions
from xenpy.devices.vfb.image import Image
from xenpy.errors import ConfigError, Errno, HostError, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from xenpy.devices.vfb.backend import Vfb
    from xenpy.devices.vkbd.backend import Vkbd

WIDTH, HEIGHT = 60, 40


class DisplayServices(FakeServices):
    def read_pages(self, domid: int, gfns: Iterable[int]) -> bytes:
        assert domid == DOMID
        wanted = list(gfns)
        if not all(self.memory.is_ram(gfn) for gfn in wanted):
            raise XenError(Errno.EFAULT, "not RAM")
        return b"".join(self.memory.read(gfn << PAGE_SHIFT, PAGE_SIZE) for gfn in wanted)


@pytest.fixture
def services() -> Iterator[DisplayServices]:
    services = DisplayServices()
    try:
        yield services
    finally:
        services.close()


class Screen(FakeDriver):
    """A guest's framebuffer of `WIDTH` by `HEIGHT`, its pages in any order."""

    def __init__(self, services: DisplayServices, backend: Vfb, *, word: str = "Q", stride: int = WIDTH * 4) -> None:
        super().__init__(services, backend)
        self.stride = stride
        count = -(-stride * HEIGHT // PAGE_SIZE)
        pages = [services.page() for _ in range(count)][::-1]
        self.views = [view for _, view in pages]
        list_gfn, listing = services.page()
        self.gfn, self.page = services.page()
        self.size = count * PAGE_SIZE
        self.geometry()
        struct.pack_into(f"<{count}{word}", listing, 0, *(gfn for gfn, _ in pages))
        struct.pack_into(f"<{word}", self.page, 40 if word == "Q" else 36, list_gfn)
        self.port = services.port()
        backend.start()
        services.pump()

    def geometry(self, width: int = WIDTH, height: int = HEIGHT, stride: int | None = None, depth: int = 32) -> None:
        size = self.size
        GEOMETRY.pack_into(self.page, 0, width, height, self.stride if stride is None else stride, size, depth)

    def draw(self, x: int, y: int, red: int, green: int, blue: int) -> None:
        page, offset = divmod(y * self.stride + x * 4, PAGE_SIZE)
        self.views[page][offset : offset + 4] = bytes([blue, green, red, 0])

    def announce(self, **more: str | int) -> None:
        self.write({"page-ref": self.gfn, "event-channel": self.port, "protocol": "x86_64-abi"} | more)
        self.switch(XenbusState.Initialised)


def make_vfb(services: DisplayServices) -> Vfb:
    return vfb.create(services, DOMID, VfbConfig(0), DeviceOptions())


def decoded(png: bytes) -> Image:
    """Return the picture in a PNG file as `Image.png` writes it."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at, chunks = 8, {}
    while at < len(png):
        size, kind = struct.unpack_from(">I4s", png, at)
        chunks[kind] = png[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", png, at + 8 + size)[0] == zlib.crc32(kind + chunks[kind])
        at += 12 + size
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    data = zlib.decompress(chunks[b"IDAT"])
    rows = [data[start : start + width * 3 + 1] for start in range(0, len(data), width * 3 + 1)]
    assert len(rows) == height
    assert all(row[0] == 0 for row in rows)
    return Image(width, height, b"".join(row[1:] for row in rows))


@pytest.mark.parametrize(("word", "protocol"), [("Q", "x86_64-abi"), ("I", "x86_32-abi")])
@pytest.mark.parametrize("stride", [WIDTH * 4, 300])
def test_a_picture(services: DisplayServices, word: str, protocol: str, stride: int) -> None:
    backend = make_vfb(services)
    screen = Screen(services, backend, word=word, stride=stride)
    with pytest.raises(HostError, match="no driver is connected to framebuffer 0"):
        backend.image()
    screen.announce(protocol=protocol)
    assert screen.backend_state is XenbusState.Connected
    assert screen.theirs("request-update") == "0"
    dots = {(0, 0): (255, 0, 0), (59, 0): (1, 2, 3), (7, 39): (0, 0, 255), (30, 20): (0, 255, 0)}
    for place, colour in dots.items():
        screen.draw(*place, *colour)
    image = decoded(backend.image().png())
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    assert {place: image.pixel(*place) for place in dots} == dots
    assert sum(image.rgb) == sum(map(sum, dots.values()))
    screen.switch(XenbusState.Closed)
    assert screen.backend_state is XenbusState.Closed
    assert not services.bound
    with pytest.raises(HostError):
        backend.image()


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"width": 0}, "0 x 40 pixels"),
        ({"height": -1}, "60 x -1 pixels"),
        ({"width": 1 << 20, "height": 1 << 20}, "1048576 x 1048576"),
        ({"depth": 8}, "of 8 bits"),
        ({"stride": 239}, "rows of 239 bytes"),
        ({"stride": 0xFFFF_FFFF}, "rows of 4294967295 bytes"),
        ({"height": 1000}, "in a framebuffer of"),
    ],
)
def test_geometries_that_cannot_be(services: DisplayServices, geometry: dict[str, int], message: str) -> None:
    backend = make_vfb(services)
    screen = Screen(services, backend)
    screen.geometry(**geometry)
    screen.announce()
    assert screen.backend_state is XenbusState.Closing
    assert message in services.store.read(backend.params.error_path)
    assert not services.bound


def test_pages_that_are_not_there(services: DisplayServices) -> None:
    backend = make_vfb(services)
    screen = Screen(services, backend)
    struct.pack_into("<Q", screen.page, 40, 1 << 40)
    screen.announce()
    assert screen.backend_state is XenbusState.Closing
    screen.switch(XenbusState.Closed)
    screen.switch(XenbusState.Initialising)
    struct.pack_into("<Q", screen.page, 40, screen.gfn - 1)
    screen.announce()
    assert screen.backend_state is XenbusState.Connected
    assert backend.screen is not None
    backend.screen.gfns[0] = 1 << 40
    with pytest.raises(HostError, match="not RAM"):
        backend.image()


class Keyboard(FakeDriver):
    """A guest's keyboard."""

    def __init__(self, services: FakeServices, backend: Vkbd, *, start: int = 0) -> None:
        super().__init__(services, backend)
        self.gfn, self.page = services.page()
        self.words = self.page.cast("I")
        self.words[IN_CONS] = self.words[IN_PROD] = start
        self.gref, self.port = services.grant(self.gfn), services.port()
        backend.start()
        services.pump()

    def connect(self, **more: int) -> None:
        self.write({"page-gref": self.gref, "event-channel": self.port} | more)
        self.switch(XenbusState.Initialised)
        assert self.backend_state is XenbusState.Connected

    def take(self) -> list[tuple[int, ...]]:
        """Take all events there are: of keys type, pressed and code, of the pointer type and three numbers."""
        events: list[tuple[int, ...]] = []
        while self.words[IN_CONS] != self.words[IN_PROD]:
            at = XENKBD_IN_RING_OFFS + self.words[IN_CONS] % XENKBD_IN_RING_LEN * XENKBD_IN_EVENT_SIZE
            layout = "<BB2xI" if self.page[at] == 3 else "<B3xiii"
            events.append(struct.unpack_from(layout, self.page, at))
            self.words[IN_CONS] = self.words[IN_CONS] + 1 & INDEX_MASK
        self.services.send(self.port)
        return events


def make_vkbd(services: FakeServices, **settings: bool) -> Vkbd:
    return vkbd.create(services, DOMID, VkbConfig(0, **settings), DeviceOptions())


def test_keys_and_pointer(services: DisplayServices) -> None:
    backend = make_vkbd(services, feature_disable_pointer=True)
    keyboard = Keyboard(services, backend)
    assert keyboard.theirs("feature-disable-pointer") == "1"
    with pytest.raises(HostError, match="no driver is connected to keyboard 0"):
        backend.type("a")
    keyboard.connect()
    backend.type("aB\n")
    backend.move(-3, 4, 1)
    shift = [(3, 1, 42), (3, 1, 48), (3, 0, 48), (3, 0, 42)]
    assert keyboard.take() == [(3, 1, 30), (3, 0, 30), *shift, (3, 1, 28), (3, 0, 28), (1, -3, 4, 1)]
    assert services.events[keyboard.port] > 0
    keyboard.switch(XenbusState.Closed)
    assert not services.in_use(keyboard.gref)
    keyboard.switch(XenbusState.Initialising)
    keyboard.connect(**{"request-abs-pointer": 1})
    backend.move(500, 400)
    assert keyboard.take() == [(4, 500, 400, 0)]
    with pytest.raises(ConfigError, match="no key types 'é'"):
        backend.type("aé")
    assert keyboard.take() == []


@pytest.mark.parametrize("start", [0, 1000])
def test_more_than_the_ring_holds(services: DisplayServices, start: int) -> None:
    backend = make_vkbd(services)
    keyboard = Keyboard(services, backend, start=start)
    keyboard.connect()
    for code in range(120):
        backend.key(code, pressed=True)
    assert keyboard.words[IN_PROD] - start & INDEX_MASK == XENKBD_IN_RING_LEN
    events = keyboard.take() + keyboard.take() + keyboard.take()
    assert [code for _, _, code in events] == list(range(120))


def test_a_guest_that_takes_nothing(services: DisplayServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenpy.devices.vkbd.backend._MAX_WAITING", 100)
    backend = make_vkbd(services)
    Keyboard(services, backend).connect()
    with pytest.raises(HostError, match="nobody takes"):
        backend.type("a" * 100)


def test_a_wild_index_costs_the_keyboard(services: DisplayServices) -> None:
    backend = make_vkbd(services)
    keyboard = Keyboard(services, backend)
    keyboard.connect()
    keyboard.words[IN_CONS] = 1
    backend.key(30, pressed=True)
    services.pump()
    assert keyboard.backend_state is XenbusState.Closing
    assert not services.in_use(keyboard.gref)
