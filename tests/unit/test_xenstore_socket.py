"""The unix socket, driven by a loop of its own and by the VMM's."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import pytest
from loop_rig import in_thread

from xenpy.abi.xs_wire import MsgType
from xenpy.errors import HostError
from xenpy.loop import Loop
from xenpy.pv.xenstore import Xenstore
from xenpy.pv.xenstore.loops import AdaptedLoop, SelectorLoop
from xenpy.pv.xenstore.socket import SocketServer
from xenpy.pv.xenstore.wire import Message, MessageReader, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TIMEOUT_S = 60.0


class SocketClient:
    """A blocking client."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self._reader = MessageReader()

    def send(self, kind: int, payload: bytes) -> None:
        self.socket.sendall(encode(kind, 1, 0, payload))

    def receive(self) -> Message:
        while (message := self._reader.next()) is None:
            data = self.socket.recv(65536)
            assert data, "closed"
            self._reader.feed(data)
        return message

    def ask(self, kind: int, payload: bytes) -> bytes:
        self.send(kind, payload)
        return self.receive().payload


def _selector_loop() -> Iterator[SelectorLoop]:
    with in_thread(SelectorLoop()) as loop:
        yield loop


def _vmm_loop() -> Iterator[AdaptedLoop]:
    with in_thread(Loop()) as loop:
        yield AdaptedLoop(loop)


@pytest.fixture(params=[_selector_loop, _vmm_loop])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SocketServer]:
    loops = request.param()
    server = SocketServer(Xenstore(), tmp_path / "socket", next(loops))
    yield server
    server.close()
    deque(loops, 0)


@pytest.fixture
def client(server: SocketServer) -> Iterator[SocketClient]:
    client = SocketClient(server.path)
    yield client
    client.socket.close()


def test_requests_and_events_cross_the_socket(client: SocketClient, server: SocketServer) -> None:
    assert client.ask(MsgType.XS_WRITE, b"/a\0value") == b"OK\0"
    assert client.ask(MsgType.XS_READ, b"/a\0") == b"value"
    assert client.ask(MsgType.XS_WATCH, b"/a\0t\0") == b"OK\0"
    assert client.receive().payload == b"/a\0t\0"
    server.store.write("/a/b", "from another thread")
    assert client.receive().payload == b"/a/b\0t\0"


def test_clients_are_told_apart(client: SocketClient, server: SocketServer) -> None:
    other = SocketClient(server.path)
    transaction = other.ask(MsgType.XS_TRANSACTION_START, b"\0")
    client.socket.sendall(encode(MsgType.XS_READ, 1, int(transaction[:-1]), b"/\0"))
    assert client.receive().payload == b"ENOENT\0"
    other.socket.close()
    assert client.ask(MsgType.XS_READ, b"/tool\0") == b""


def test_a_client_that_goes_takes_its_watches_along(client: SocketClient, server: SocketServer) -> None:
    other = SocketClient(server.path)
    other.ask(MsgType.XS_WATCH, b"/a\0t\0")
    assert len(server.store.connections) == 2
    other.socket.close()
    for _ in range(1000):
        client.ask(MsgType.XS_WRITE, b"/a\0x")
        if len(server.store.connections) == 1:
            break
    assert server.store.accounts.of(0).watches == 0


def test_an_oversized_payload_ends_the_connection(client: SocketClient) -> None:
    client.socket.sendall(struct.pack("<IIII", MsgType.XS_READ, 1, 0, 5000))
    assert client.socket.recv(100) == b""


def test_a_slow_reader_gets_everything_in_the_end(client: SocketClient, server: SocketServer) -> None:
    server.store.write("/big", "z" * 4000)
    count = 1500
    sender = threading.Thread(target=lambda: [client.send(MsgType.XS_READ, b"/big\0") for _ in range(count)])
    sender.start()
    for _ in range(count):
        assert len(client.receive().payload) == 4000
    sender.join()


def test_a_client_that_never_reads_is_cut_off(
    client: SocketClient, server: SocketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xenpy.pv.xenstore.socket.BACKLOG_MAX", 10000)
    client.ask(MsgType.XS_WATCH, b"/\0" + b"t" * 2000 + b"\0")
    for number in range(2000):
        server.store.write(f"/{number}", "")
        if not server.store.connections:
            return
    pytest.fail("the store keeps events without bound")


def test_a_leftover_socket_is_replaced_and_a_live_one_respected(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    loop = SelectorLoop()
    server = SocketServer(Xenstore(), path, loop)
    with pytest.raises(HostError, match="another"):
        SocketServer(Xenstore(), path, loop)
    server.close()
    loop.close()
    assert not path.exists()


def test_a_path_where_nothing_can_be_made(tmp_path: Path) -> None:
    loop = SelectorLoop()
    with pytest.raises(HostError, match="No such file"):
        SocketServer(Xenstore(), tmp_path / "absent" / "socket", loop)
    loop.close()


def test_the_stand_alone_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "xenpy.pv.xenstore", "--socket", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            client = _connect(path, process)
            assert client.ask(MsgType.XS_DIRECTORY, b"/\0") == b"tool\0"
            second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (second.returncode, second.stderr.count("\n")) == (3, 1)
            client.socket.close()
            process.terminate()
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()
    assert not path.exists()


def _connect(path: Path, process: subprocess.Popen[str]) -> SocketClient:
    while process.poll() is None:
        try:
            return SocketClient(path)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.01)
    pytest.fail(f"the server ended: {process.communicate()[1]}")
