"""A tap of the host's, and the bridge that it is a port of.

The kernel takes and gives frames with what is left to do to them in front, so large segments and blank checksums pass.

Ref: linux/if_tun.h, linux/virtio_net.h, netdevice(7)
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import TYPE_CHECKING, Final, Self

from xenpy.devices.vif.checksum import checksum
from xenpy.devices.vif.frame import ETH_HLEN, MAX_FRAME, Frame, Gso
from xenpy.devices.vif.headers import TCP, TCP_CHECKSUM, U16, UDP_CHECKSUM, parse
from xenpy.devices.vif.link import BATCH, Link
from xenpy.devices.vif.offload import blank
from xenpy.errors import ConfigError, HostError
from xenpy.loop import READ

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.vif.link import Sink
    from xenpy.loop import Loop

_TUN: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x4004_54CA
_TUNSETOFFLOAD: Final = 0x4004_54D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6 = 0x01, 0x02, 0x04
"""Ref: linux/if_tun.h"""

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU, _SIOCSIFHWADDR, _SIOCBRADDIF = 0x8913, 0x8914, 0x8922, 0x8924, 0x89A2
"""Ref: linux/sockios.h"""
_IFF_UP: Final = 1
_IFREQ_FLAGS: Final = Struct("16sH22x")
_IFREQ_INT: Final = Struct("16si20x")
_IFREQ_ADDRESS: Final = Struct("16sH6s16x")
_ARPHRD_ETHER: Final = 1
_PORT_ADDRESS: Final = bytes.fromhex("feffffffffff")
"""The highest of all, as Xen's scripts set it: a bridge takes on the lowest address of its ports, and must keep its own."""
_MAX_NAME: Final = 15

_HEADER: Final = Struct("=BBHHHH")
"""struct virtio_net_hdr: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
_NEEDS_CSUM, _DATA_VALID = 1, 2
_GSO_NONE, _GSO_TCPV4, _GSO_TCPV6, _GSO_ECN = 0, 1, 4, 0x80
"""Ref: linux/virtio_net.h"""
_NO_HEADER: Final = _HEADER.pack(0, 0, 0, 0, 0, 0)

_SLOT: Final = _HEADER.size + MAX_FRAME + 1
_BUFFER_SIZE: Final = 8 * _SLOT
_MAX_WAITING: Final = 1 << 13
"""Frames that may wait in a tap, more or less: the kernel's own bound is far below."""
_PRIVILEGE: Final = (
    "that needs CAP_NET_ADMIN: run as root, or leave out bridge= and vifname= for user networking, which needs nothing"
)


class TapLink(Link):
    """A tap `name`, made a port of `bridge` unless that is None; `mtu` in bytes, None for the kernel's choice.

    A tap that exists and belongs to the user is taken as it is. Raises ConfigError, HostError.
    """

    def __init__(self, loop: Loop, name: str, bridge: str | None, mtu: int | None) -> None:
        if not 0 < len(os.fsencode(name)) <= _MAX_NAME:
            raise ConfigError(f"vifname={name} is not the name of an interface: 1 to {_MAX_NAME} bytes")
        self._use(loop, _open_tap(name))
        try:
            _configure(name, bridge, mtu)
        except HostError:
            self.close()
            raise

    @classmethod
    def adopt(cls, loop: Loop, fd: int) -> Self:
        """Return the tap that another process has opened; the descriptor is ours then."""
        self = cls.__new__(cls)
        self._use(loop, fd)
        return self

    def _use(self, loop: Loop, fd: int) -> None:
        self._loop = loop
        self._sink: Sink | None = None
        self._input = bytearray(_BUFFER_SIZE)
        self._kept: list[Frame] = []
        self._fd = fd

    def dup(self) -> int:
        """Return a descriptor for another process."""
        return os.dup(self._fd)

    def drain(self) -> None:
        """Drop the frames that wait: they are for who was there when they came."""
        with suppress(OSError):  # nothing more, or the interface is down
            for _ in range(_MAX_WAITING):
                os.readv(self._fd, [self._input])

    def attach(self, sink: Sink) -> None:
        """Begin to deliver frames to an interface."""
        self._sink = sink
        self._loop.watch(self._fd, READ, self._on_readable)

    def _on_readable(self) -> None:
        sink = self._sink
        if sink is None:
            return
        with sink.lock:
            if self._fd < 0:
                return
            frames = self._read()
            taken = sink.deliver(frames)
            if taken < len(frames):
                self._kept = [frame.keep() for frame in frames[taken:]]
                self._loop.watch(self._fd, READ, None)

    def _read(self) -> list[Frame]:
        """Return the frames that there are, as many as the buffer holds."""
        frames: list[Frame] = []
        view = memoryview(self._input)
        start = 0
        while len(frames) < BATCH and start + _SLOT <= _BUFFER_SIZE:
            try:
                size = os.readv(self._fd, [view[start : start + _SLOT]])
            except OSError:  # nothing more, or the interface is down
                break
            frame = _received(view[start : start + size])
            if frame is not None:
                frames.append(frame)
            start += size
        return frames

    def resume(self) -> None:
        """Offer again what the interface did not take, then read on."""
        if self._kept and self._sink is not None and self._fd >= 0:
            taken = self._sink.deliver(self._kept)
            del self._kept[:taken]
            if not self._kept:
                self._loop.watch(self._fd, READ, self._on_readable)

    def send(self, frames: Sequence[Frame]) -> None:
        """Give the kernel frames, one call for each: a tap takes no more at a time."""
        for frame in frames:
            header, sent = _described(frame)
            if sent is not None and self._fd >= 0:
                with suppress(OSError):  # no room, or the interface is down: as on any wire
                    os.writev(self._fd, [header, *sent.parts])

    def close(self) -> None:
        """Close the tap, which goes with it unless somebody made it to last."""
        if self._fd >= 0:
            self._loop.watch(self._fd, READ, None)
            os.close(self._fd)
            self._fd = -1
        self._sink = None


def _open_tap(name: str) -> int:
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{_TUN}: {error.strerror}: {_PRIVILEGE}") from None
    try:
        request = _IFREQ_FLAGS.pack(os.fsencode(name), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(fd, _TUNSETIFF, request)
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6)
    except OSError as error:
        os.close(fd)
        remedy = f": {_PRIVILEGE}" if error.errno == errno.EPERM else ""
        raise HostError(f"tap {name}: {error.strerror}{remedy}") from None
    return fd


def _configure(name: str, bridge: str | None, mtu: int | None) -> None:
    """Set a tap's size of frames, add it to its bridge and bring it up, unless somebody did. Raises HostError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        encoded = os.fsencode(name)
        try:
            if mtu is not None:
                fcntl.ioctl(control, _SIOCSIFMTU, _IFREQ_INT.pack(encoded, mtu))
            if bridge is not None and not Path(f"/sys/class/net/{name}/brport").exists():
                index = socket.if_nametoindex(name)
                fcntl.ioctl(control, _SIOCSIFHWADDR, _IFREQ_ADDRESS.pack(encoded, _ARPHRD_ETHER, _PORT_ADDRESS))
                fcntl.ioctl(control, _SIOCBRADDIF, _IFREQ_INT.pack(os.fsencode(bridge), index))
            flags = _IFREQ_FLAGS.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ_FLAGS.pack(encoded, 0)))[1]
            if not flags & _IFF_UP:
                fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ_FLAGS.pack(encoded, flags | _IFF_UP))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise HostError(f"bridge={bridge} is an interface of this host, but no bridge") from None
            where = f", bridge {bridge}" if bridge else ""
            remedy = f": {_PRIVILEGE}" if error.errno == errno.EPERM else ""
            raise HostError(f"tap {name}{where}: {error.strerror}{remedy}") from None


def _described(frame: Frame) -> tuple[bytes, Frame | None]:
    """Return a frame and what the kernel is to know of it; None if its headers are not what its flags say."""
    if not frame.csum_blank:
        return _NO_HEADER, frame
    headers = parse(frame.head)
    if headers is None or (frame.gso is not None and (headers.protocol != TCP or headers.v6 != frame.gso.v6)):
        return _NO_HEADER, None
    kind = _GSO_NONE if frame.gso is None else _GSO_TCPV6 if frame.gso.v6 else _GSO_TCPV4
    size = frame.gso.size if frame.gso else 0
    offset = headers.checksum - headers.transport
    header = _HEADER.pack(_NEEDS_CSUM, kind, headers.payload, size, headers.transport, offset)
    return header, blank(frame, headers)


def _received(data: memoryview) -> Frame | None:
    """Return the frame behind what the kernel says of it; None if that is nothing that a guest could be told."""
    if len(data) < _HEADER.size + ETH_HLEN:
        return None
    flags, kind, _, size, start, offset = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    kind &= ~_GSO_ECN
    frame = Frame([body], len(body), validated=bool(flags & _DATA_VALID))
    if kind in (_GSO_TCPV4, _GSO_TCPV6):
        frame.gso = Gso(size, kind == _GSO_TCPV6)
        frame.csum_blank = True
    elif flags & _NEEDS_CSUM:
        headers = parse(body)
        if headers is not None and (start, offset) == (headers.transport, headers.checksum - headers.transport):
            frame.csum_blank = True
        elif start + offset + U16.size <= len(body) and offset in (TCP_CHECKSUM, UDP_CHECKSUM):
            U16.pack_into(body, start + offset, checksum((body[start:],)))
        else:
            return None
    return frame
