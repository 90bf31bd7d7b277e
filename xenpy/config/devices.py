"""p9=, channel=, vfb= and vkb= strings.

Ref: xl.cfg(5), Devices
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from xenpy.config.specs import Spec

if TYPE_CHECKING:
    from xenpy.config.grammar import Atom, Position
    from xenpy.config.values import Reader

_P9 = frozenset(
    ["tag", "path", "security_model", "backend", "type", "max-space", "max-files", "max-open-files", "auto-delete"]
)
_CHANNEL = frozenset(["backend", "name", "connection", "path"])
_VNC = ("vnc", "vnclisten", "vncdisplay", "vncunused", "vncpasswd", "keymap")
_SDL = ("sdl", "opengl", "display", "xauthority")
_VKB_FLAGS = (
    "feature-disable-keyboard",
    "feature-disable-pointer",
    "feature-abs-pointer",
    "feature-raw-pointer",
    "feature-multi-touch",
)
_VKB_SIZES = ("multi-touch-width", "multi-touch-height", "multi-touch-num-contacts", "width", "height")
_VKB_BACKENDS = (None, "qemu", "linux")

DEFAULT_VNC_LISTEN = "127.0.0.1"
VNC_PORT = 5900
"""Display N is this TCP port plus N."""

_MAX_LIMIT = (1 << 31) - 1
_MAX_DISPLAY = 65535 - VNC_PORT
_MAX_PIXELS = 65535


class ChannelConnection(StrEnum):
    """What the host's end of a channel is."""

    PTY = "pty"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class P9Config:
    """One p9= entry: the directory `path`, mounted in the guest by its `tag`. `max_space` is in MiB, 0 is no limit."""

    tag: str
    path: str
    security_model: str = "none"
    max_space: int = 0
    max_files: int = 0
    max_open_files: int = 0
    auto_delete: bool = False
    devid: int = 0
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """One channel= entry; `path` is the socket's, for `ChannelConnection.SOCKET`.

    Ref: xen-pv-channel(7)
    """

    devid: int
    name: str
    connection: ChannelConnection
    path: str | None = None
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class VfbConfig:
    """One vfb= entry. The VNC port is 5900 + `vncdisplay`, or the next free one with `vncunused`."""

    devid: int
    vnc: bool = True
    vnclisten: str = DEFAULT_VNC_LISTEN
    vncdisplay: int = 0
    vncunused: bool = True
    vncpasswd: str | None = None
    keymap: str | None = None
    keyboard: int | None = field(default=None, compare=False)
    """The number of the vkb that viewers type on."""
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class VkbConfig:
    """One vkb= entry, or the keyboard and pointer that comes with a vfb=; sizes are in pixels."""

    devid: int
    unique_id: str | None = None
    backend_type: str | None = None
    feature_disable_keyboard: bool = False
    feature_disable_pointer: bool = False
    feature_abs_pointer: bool = False
    feature_raw_pointer: bool = False
    feature_multi_touch: bool = False
    multi_touch_width: int = 0
    multi_touch_height: int = 0
    multi_touch_num_contacts: int = 0
    width: int = 0
    height: int = 0
    position: Position | None = field(default=None, compare=False)


def parse_p9(atom: Atom, devid: int) -> P9Config:
    """Parse one element of p9=."""
    spec = Spec("p9", atom, _P9)
    spec.refuse_backend()
    model = spec.get("security_model") or "none"
    if model != "none":
        raise spec.fail(f"security_model={model} is refused: only none is supported, as in xl.cfg(5)")
    return P9Config(
        tag=spec.require("tag"),
        path=spec.require("path"),
        max_space=spec.number("max-space", 0, high=_MAX_LIMIT),
        max_files=spec.number("max-files", 0, high=_MAX_LIMIT),
        max_open_files=spec.number("max-open-files", 0, high=_MAX_LIMIT),
        auto_delete=spec.boolean("auto-delete"),
        devid=devid,
        position=spec.position,
    )


def parse_channel(atom: Atom, devid: int) -> ChannelConfig:
    """Parse one element of channel=."""
    spec = Spec("channel", atom, _CHANNEL)
    spec.refuse_backend()
    connection = spec.require("connection").lower()
    if connection not in set(ChannelConnection):
        raise spec.fail(f"connection={connection} is none of {', '.join(ChannelConnection)}")
    socket = connection == ChannelConnection.SOCKET
    return ChannelConfig(
        devid=devid,
        name=spec.require("name"),
        connection=ChannelConnection(connection),
        path=spec.require("path") if socket else None,
        position=spec.position,
    )


def parse_vfb(atom: Atom, devid: int) -> VfbConfig:
    """Parse one element of vfb=; display on an X server is refused, its address alone has no effect."""
    spec = Spec("vfb", atom, (*_VNC, *_SDL))
    for name in ("sdl", "opengl"):
        if spec.boolean(name):
            raise spec.fail(f"{name}=1 is refused: framebuffers are served over VNC")
    address, display = _vnc_listen(spec.get("vnclisten"))
    return VfbConfig(
        devid=devid,
        vnc=spec.boolean("vnc", default=True),
        vnclisten=address,
        vncdisplay=spec.number("vncdisplay", display, high=_MAX_DISPLAY),
        vncunused=spec.boolean("vncunused", default=True),
        vncpasswd=spec.get("vncpasswd"),
        keymap=spec.get("keymap"),
        position=spec.position,
    )


def vfb_of_domain(reader: Reader) -> VfbConfig | None:
    """Return the framebuffer that a top-level vnc=1 asks for, as xl gives PV guests without vfb=."""
    if not reader.boolean("vnc"):
        return None
    address, display = _vnc_listen(reader.string("vnclisten"))
    return VfbConfig(
        devid=0,
        vnclisten=address,
        vncdisplay=reader.number("vncdisplay", display, low=0, high=_MAX_DISPLAY),
        vncunused=reader.boolean("vncunused", default=True),
        vncpasswd=reader.string("vncpasswd") or None,
        keymap=reader.string("keymap") or None,
    )


def _vnc_listen(text: str | None) -> tuple[str, int]:
    """Return the address and the display number of a vnclisten=, which may have one behind a colon."""
    address, colon, display = (text or "").rpartition(":")
    alone = address.count(":") == 0 or address.endswith("]")
    if not (colon and alone and display.isascii() and display.isdigit() and int(display) <= _MAX_DISPLAY):
        address, display = text or "", "0"
    return address.strip("[]") or DEFAULT_VNC_LISTEN, int(display)


def parse_vkb(atom: Atom, devid: int) -> VkbConfig:
    """Parse one element of vkb=."""
    spec = Spec("vkb", atom, ("unique-id", "backend", "backend-type", *_VKB_FLAGS, *_VKB_SIZES))
    spec.refuse_backend()
    backend_type = spec.get("backend-type")
    if backend_type not in _VKB_BACKENDS:
        raise spec.fail(f"backend-type={backend_type} is neither qemu nor linux")
    return VkbConfig(
        devid=devid,
        unique_id=spec.get("unique-id"),
        backend_type=backend_type,
        feature_disable_keyboard=spec.boolean("feature-disable-keyboard"),
        feature_disable_pointer=spec.boolean("feature-disable-pointer"),
        feature_abs_pointer=spec.boolean("feature-abs-pointer"),
        feature_raw_pointer=spec.boolean("feature-raw-pointer"),
        feature_multi_touch=spec.boolean("feature-multi-touch"),
        multi_touch_width=spec.number("multi-touch-width", 0, high=_MAX_PIXELS),
        multi_touch_height=spec.number("multi-touch-height", 0, high=_MAX_PIXELS),
        multi_touch_num_contacts=spec.number("multi-touch-num-contacts", 0, high=_MAX_PIXELS),
        width=spec.number("width", 0, high=_MAX_PIXELS),
        height=spec.number("height", 0, high=_MAX_PIXELS),
        position=spec.position,
    )
