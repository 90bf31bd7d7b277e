"""Debian's own C xenstored as a reference: started on plain Linux, spoken to over its socket and over guests' rings."""

from __future__ import annotations

import itertools
import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

from xs_peers import Client, GuestRing, Transport

STUB_SOURCE = Path(__file__).with_name("stub.c")
VIRQ_PORT = 1
FIRST_GUEST_PORT = 16
REPLY_TIMEOUT_S = 60.0


class SocketTransport:
    """A unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(str(path))  # blocking: xenstored's backlog is short, and a timeout would make this fail
        self._socket.settimeout(REPLY_TIMEOUT_S)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> bytes:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionResetError("xenstored closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


def build_stub(folder: Path) -> Path:
    """Compile the preloaded stand-in for the Xen libraries; needs gcc and libxen-dev."""
    stub = folder / "stub.so"
    command = ["gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", stub, STUB_SOURCE]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    return stub


class Oracle:
    """One running C xenstored; `root` holds the unpacked packages, `folder` is new and its own."""

    def __init__(self, root: Path, stub: Path, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket_path = folder / "socket"
        self._ports: dict[int, int] = {}
        self._free_ports = itertools.count(FIRST_GUEST_PORT)
        self._transports: list[Transport] = []
        self._pages: list[mmap.mmap] = []
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
        # The stub's clock runs fast; watch events must not time out for it.
        fixed = ("--no-fork", "--timeout", "watch-event=100000000", "--pid-file", folder / "pid")
        command = [binary, *fixed, *options]
        self._process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while not self._up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"xenstored did not come up, exit code {self._process.poll()}")
            time.sleep(0.005)

    def _up(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            return probe.connect_ex(str(self.socket_path)) == 0

    def connect(self, name: str) -> Client:
        transport = SocketTransport(self.socket_path)
        self._transports.append(transport)
        return Client(transport, name)

    def create(self, domid: int) -> Client:
        path = self.folder / f"ring-{domid}"
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            page = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        port = self._ports[domid] = next(self._free_ports)
        ring = GuestRing(memoryview(page), lambda: self.send_event(port), self.wait_notification)
        self._transports.append(ring)
        self._pages.append(page)
        return Client(ring, f"dom{domid}")

    def port(self, domid: int) -> int:
        return self._ports[domid]

    def shutdown(self, domid: int) -> None:
        (self.folder / f"shutdown-{domid}").touch()
        self._virq()

    def resume(self, domid: int) -> None:
        (self.folder / f"shutdown-{domid}").unlink(missing_ok=True)

    def destroy(self, domid: int) -> None:
        (self.folder / f"ring-{domid}").unlink()
        (self.folder / f"shutdown-{domid}").unlink(missing_ok=True)
        self._virq()

    def _virq(self) -> None:
        """Raise VIRQ_DOM_EXC and wait until xenstored has read the event, so that what follows comes after it."""
        self.send_event(VIRQ_PORT)
        deadline = time.monotonic() + REPLY_TIMEOUT_S
        while select.select([self._to], [], [], 0)[0] and time.monotonic() < deadline:
            time.sleep(0.0005)

    def send_event(self, port: int) -> None:
        """Raise one of xenstored's event channels."""
        os.write(self._to, struct.pack("=I", port))

    def wait_notification(self) -> None:
        """Wait until xenstored notifies somebody."""
        if not select.select([self._from], [], [], REPLY_TIMEOUT_S)[0]:
            raise TimeoutError("xenstored does not answer")
        os.read(self._from, 4096)

    def close(self) -> None:
        for transport in self._transports:
            transport.close()
        for page in self._pages:
            page.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(REPLY_TIMEOUT_S)
        for fd in (self._to, self._from):
            os.close(fd)
