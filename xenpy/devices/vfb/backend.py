"""A framebuffer in xenbus. We only ever read what is the guest's: pixels are looked at when a picture is wanted.

Its pages are named by number and not granted, so nothing is written to them, and updates, which we would have to take
out of a ring in one of them, are not asked for.

Ref: xen/include/public/io/fbif.h
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from xenpy.abi.fbif import GEOMETRY, LAYOUTS, PD_ENTRIES
from xenpy.devices.vfb.image import Image, from_xrgb, packed
from xenpy.devices.xenbus import Backend, Nodes, Services
from xenpy.errors import FrontendError, HostError, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenpy.config.devices import VfbConfig
    from xenpy.devices.vfb.viewers import Viewers

MAX_PIXELS: Final = 1 << 24
"""4096 x 4096"""
_DEPTH: Final = 32
_PIXEL: Final = 4
_MAX_GFN: Final = (1 << 52) - 1


class VfbServices(Services, Protocol):
    """What a framebuffer needs of the host beyond what every backend does."""

    def read_pages(self, domid: int, gfns: Iterable[int]) -> bytes:
        """Return copies of pages of a guest's RAM, one behind the other; under the lock. Raises XenError(EFAULT)."""


@dataclass(frozen=True, slots=True)
class Screen:
    """The geometry of a connected framebuffer, `stride` in bytes from row to row, and the pages that its pixels are in."""

    width: int
    height: int
    stride: int
    gfns: array[int]


class Vfb(Backend):
    """One vfb= entry. Raises ConfigError, HostError if it is to be seen by VNC and cannot be."""

    kind: ClassVar[str] = "vfb"

    def __init__(self, services: VfbServices, domid: int, config: VfbConfig) -> None:
        super().__init__(services, domid, config.devid)
        self.config = config
        self._pages = services
        self.screen: Screen | None = None
        self._port = 0
        self.viewers: Viewers | None = None
        """Who sees it by VNC, if anybody may."""
        if config.vnc:
            from xenpy.devices.vfb.viewers import Viewers

            self.viewers = Viewers(self)

    def backend_nodes(self) -> Nodes:
        """Return what libxl writes for a framebuffer."""
        config = self.config
        nodes: Nodes = {"vnc": int(config.vnc), "vnclisten": config.vnclisten, "vncdisplay": config.vncdisplay}
        return nodes | {"vncunused": int(config.vncunused), "sdl": 0, "opengl": 0}

    def start(self) -> None:
        """Write the device's tree and serve it, to the guest and to viewers."""
        super().start()
        if self.viewers is not None:
            self.viewers.start()

    def connect(self) -> Nodes:
        """Take note of where the pixels are. Raises FrontendError, XenError."""
        frontend = self.frontend
        layout = LAYOUTS.get(frontend.text("protocol", "x86_64-abi"))
        if layout is None:
            raise FrontendError(f"{frontend.path}: protocol is none of {', '.join(LAYOUTS)}")
        page = self._read([frontend.number("page-ref", high=_MAX_GFN)])
        width, height, stride, size, depth = GEOMETRY.unpack_from(page)
        if width < 1 or height < 1 or width * height > MAX_PIXELS or depth != _DEPTH:
            raise FrontendError(f"a framebuffer of {width} x {height} pixels of {depth} bits")
        if not width * _PIXEL <= stride <= size // height:
            raise FrontendError(
                f"{height} rows of {stride} bytes in a framebuffer of {size} bytes, {width} pixels wide"
            )
        pages = -(-stride * height >> PAGE_SHIFT)
        per_page = PAGE_SIZE // array(layout.word).itemsize
        lists = -(-pages // per_page)
        if lists > PD_ENTRIES:
            raise FrontendError(f"a framebuffer of {pages} pages")
        directory = array(layout.word, page[layout.pd : layout.pd + lists * array(layout.word).itemsize])
        gfns = array(layout.word, self._read(directory))[:pages]
        self._port = self.services.bind(self.domid, frontend.port("event-channel"), lambda: None)
        self.screen = Screen(width, height, stride, gfns)
        return {"request-update": 0}

    def _read(self, gfns: Iterable[int]) -> bytes:
        return self._pages.read_pages(self.domid, gfns)

    def disconnect(self, done: Callable[[], None]) -> None:
        """Let go of the event channel."""
        self.screen = None
        self.services.unbind(self._port)
        done()

    def release(self) -> None:
        """Send viewers away."""
        if self.viewers is not None:
            self.viewers.close()

    def image(self) -> Image:
        """Return what the guest shows now. Raises HostError if it shows nothing."""
        return from_xrgb(*self.pixels())

    def pixels(self) -> tuple[bytes, int, int]:
        """Return what the guest shows now, blue, green, red and nothing for each pixel, and its width and height.

        Raises HostError if it shows nothing.
        """
        with self.services.lock:
            screen = self.screen
            if screen is None:
                raise HostError(f"domain {self.domid}: no driver is connected to framebuffer {self.params.devid}")
            try:
                data = self._read(screen.gfns)
            except XenError as error:
                raise HostError(f"domain {self.domid}: framebuffer {self.params.devid}: {error}") from None
        return packed(data, screen.width * _PIXEL, screen.height, screen.stride), screen.width, screen.height
