"""What VNC is given of a framebuffer, and of the keyboard and pointer that came with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.devices.vnc.frame import PIXEL, Frame
from xenpy.devices.vnc.password import load_cipher
from xenpy.devices.vnc.protocol import Button
from xenpy.devices.vnc.server import Server, listen
from xenpy.errors import HostError

if TYPE_CHECKING:
    from xenpy.devices.vfb.backend import Vfb
    from xenpy.devices.vkbd.backend import Vkbd

_WIDTH: Final = 640
_HEIGHT: Final = 480
_NOTHING: Final = Frame(_WIDTH, _HEIGHT, bytes(_WIDTH * _HEIGHT * PIXEL))
"""Shown while no driver is connected."""
_BUTTONS: Final = {Button.LEFT: 0x110, Button.RIGHT: 0x111, Button.MIDDLE: 0x112}
"""Ref: linux/input-event-codes.h, BTN_LEFT and on"""
_WHEEL: Final = {Button.WHEEL_UP: -1, Button.WHEEL_DOWN: 1}
"""Ref: xen/include/public/io/kbdif.h, rel_z; Linux's driver turns it round"""


class Viewers:
    """Lets viewers see one framebuffer. Raises ConfigError, HostError, if they could not."""

    def __init__(self, vfb: Vfb) -> None:
        config = vfb.config
        self._vfb = vfb
        if config.vncpasswd is not None:
            load_cipher()
        sock = listen(config.vnclisten, config.vncdisplay, unused=config.vncunused)
        name = f"domain {vfb.domid}"
        self._server = Server(name, sock, self._grab, _Hands(vfb), config.vncpasswd)

    @property
    def address(self) -> tuple[str, int]:
        """Return where they connect to: an address and a TCP port."""
        return self._server.address

    def start(self) -> None:
        """Let viewers in, and write where. Ref: libxl, the nodes that `xl vncviewer` reads"""
        vfb = self._vfb
        host, port = self.address
        with vfb.services.lock:
            for node, value in (("vnc-listen", host), ("vnc-port", port)):
                vfb.services.store.write(f"/local/domain/{vfb.domid}/console/{node}", str(value))
        self._server.start()

    def close(self) -> None:
        """Send them away."""
        self._server.close()

    def _grab(self) -> Frame:
        try:
            pixels, width, height = self._vfb.pixels()
        except HostError:
            return _NOTHING
        return Frame(width, height, pixels)


class _Hands:
    """What viewers do, done with the guest's keyboard and pointer; while no driver has them it is lost."""

    def __init__(self, vfb: Vfb) -> None:
        self._vfb = vfb
        self._buttons = 0
        self._x = self._y = 0

    def _keyboard(self) -> Vkbd | None:
        from xenpy.devices.vkbd.backend import Vkbd

        number = self._vfb.config.keyboard
        found = None if number is None else self._vfb.find(Vkbd.kind, number)
        return found if isinstance(found, Vkbd) else None

    def key(self, code: int, *, pressed: bool) -> None:
        """Press or release a key."""
        if (keyboard := self._keyboard()) is not None:
            try:
                keyboard.key(code, pressed=pressed)
            except HostError:
                return

    def pointer(self, x: int, y: int, buttons: int) -> None:
        """Have the pointer at a place, with these buttons down."""
        keyboard = self._keyboard()
        before, self._buttons = self._buttons, buttons
        moved = x - self._x, y - self._y
        self._x, self._y = x, y
        if keyboard is None:
            return
        wheel = sum(step for bit, step in _WHEEL.items() if buttons & ~before & bit)
        try:
            if wheel or any(moved):
                keyboard.move(*((x, y) if keyboard.absolute else moved), wheel)
            for bit, code in _BUTTONS.items():
                if (buttons ^ before) & bit:
                    keyboard.key(code, pressed=bool(buttons & bit))
        except HostError:
            return
