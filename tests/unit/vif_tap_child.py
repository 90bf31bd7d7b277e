"""Runs in a network namespace of its own, where it may make interfaces: a tap on a bridge, against the kernel's own stack.

It prints a line for each property that holds, and fails at the first one that does not.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from xenpy.config.vif import VifConfig
from xenpy.devices.vif.frame import Frame, Gso, Offloads
from xenpy.devices.vif.offload import adapt
from xenpy.devices.vif.opening import open_link
from xenpy.devices.vif.tap import TapLink
from xenpy.errors import HostError
from xenpy.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAC = bytes.fromhex("00163e010203")
GUEST, HOST = bytes([10, 9, 8, 2]), bytes([10, 9, 8, 1])
SYN, PSH, ACK = 2, 8, 16
PATIENCE = 60.0


class Services:
    def __init__(self) -> None:
        self.lock, self.loop, self.switches = threading.RLock(), Loop(), {}


class Guest:
    """A sink that keeps frames."""

    def __init__(self, services: Services, link: TapLink) -> None:
        self.lock, self.loop, self.link = services.lock, services.loop, link
        self.frames: list[Frame] = []
        self.room = 1 << 20
        link.attach(self)

    def deliver(self, frames: Sequence[Frame]) -> int:
        taken = min(self.room, len(frames))
        self.frames += [frame.keep() for frame in frames[:taken]]
        self.room -= taken
        return taken

    def link_idle(self) -> None: ...

    def link_changed(self, *, up: bool) -> None: ...

    def turn(self, until: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not until():
            assert time.monotonic() < deadline, f"never came about: {what}"
            self.loop.call_later(0.02, lambda: None)
            self.loop._run_once()

    def send(self, *parts: bytes, csum_blank: bool = False, gso: Gso | None = None) -> None:
        self.link.send([Frame(parts, sum(map(len, parts)), csum_blank=csum_blank, gso=gso)])


def interface(request: int, name: str, tail: bytes) -> None:
    with socket.socket() as control:
        fcntl.ioctl(control, request, struct.pack("16s24s", name.encode(), tail))


def make_bridge(name: str) -> None:
    """Make a bridge with an address and bring it up."""
    with socket.socket() as control:
        fcntl.ioctl(control, 0x89A0, name.encode() + b"\0")  # SIOCBRADDBR
    interface(0x8916, name, struct.pack("HH4s", socket.AF_INET, 0, HOST))  # SIOCSIFADDR
    interface(0x891C, name, struct.pack("HH4s", socket.AF_INET, 0, bytes([255, 255, 255, 0])))  # SIOCSIFNETMASK
    interface(0x8914, name, struct.pack("H", 0x43))  # SIOCSIFFLAGS: up, broadcast, running


def address_of(name: str) -> bytes:
    """Return an interface's MAC address."""
    with socket.socket() as control:
        return fcntl.ioctl(control, 0x8927, struct.pack("16s24s", name.encode(), b""))[18:24]  # SIOCGIFHWADDR


def tcp(ports: tuple[int, int], bridge: bytes, flags: int, seq: int, ack: int, data: int = 0) -> bytes:
    """Return headers of a segment with so much data, checksums wrong and to be filled in."""
    options = struct.pack(">BBHBBBB", 2, 4, 1460, 3, 3, 7, 0) if flags & SYN else b""
    segment = struct.pack(">HHIIBBHHH", *ports, seq, ack, 20 + len(options) << 2, flags, 65535, 0xDEAD, 0) + options
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment) + data, 1, 0, 64, 6, 0, GUEST, HOST)
    total = sum(struct.unpack(">10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack(">H", 0xFFFF ^ ((total & 0xFFFF) + (total >> 16))) + head[12:]
    return bridge + MAC + b"\x08\x00" + head + segment


def is_tcp(frame: Frame) -> bool:
    return bytes(frame.head[12:14]) == b"\x08\x00" and frame.head[23] == 6


def say(property_that_holds: str) -> None:
    sys.stdout.write(f"{property_that_holds}\n")


def main() -> int:
    services = Services()
    make_bridge("br7")
    link = open_link(services, 3, VifConfig(1, "00:16:3e:01:02:03", bridge="br7"))
    assert isinstance(link, TapLink)
    bridge = address_of("br7")
    assert address_of("vif3.1") == b"\xfe" + b"\xff" * 5
    guest = Guest(services, link)
    say("joined")

    with socket.create_server(("10.9.8.1", 0)) as server:
        server.settimeout(PATIENCE)
        ports = 33000, server.getsockname()[1]

        def got() -> list[Frame]:
            return [frame for frame in guest.frames if is_tcp(frame)]

        def answer_arp() -> None:
            for frame in guest.frames:
                data = bytes(frame.head)
                if data[12:14] == b"\x08\x06" and data[20:22] == b"\0\1" and data[38:42] == GUEST:
                    guest.send(data[6:12] + MAC + data[12:20] + b"\0\2" + MAC + GUEST + data[22:32])
            guest.frames = got()

        guest.send(tcp(ports, bridge, SYN, 99, 0), csum_blank=True)

        def answered() -> bool:
            answer_arp()
            return bool(got())

        guest.turn(answered, "an answer to a SYN whose checksum the kernel had to fill in")
        reply = got()[0]
        seq = struct.unpack(">I", reply.head[38:42])[0]
        assert reply.csum_blank, "the kernel leaves the checksum to us, as we told it"
        (complete,) = adapt(reply, Offloads())
        data = bytes(complete.head)
        total = sum(struct.unpack(f">{(len(data) - 26) // 2}H", data[26:])) + 6 + len(data) - 34
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        assert total == 0xFFFF, "and our completion of it is right"
        say("checksums")

        guest.send(tcp(ports, bridge, ACK, 100, seq + 1), csum_blank=True)
        ours, _ = server.accept()
        content = os.urandom(50000)
        guest.frames.clear()
        guest.send(
            tcp(ports, bridge, ACK | PSH, 100, seq + 1, len(content)), content, csum_blank=True, gso=Gso(1460, False)
        )
        ours.settimeout(PATIENCE)
        received = b""
        while len(received) < len(content):
            guest.loop.call_later(0.0, lambda: None)
            guest.loop._run_once()
            received += ours.recv(1 << 16)
        assert received == content
        say("large segment out")

        guest.frames.clear()
        ours.sendall(bytes(14000))
        guest.turn(lambda: sum(frame.size - 54 for frame in got()) >= 14000, "14000 bytes")
        assert any(frame.gso == Gso(1460, False) and frame.csum_blank for frame in got()), [
            frame.size for frame in got()
        ]
        say("large segment in")

        guest.frames.clear()
        guest.room = 0
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for number in range(5):
                udp.sendto(bytes([number]), ("10.9.8.255", 9))
        guest.turn(lambda: link._kept, "frames that wait")
        assert guest.frames == []
        guest.room = 1 << 20
        link.resume()

        def heard() -> bytes:
            return bytes(
                frame.head[-1]
                for frame in guest.frames
                if bytes(frame.head[12:14]) == b"\x08\x00" and frame.head[23] == 17
            )

        guest.turn(lambda: len(heard()) == 5, "all five")
        assert heard() == bytes(range(5))
        say("waiting frames")
        ours.close()

    with pytest.raises(HostError, match="bridge=lo is an interface of this host, but no bridge"):
        open_link(services, 3, VifConfig(2, "00:16:3e:01:02:04", bridge="lo"))
    say("no bridge")
    link.close()
    link.close()
    time.sleep(0.1)
    try:
        socket.if_nametoindex("vif3.1")
    except OSError:
        say("gone")
    services.loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
