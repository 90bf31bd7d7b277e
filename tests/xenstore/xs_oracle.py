"""Debian's own C xenstored as a reference: started on plain Linux, spoken to over its socket and over guests' rings."""

from __future__ import annotations

import mmap
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from xenpy.abi.xs_wire import XENSTORE_RING_SIZE, MsgType, RingOffset
from xenpy.pv.xenstore.wire import Message, MessageReader, encode

STUB_SOURCE = Path(__file__).with_name("stub.c")
VIRQ_PORT = 1
FIRST_GUEST_PORT = 16
REPLY_TIMEOUT_S = 10.0


class Transport(Protocol):
    """Bytes to and from one server."""

    def send(self, data: bytes) -> None: ...
    def receive(self) -> bytes: ...


class Client:
    """One connection: requests with their replies, and the watch events that came in between."""

    def __init__(self, transport: Transport, name: str) -> None:
        self.transport = transport
        self.name = name
        self.events: deque[tuple[bytes, ...]] = deque()
        self._reader = MessageReader()
        self._req_id = 0

    def request(self, kind: int, payload: bytes = b"", tx_id: int = 0) -> Message:
        """Send one request and return its reply."""
        self._req_id += 1
        self.transport.send(encode(kind, self._req_id, tx_id, payload))
        while True:
            message = self._next()
            if message.type == MsgType.XS_WATCH_EVENT:
                self.events.append(tuple(message.payload.split(b"\0")[:2]))
            elif message.req_id == self._req_id:
                return message

    def take_events(self) -> list[tuple[bytes, ...]]:
        """Return the watch events of everything requested so far, by anyone: a request flushes them."""
        self.request(MsgType.XS_GET_DOMAIN_PATH, b"0\0")
        events = list(self.events)
        self.events.clear()
        return events

    def _next(self) -> Message:
        while (message := self._reader.next()) is None:
            self._reader.feed(self.transport.receive())
        return message


class SocketTransport:
    """A unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(REPLY_TIMEOUT_S)
        self._socket.connect(str(path))

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("xenstored closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


class RingTransport:
    """A guest's half of the shared page; `kick` sends its event channel."""

    def __init__(self, oracle: Oracle, domid: int, port: int) -> None:
        self.oracle = oracle
        self.port = port
        path = oracle.folder / f"ring-{domid}"
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self.page = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def index(self, offset: RingOffset) -> int:
        return int(struct.unpack_from("<I", self.page, offset)[0])

    def set_index(self, offset: RingOffset, value: int) -> None:
        struct.pack_into("<I", self.page, offset, value & 0xFFFFFFFF)

    def kick(self) -> None:
        self.oracle.send_event(self.port)

    def send(self, data: bytes) -> None:
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while data:
            prod, cons = self.index(RingOffset.req_prod), self.index(RingOffset.req_cons)
            room = XENSTORE_RING_SIZE - ((prod - cons) & 0xFFFFFFFF)
            if not room:
                self.oracle.wait_notification(deadline)
                continue
            for byte in data[:room]:
                self.page[RingOffset.req + prod % XENSTORE_RING_SIZE] = byte
                prod += 1
            self.set_index(RingOffset.req_prod, prod)
            data = data[room:]
            self.kick()

    def receive(self) -> bytes:
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while not (data := self.poll()):
            self.oracle.wait_notification(deadline)
        return data

    def poll(self) -> bytes:
        """Take what the response ring holds now."""
        prod, cons = self.index(RingOffset.rsp_prod), self.index(RingOffset.rsp_cons)
        data = bytearray()
        while cons != prod:
            data.append(self.page[RingOffset.rsp + cons % XENSTORE_RING_SIZE])
            cons = (cons + 1) & 0xFFFFFFFF
        if data:
            self.set_index(RingOffset.rsp_cons, cons)
            self.kick()
        return bytes(data)

    def close(self) -> None:
        self.page.close()


class Oracle:
    """One running C xenstored with its folder of rings."""

    def __init__(self, root: Path, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket_path = folder / "socket"
        self._guests = 0
        self._transports: list[SocketTransport | RingTransport] = []
        stub = folder / "stub.so"
        subprocess.run(
            ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", stub, STUB_SOURCE], check=True, timeout=60
        )
        (folder / "ring-0").write_bytes(bytes(mmap.PAGESIZE))
        for name in ("to-xenstored", "from-xenstored"):
            os.mkfifo(folder / name)
        self._to = os.open(folder / "to-xenstored", os.O_RDWR | os.O_NONBLOCK)
        self._from = os.open(folder / "from-xenstored", os.O_RDWR | os.O_NONBLOCK)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(stub),
            "LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu"),
            "XENSTUB_DIR": str(folder),
            "XENSTORED_RUNDIR": str(folder),
        }
        binary = next(root.glob("usr/lib/xen-*/bin/xenstored"))
        command = [binary, "--no-fork", "--pid-file", folder / "pid", *options]
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while not self.socket_path.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("xenstored did not come up")
            time.sleep(0.01)

    def connect(self) -> Client:
        """Open a privileged connection."""
        transport = SocketTransport(self.socket_path)
        self._transports.append(transport)
        return Client(transport, "dom0")

    def guest(self, control: Client, domid: int) -> Client:
        """Create a domain, introduce it through `control` and return its ring connection."""
        transport = self.ring(domid)
        control.request(MsgType.XS_INTRODUCE, f"{domid}\0000\0{transport.port}\0".encode())
        return Client(transport, f"dom{domid}")

    def ring(self, domid: int) -> RingTransport:
        """Create a domain's page without introducing it."""
        self._guests += 1
        transport = RingTransport(self, domid, FIRST_GUEST_PORT + self._guests)
        self._transports.append(transport)
        return transport

    def destroy(self, domid: int) -> None:
        """Let Xen forget a domain and tell xenstored."""
        (self.folder / f"ring-{domid}").unlink()
        self.send_event(VIRQ_PORT)

    def shutdown(self, domid: int) -> None:
        """Let a domain shut down and tell xenstored."""
        (self.folder / f"shutdown-{domid}").touch()
        self.send_event(VIRQ_PORT)

    def send_event(self, port: int) -> None:
        os.write(self._to, struct.pack("=I", port))

    def wait_notification(self, deadline: float) -> None:
        """Wait until xenstored notifies somebody, or a moment passes."""
        if time.monotonic() > deadline:
            raise TimeoutError("xenstored does not answer")
        if select.select([self._from], [], [], 0.05)[0]:
            os.read(self._from, 4096)

    def close(self) -> None:
        for transport in self._transports:
            transport.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(REPLY_TIMEOUT_S)
        for fd in (self._to, self._from):
            os.close(fd)
        shutil.rmtree(self.folder, ignore_errors=True)
