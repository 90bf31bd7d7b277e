"""Channels: consoles beside the first, before ptys and sockets of the host."""

from __future__ import annotations

import os
import socket
import threading
import tty
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xenbus_rig import DOMID, FakeDriver, FakeServices

from xenpy.abi.xenbus import XenbusState
from xenpy.config.devices import ChannelConfig, ChannelConnection
from xenpy.devices.channel import create
from xenpy.devices.console import IN_SIZE, OUT_SIZE
from xenpy.devices.registry import DeviceOptions
from xenpy.errors import ConfigError
from xenpy.loop import Loop
from xenpy.pv.xenstore.toolstack import CONSOLE_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.devices.channel.backend import Channel

IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = range((IN_SIZE + OUT_SIZE) // 4, (IN_SIZE + OUT_SIZE) // 4 + 4)


class LoopServices(FakeServices):
    """A fake host with a loop that turns in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon(callback)

    def close(self) -> None:
        self.loop.stop()
        self._thread.join()
        self.loop.close()
        super().close()


class Guest(FakeDriver):
    """A guest's driver of a channel."""

    def __init__(self, services: LoopServices, channel: Channel) -> None:
        super().__init__(services, channel)
        self.gfn, self.page = services.page()
        self.words = self.page.cast("I")
        self.port = services.port()
        self.gref = services.grant(self.gfn)
        channel.start()

    def connect(self) -> None:
        self.await_state(XenbusState.InitWait)
        self.write({"ring-ref": self.gref, "port": self.port})
        self.switch(XenbusState.Initialised)
        self.await_state(XenbusState.Connected)
        self.switch(XenbusState.Connected)

    def write_some(self, data: bytes) -> int:
        """Put as much output into the ring as it has room for; return how much that was."""
        prod = self.words[OUT_PROD]
        size = min(len(data), OUT_SIZE - (prod - self.words[OUT_CONS]))
        for place, byte in enumerate(data[:size], prod):
            self.page[IN_SIZE + place % OUT_SIZE] = byte
        self.words[OUT_PROD] = prod + size
        self.services.send(self.port)
        return size

    def write_all(self, data: bytes) -> None:
        while data:
            data = data[self.write_some(data) :]

    def read(self) -> bytes:
        cons, prod = self.words[IN_CONS], self.words[IN_PROD]
        data = bytes(self.page[place % IN_SIZE] for place in range(cons, prod))
        self.words[IN_CONS] = prod
        self.services.send(self.port)
        return data

    def expect(self, wanted: bytes) -> None:
        data = bytearray()

        def come() -> bool:
            data.extend(self.read())
            return len(data) >= len(wanted)

        self.services.until(come, f"{len(wanted)} bytes of input")
        assert data == wanted


@pytest.fixture
def services() -> Iterator[LoopServices]:
    services = LoopServices()
    try:
        yield services
    finally:
        services.close()


@contextmanager
def channel_of(services: LoopServices, path: str | None = None) -> Iterator[tuple[Channel, Guest]]:
    connection = ChannelConnection.PTY if path is None else ChannelConnection.SOCKET
    channel = create(services, DOMID, ChannelConfig(0, "org.test", connection, path), DeviceOptions())
    guest = Guest(services, channel)
    try:
        yield channel, guest
    finally:
        channel.close()


def receive(source: int | socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(source, size) if isinstance(source, int) else source.recv(size)
        assert chunk
        data += chunk
    return bytes(data)


def test_pty(services: LoopServices) -> None:
    with channel_of(services) as (channel, guest):
        tty_path = services.store.read(f"{guest.path}/tty")
        assert channel.params.devid == 1
        assert guest.theirs("name") == services.store.read(f"{guest.path}/name") == "org.test"
        guest.connect()
        with Path(tty_path).open("r+b", buffering=0) as terminal:
            tty.setraw(terminal)
            guest.write_all(b"hello\n")
            assert receive(terminal.fileno(), 6) == b"hello\n"
            terminal.write(b"answer\n")
            guest.expect(b"answer\n")
    assert not services.store.exists(guest.path)
    assert not services.in_use(guest.gref)
    assert not services.bound


def test_a_pty_that_nobody_reads_keeps_the_newest_output(services: LoopServices) -> None:
    with channel_of(services) as (_, guest):
        guest.connect()
        output = b"".join(b"%07d\n" % number for number in range((CONSOLE_LIMIT + (64 << 10)) // 8))
        guest.write_all(output)
        services.until(lambda: guest.words[OUT_CONS] == guest.words[OUT_PROD], "all output taken")
        fd = os.open(services.store.read(f"{guest.path}/tty"), os.O_RDONLY | os.O_NOCTTY)
        try:
            # What the kernel took at once comes first; what came last is there.
            data = bytearray()
            while not data.endswith(output[-8:]):
                data += os.read(fd, 1 << 16)
            assert len(data) < len(output)
            assert data.startswith(output[:8])
        finally:
            os.close(fd)


def test_socket_clients_come_and_go(services: LoopServices, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with channel_of(services, path) as (_, guest):
        guest.connect()
        guest.write_all(b"early")
        services.until(lambda: guest.words[OUT_CONS] == guest.words[OUT_PROD], "output taken")
        for number in range(3):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(path)
                assert receive(client, 5) == (b"early" if number == 0 else b"again")
                client.sendall(b"input%d" % number)
                guest.expect(b"input%d" % number)
            guest.write_all(b"again")
    assert not Path(path).exists()


def test_a_socket_that_is_read_slowly_holds_the_guest_back(services: LoopServices, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with channel_of(services, path) as (channel, guest), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        guest.connect()
        services.until(lambda: channel.end.attended, "client accepted")
        output = os.urandom(CONSOLE_LIMIT + (1 << 20))
        writer = threading.Thread(target=guest.write_all, args=(output,))
        writer.start()
        assert receive(client, len(output)) == output
        writer.join()


def test_input_waits_for_a_driver(services: LoopServices, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with channel_of(services, path) as (_, guest), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(bytes(range(256)) * 20)
        guest.connect()
        guest.expect(bytes(range(256)) * 20)


def test_a_wild_index_costs_the_channel(services: LoopServices) -> None:
    with channel_of(services) as (channel, guest):
        guest.connect()
        guest.words[OUT_PROD] = guest.words[OUT_CONS] + OUT_SIZE + 1
        services.send(guest.port)
        guest.await_state(XenbusState.Closing)
        services.until(lambda: not services.in_use(guest.gref), "page given back")
        assert "further apart" in services.store.read(channel.params.error_path)


def test_reconnection(services: LoopServices, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with channel_of(services, path) as (_, guest), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(path)
        for word in (b"one", b"two"):
            guest.connect()
            guest.write_all(word)
            assert receive(client, 3) == word
            guest.switch(XenbusState.Closed)
            guest.await_state(XenbusState.Closed)
            guest.switch(XenbusState.Initialising)


def test_paths_that_cannot_be_had(services: LoopServices, tmp_path: Path) -> None:
    def fails(path: Path) -> str:
        with pytest.raises(ConfigError) as caught, channel_of(services, str(path)):
            pass
        return str(caught.value)

    assert "No such file or directory" in fails(tmp_path / "none" / "socket")
    (tmp_path / "file").write_text("precious")
    assert "in use" in fails(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    assert "too long" in fails(tmp_path / ("x" * 120))
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(tmp_path / "taken"))
        taken.listen()
        assert "in use" in fails(tmp_path / "taken")
    with channel_of(services, str(tmp_path / "taken")):  # nobody listens there any more
        pass
