"""Interfaces served by a process of their own, with a wire that a test holds the other end of."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from vif_rig import MAC, NetFront, VifServices
from xenbus_rig import DOMID, PATIENCE

from xenpy.config.vif import VifConfig
from xenpy.devices.vif.backend import Vif
from xenpy.devices.vif.isolated import Isolated
from xenpy.devices.vif.stream import LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.devices.isolation.keeper import Keeper
    from xenpy.devices.vif.station import Listener, Station

VNET_HEADER = bytes(10)
VALID = struct.pack("=BBHHHH", 2, 0, 0, 0, 0, 0)


class Wire:
    """The far end: an outlet whose frames a test sends and receives."""

    def __init__(self) -> None:
        self.losses = 0
        self.received: list[bytes] = []

    def begin(self) -> None:
        """Do nothing: nobody sends before there is a frontend."""

    def lost(self) -> None:
        self.losses += 1


class StreamWire(Wire):
    """Frames in a stream that is a new one for each process, as passt's is."""

    kind = "stream"

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()  # a new process' stream is opened in the keeper's thread
        self._ours: socket.socket | None = None
        self._input = b""
        self._output = b""

    def open(self, fds: list[int]) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        fds.append(theirs.detach())
        with self._lock:
            self._ours, before = ours, self._ours
            self._input = self._output = b""
        if before is not None:
            before.close()

    def send(self, data: bytes) -> bool:
        """Send a frame, unless the one before is still on its way or nobody is there; tell whether it was."""
        with self._lock:
            if self._ours is None:
                return False
            self._flush()
            if self._output:
                return False
            self._output = LENGTH.pack(len(data)) + data
            self._flush()
            return True

    def _flush(self) -> None:
        with suppress(OSError, AttributeError):
            while self._output:
                self._output = self._output[self._ours.send(self._output) :]

    def receive(self) -> list[bytes]:
        """Return the frames that have come."""
        with self._lock:
            return self._receive()

    def _receive(self) -> list[bytes]:
        ours = self._ours
        with suppress(OSError, AttributeError):
            while chunk := ours.recv(1 << 16):
                self._input += chunk
        frames = []
        while len(self._input) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._input)
            if len(self._input) < LENGTH.size + size:
                break
            frames.append(self._input[LENGTH.size : LENGTH.size + size])
            self._input = self._input[LENGTH.size + size :]
        return frames

    def close(self) -> None:
        if self._ours is not None:
            self._ours.close()


class TapWire(Wire):
    """Frames in messages with the kernel's header in front, on a descriptor that outlives processes, as a tap's is."""

    kind = "tap"

    def __init__(self) -> None:
        super().__init__()
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._theirs):
            end.setblocking(False)

    def open(self, fds: list[int]) -> None:
        fds.append(os.dup(self._theirs.fileno()))

    def send(self, data: bytes) -> bool:
        try:
            self._ours.send(VALID + data)
        except BlockingIOError:
            return False
        return True

    def receive(self) -> list[bytes]:
        frames = []
        with suppress(BlockingIOError):
            while True:
                frames.append(self._ours.recv(1 << 17)[len(VNET_HEADER) :])
        return frames

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()


@contextmanager
def isolated_front(
    wire: Wire | None = None,
    *,
    config: VifConfig | None = None,
    services: VifServices | None = None,
    make: Callable[..., Callable[[Listener], Station]] | None = None,
    before: Callable[[NetFront], object] = id,
    **how: Any,
) -> Iterator[NetFront]:
    """Make a host, a guest and an interface, and connect the guest's driver to it.

    `make` opens what is behind it, if that is not the `wire`; `before` is called before the driver connects.
    """
    services = services or VifServices()
    config = config or VifConfig(0, MAC)
    if make is None:
        outlet = wire or StreamWire()
        vif = Vif(services, DOMID, config, lambda listener: Isolated(services, DOMID, config, outlet, listener))
    else:
        vif = Vif(services, DOMID, config, make(services, DOMID, config, isolated=True))
    vif.start()
    services.pump()
    try:
        front = NetFront(services, vif, wire, **how)
        before(front)
        front.connect()
        yield front
    finally:
        vif.close()
        services.pump()
        assert not services.bound
        assert not services.gnttab.describe()[1:]
        services.close()


def keeper(front: NetFront) -> Keeper:
    """Return what keeps the process of a connected interface running."""
    assert isinstance(front.vif.station, Isolated)
    assert front.vif.station.keeper is not None
    return front.vif.station.keeper


def pid(front: NetFront) -> int:
    """Return the process that serves an interface, when there is one."""
    deadline = time.monotonic() + PATIENCE
    while (process := keeper(front).process) is None:
        assert time.monotonic() < deadline, "no process"
        time.sleep(0.001)
    return process.pid


def kill(front: NetFront) -> None:
    """End the process that serves an interface the way that leaves it no choice; return when that has been noticed."""
    deaths = keeper(front).deaths
    os.kill(pid(front), signal.SIGKILL)
    front.services.until(lambda: keeper(front).deaths > deaths, "the process' death")
