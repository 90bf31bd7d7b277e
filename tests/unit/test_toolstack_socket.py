"""The control socket and the consoles behind it: odd clients cost themselves only, and no viewer misses a byte."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from xenpy.loop import Loop
from xenpy.toolstack import console as console_module
from xenpy.toolstack.client import Connection, ask_all, find
from xenpy.toolstack.console import Backlog, SharedConsole
from xenpy.toolstack.protocol import MAX_REQUEST, CommandError
from xenpy.toolstack.registry import Registry
from xenpy.toolstack.server import LATER, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from xenpy.devices.console import ConsoleRing
    from xenpy.toolstack.registry import Entry

LIMIT_S = 60.0
"""How long the loop's thread may take on a busy machine before a test gives up."""


class FakeRing:
    """A guest's console: `output` is what it has to say, `typed` what it has heard."""

    def __init__(self, console: SharedConsole) -> None:
        self.console = console
        self.output = b""
        self.typed = b""
        self.room = 1 << 20

    def on_event(self) -> None:
        while self.output and (taken := self.console.sink(self.output[:2048])):
            self.output = self.output[taken:]

    def send_input(self, data: bytes) -> None:
        self.typed += data


class Rig:
    """A served domain without a guest, its loop in a thread."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.entry: Entry = registry.register("one", "1234")
        self.loop = Loop()
        self.lock = threading.RLock()
        self._null = os.open(os.devnull, os.O_RDWR)
        self.console = SharedConsole(
            self.loop, lambda: None, lambda _error: None, self.lock, stdin=self._null, stdout=self._null
        )
        self.ring = FakeRing(self.console)
        self.console.attach(cast("ConsoleRing", self.ring))
        commands = {"echo": lambda text: text, "fail": self._fail, "crash": lambda: 1 // 0, "wait": lambda: LATER}
        self.server = Server(
            self.loop, self.entry.listener, commands, self.console, lambda **_: lambda _connection: None
        )
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _fail(self) -> None:
        raise CommandError("no", 7)

    def do(self, action: Any) -> None:
        """Have something done in the loop's thread, and wait until it is."""
        done = threading.Event()

        def run() -> None:
            action()
            done.set()

        self.loop.call_soon(run)
        assert done.wait(LIMIT_S)

    def stop(self) -> None:
        """End the loop, as the end of a guest does."""
        if self.thread.is_alive():
            self.do(self.server.stop)
            self.do(lambda: self.console.attach(None))
            self.loop.stop()
            self.thread.join()

    def say(self, data: bytes) -> None:
        """Have the guest say something."""
        with self.lock:
            self.ring.output += data
            self.ring.on_event()

    def connect(self) -> Connection:
        return Connection(self.registry, self.entry.record)

    def until_waiting(self, count: int) -> None:
        """Wait until so many requests wait to be answered."""
        self._until(lambda: sum(connection.waits for connection in self.server.connections) >= count)

    def until_typed(self, data: bytes) -> None:
        """Wait until the guest has heard as much, and see that it is that."""
        self._until(lambda: len(self.ring.typed) >= len(data))
        assert self.ring.typed == data

    def until_alone(self) -> None:
        """Wait until nobody is connected any more."""
        self._until(lambda: not self.server.connections)

    def until_said(self) -> None:
        """Wait until the guest has said all that it had to say."""
        self._until(lambda: not self.ring.output)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, "the loop has not come to it"
            self.do(lambda: None)

    def close(self) -> None:
        self.stop()
        self.loop.close()
        self.entry.close()
        self.server.close()
        self.console.finish()
        os.close(self._null)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(Registry(tmp_path))
    yield made
    made.close()


def watch(rig: Rig) -> Connection:
    connection = rig.connect()
    assert connection.call("console") == 0
    return connection


def read(connection: Connection, size: int) -> bytes:
    """Return what a viewer sees next."""
    data = connection.take_rest()
    while len(data) < size:
        piece = connection.socket.recv(size - len(data))
        assert piece, f"end after {len(data)} of {size} bytes"
        data += piece
    return data


def read_all(connection: Connection) -> bytes:
    data = connection.take_rest()
    while piece := connection.socket.recv(1 << 16):
        data += piece
    return data


def test_requests_and_answers(rig: Rig) -> None:
    with rig.connect() as connection:
        assert connection.call("echo", text="a\nb") == "a\nb"
        with pytest.raises(CommandError, match=r"^no$") as caught:
            connection.call("fail")
        assert caught.value.exit_code == 7
        with pytest.raises(CommandError, match="ZeroDivisionError"):
            connection.call("crash")
        with pytest.raises(CommandError, match="no command 'nonsense'"):
            connection.call("nonsense")
        with pytest.raises(CommandError, match="TypeError"):
            connection.call("echo", wrong=1)
        assert connection.call("echo", text=1) == 1


@pytest.mark.parametrize("line", [b"", b"[]", b"nonsense", b"\xff", b"[" * 60000, b"1", b'{"command": [1]}', b"{}"])
def test_what_is_no_request(rig: Rig, line: bytes) -> None:
    with rig.connect() as connection:
        connection.socket.sendall(line + b"\n")
        assert "error" in json.loads(connection.socket.makefile("rb").readline())
        assert connection.call("echo", text=1) == 1


def test_a_request_without_end(rig: Rig) -> None:
    with rig.connect() as connection, rig.connect() as other:
        connection.socket.sendall(b"x" * (MAX_REQUEST + 1))
        assert connection.wait_closed()
        assert other.call("echo", text=1) == 1


def test_requests_in_pieces_and_together(rig: Rig) -> None:
    with rig.connect() as connection:
        for byte in b'{"command": "echo", "text": 1}\n{"command": "echo", "text": 2}':
            connection.socket.sendall(bytes([byte]))
        connection.socket.sendall(b"\n")
        assert (connection.answer(), connection.answer()) == (1, 2)


def test_more_connections_than_there_is_use_for(rig: Rig) -> None:
    several = [rig.connect() for _ in range(300)]
    assert several[0].call("echo", text=1) == 1
    with pytest.raises(CommandError):
        several[-1].call("echo", text=1)
    for connection in several:
        connection.socket.close()
    rig.until_alone()
    with rig.connect() as connection:
        assert connection.call("echo", text=1) == 1


def test_those_who_wait_are_told(rig: Rig) -> None:
    with rig.connect() as first, rig.connect() as second:
        first.send("wait")
        second.send("wait")
        rig.until_waiting(2)
        rig.do(lambda: rig.server.announce({"code": 3}))
        assert first.answer() == second.answer() == {"code": 3}
        first.send("wait")
        rig.until_waiting(1)
        rig.stop()
        rig.server.close()
        with pytest.raises(CommandError, match="ended before it answered"):
            first.answer()
        assert second.wait_closed()


def test_finding_and_asking(rig: Rig) -> None:
    assert find(rig.registry, "one") == find(rig.registry, "1") == rig.entry.record
    for wrong in ("two", "2", "", "-1", "1 ", "\u0661"):
        with pytest.raises(CommandError, match=r"is an invalid domain identifier \(rc=-6\)"):
            find(rig.registry, wrong)
    records = rig.registry.records()
    assert list(ask_all(rig.registry, records, "echo", text=1)) == [(rig.entry.record, 1)]
    assert list(ask_all(rig.registry, records, "crash")) == [(rig.entry.record, None)]
    rig.entry.close()
    assert list(ask_all(rig.registry, records, "echo", text=1)) == []


# -- consoles ----------------------------------------------------------------------------------------------------------


def test_all_viewers_see_all(rig: Rig) -> None:
    rig.say(b"one\n")
    with watch(rig) as first:
        assert read(first, 4) == b"one\n"
        rig.say(b"two\n")
        with watch(rig) as second:
            assert read(second, 8) == b"one\ntwo\n"
            second.socket.sendall(b"hello")
            rig.until_typed(b"hello")  # a viewer that is gone is not listened to
        rig.say(b"three")
        rig.stop()
        rig.console.write_all(b"!")
        rig.console.finish()
        assert read_all(first) == b"two\nthree!"


def test_a_viewer_that_does_not_read_holds_back_guest_and_not_others(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "KEPT", 1 << 20)
    rig.console.backlog = Backlog((1 << 20) + (64 << 10))
    data = os.urandom(2 << 20)
    with watch(rig) as quick, watch(rig) as slow:
        for start in range(0, len(data), 2048):
            rig.say(data[start : start + 2048])
        held = len(rig.ring.output)
        assert 0 < held < len(data)
        assert read(quick, len(data) - held) == data[: len(data) - held]
        assert read(slow, len(data)) == data
        assert read(quick, held) == data[-held:]
    assert rig.ring.output == b""


def test_a_viewer_that_goes_lets_the_guest_go_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console_module, "KEPT", 1 << 20)
    rig.console.backlog = Backlog((1 << 20) + (64 << 10))
    with watch(rig):
        rig.say(bytes(3 << 20))
        rig.say(b"")
        assert rig.ring.output
    rig.until_said()
    with rig.connect() as late:
        assert late.call("console") == (3 << 20) - rig.console.backlog.end + rig.console.backlog.start


def test_a_guest_that_does_not_listen_holds_back_the_typist(rig: Rig) -> None:
    rig.ring.room = 0
    with watch(rig) as viewer:
        viewer.socket.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 1 << 24:
                sent += viewer.socket.send(bytes(4096))
        assert sent < 1 << 24
        rig.ring.room = 1 << 30
        viewer.take_rest()
        viewer.socket.shutdown(socket.SHUT_WR)
        assert read_all(viewer) == b""
        assert len(rig.ring.typed) == sent


def test_the_backlog_forgets_the_oldest() -> None:
    backlog = Backlog(10)
    for byte in range(25):
        backlog.add(bytes([byte]))
    assert (backlog.start, backlog.end) == (15, 25)
    assert backlog.read(15) == backlog.read(3) == bytes(range(15, 25))
    assert backlog.read(24) == b"\x18"
    assert backlog.read(25) == b""
