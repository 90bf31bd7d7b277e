"""User networking with the real passt: connections out to this host's loopback, connections in, and its death."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from struct import pack, unpack
from typing import TYPE_CHECKING

import pytest

from xenpy.config.forward import Forward
from xenpy.config.vif import VifConfig
from xenpy.devices.vif.checksum import checksum
from xenpy.devices.vif.frame import Frame, Gso
from xenpy.devices.vif.passt import Passt
from xenpy.devices.vif.passt_link import PasstLink
from xenpy.devices.vif.usernet import network_of
from xenpy.errors import HostError
from xenpy.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

pytestmark = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")

MAC = bytes.fromhex("00163e010203")
GATEWAY_MAC = bytes.fromhex("52550a000202")
GUEST, GATEWAY = bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2])
FIN, SYN, PSH, ACK = 1, 2, 8, 16
MSS = 1460
PATIENCE = 60.0


class Guest:
    """A sink that speaks just enough TCP for one connection; `room` bounds what it takes."""

    def __init__(self, loop: Loop, link: PasstLink) -> None:
        self.lock = threading.RLock()
        self.loop, self.link = loop, link
        self.segments: list[tuple[int, int, int, bytes]] = []
        self.ports = (0, 0)
        self.room: int | None = None
        self.changes: list[bool] = []
        self.idle = 0
        link.attach(self)

    def deliver(self, frames: Sequence[Frame]) -> int:
        if self.room is not None:
            frames = frames[: self.room]
            self.room -= len(frames)
        for frame in frames:
            data = b"".join(frame.parts)
            if data[12:14] == b"\x08\x06" and data[20:22] == b"\0\1":
                self.send_raw(data[6:12] + MAC + data[12:20] + b"\0\2" + MAC + GUEST + data[22:32])
            elif data[12:14] == b"\x08\x00" and data[23] == 6:
                source, dest, seq, ack = unpack(">HHII", data[34:46])
                self.ports = dest, source
                size = unpack(">H", data[16:18])[0]
                self.segments.append((data[47], seq, ack, data[34 + (data[46] >> 4) * 4 : 14 + size]))
        return len(frames)

    def link_idle(self) -> None:
        self.idle += 1

    def link_changed(self, *, up: bool) -> None:
        self.changes.append(up)

    def send_raw(self, *parts: bytes, gso: Gso | None = None) -> None:
        with self.lock:
            self.link.send([Frame(parts, sum(map(len, parts)), csum_blank=gso is not None, gso=gso)])

    def send(self, flags: int, seq: int, ack: int, data: bytes = b"", *, sum_field: int = 0) -> None:
        """Send a TCP segment, large ones with segmentation left to do."""
        options = pack(">BBHBBBB", 2, 4, MSS, 3, 3, 7, 0) if flags & SYN else b""
        tcp = pack(">HHIIBBHHH", *self.ports, seq, ack, 20 + len(options) << 2, flags, 65535, sum_field, 0) + options
        header = pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp) + len(data), 1, 0, 64, 6, 0, GUEST, GATEWAY)
        header = header[:10] + pack(">H", checksum([header])) + header[12:]
        gso = Gso(MSS, False) if len(data) > MSS else None
        self.send_raw(GATEWAY_MAC + MAC + b"\x08\x00" + header + tcp, data, gso=gso)

    def turn(self, until: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, f"never came about: {what}; {self.segments[-3:]}"
            tick = self.loop.call_later(0.02, lambda: None)
            self.loop._run_once()
            tick.cancel()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def open_link(loop: Loop, *forwards: Forward) -> PasstLink:
    network = network_of(VifConfig(0, "00:16:3e:01:02:03"))
    return PasstLink(loop, Passt(loop, network.arguments(None, forwards), MAC, network.gateway.packed))


@pytest.fixture
def guest(loop: Loop) -> Iterator[Guest]:
    link = open_link(loop)
    guest = Guest(loop, link)
    yield guest
    link.close()
    assert guest.link.passt.process is None


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


def connect_out(guest: Guest, server: socket.socket) -> tuple[socket.socket, int]:
    """Open a connection from the guest to the host's loopback; return the host's end and the next number expected."""
    guest.ports = 33000, server.getsockname()[1]
    guest.send(SYN, 99, 0, sum_field=0xDEAD)
    guest.turn(lambda: guest.segments, "an answer to SYN")
    flags, seq, ack, _ = guest.segments.pop()
    assert (flags & (SYN | ACK), ack) == (SYN | ACK, 100)
    guest.send(ACK, 100, seq + 1)
    return server.accept()[0], seq + 1


def test_large_segments_with_blank_checksums_reach_the_hosts_loopback(guest: Guest, server: socket.socket) -> None:
    ours, expected = connect_out(guest, server)
    content = os.urandom(60000)
    with ours:
        guest.send(ACK | PSH, 100, expected, content)
        received = b""
        ours.setblocking(False)

        def complete() -> bool:
            nonlocal received
            with contextlib.suppress(BlockingIOError):
                received += ours.recv(1 << 16)
            return len(received) >= len(content)

        guest.turn(complete, "the whole of a large segment")
        assert received == content


def test_what_the_guest_has_no_room_for_is_offered_again(guest: Guest, server: socket.socket) -> None:
    ours, expected = connect_out(guest, server)
    content = os.urandom(40 * MSS)
    with ours:
        guest.turn(lambda: True, "nothing")
        guest.segments.clear()
        guest.room = 3
        ours.sendall(content)
        guest.turn(lambda: guest.room == 0 and not guest.link.is_reading, "a refusal")
        assert len(guest.segments) <= 3
        guest.room = None
        with guest.lock:
            guest.link.resume()
        assert guest.link.is_reading
        pieces: dict[int, bytes] = {}

        def complete() -> bool:
            for _, seq, _, data in guest.segments:
                pieces[seq - expected] = data
            guest.segments.clear()
            done = 0
            while pieces.get(done):
                done += len(pieces[done])
            guest.send(ACK, 100, expected + done)
            return done == len(content)

        guest.turn(complete, "the rest")
        assert b"".join(pieces[at] for at in sorted(pieces) if pieces[at]) == content


def test_a_forwarded_port_leads_to_the_guest(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    link = open_link(loop, Forward(port, 80))
    guest = Guest(loop, link)
    try:
        with pytest.raises(HostError, match=str(port)):
            open_link(loop, Forward(port, 80))
        guest.send_raw(
            b"\xff" * 6 + MAC + b"\x08\x06" + bytes.fromhex("000108000604 0001") + MAC + GUEST + bytes(6) + GATEWAY
        )
        with socket.create_connection(("127.0.0.1", port)) as client:
            guest.turn(lambda: any(flags & SYN for flags, *_ in guest.segments), "SYN")
            _, seq, _, _ = next(segment for segment in guest.segments if segment[0] & SYN)
            assert guest.ports[0] == 80
            guest.segments.clear()
            guest.send(SYN | ACK, 499, seq + 1)
            guest.send(ACK | PSH, 500, seq + 1, b"welcome")
            client.settimeout(PATIENCE)
            assert client.recv(100) == b"welcome"
    finally:
        link.close()


def test_passt_is_started_anew_when_it_dies(
    guest: Guest, server: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    process = guest.link.passt.process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    guest.turn(lambda: guest.changes == [False], "news of its death")
    guest.send(SYN, 1, 0)  # lost, and nothing else
    guest.turn(lambda: guest.changes == [False, True], "its return")
    assert "user networking: passt ended" in capsys.readouterr().err
    connect_out(guest, server)[0].close()


def test_a_stopped_passt_makes_the_link_busy_and_loses_nothing(guest: Guest, server: socket.socket) -> None:
    ours, expected = connect_out(guest, server)
    process = guest.link.passt.process
    assert process is not None
    content = os.urandom(40000) * 400
    sent = 0
    os.kill(process.pid, signal.SIGSTOP)
    try:
        while not guest.link.busy and sent < len(content):
            guest.send(ACK | PSH, 100 + sent, expected, content[sent : sent + 40000])
            sent += 40000
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert 0 < sent < len(content)
    guest.turn(lambda: guest.idle, "idle again")
    assert not guest.link.busy
    with ours:
        ours.settimeout(PATIENCE)
        received = b""
        while len(received) < 40000:
            received += ours.recv(1 << 16)
        assert content.startswith(received)


def test_nobody_waits_for_a_stopped_passt_to_accept(guest: Guest) -> None:
    passt = guest.link.passt
    assert passt.process is not None
    os.kill(passt.process.pid, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as streams:
            for _ in range(socket.SOMAXCONN + 2):
                stream = passt.open()
                if stream is None:
                    break
                streams.enter_context(stream)
        assert stream is None
    finally:
        os.kill(passt.process.pid, signal.SIGCONT)


def test_closing_ends_the_process_and_is_idempotent(loop: Loop) -> None:
    link = open_link(loop)
    process = link.passt.process
    assert process is not None
    link.close()
    link.close()
    assert process.returncode is not None


def test_wrong_options_are_said_in_passts_words(loop: Loop) -> None:
    with pytest.raises(HostError, match=r"passt did not start: .*nonsense"):
        Passt(loop, ["--address=nonsense"], MAC, GATEWAY)
