"""User networking through passt: the guest's connections become sockets of a process without privileges.

passt is handed one end of a socket pair; each frame goes after its length, as a 32-bit big-endian number, as to QEMU's
`-netdev stream`. It takes what is in TCP and UDP frames as given, whatever their checksums, so a guest's large segments
go to it as they are.

Ref: passt(1); qemu(1), -netdev stream
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpy import log
from xenpy.devices.vif.frame import ETH_HLEN, MAX_FRAME, Frame
from xenpy.devices.vif.link import BATCH, Link
from xenpy.errors import HostError
from xenpy.loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenpy.devices.vif.frame import Buffer
    from xenpy.devices.vif.link import Sink
    from xenpy.loop import Deadline, Loop

PROGRAM: Final = "passt"
_LENGTH: Final = Struct(">I")
_BUFFER_SIZE: Final = 1 << 19
_SOCKET_BUFFER: Final = 1 << 22
"""What we ask for; the kernel gives what net.core.wmem_max allows."""
_MAX_PIECES: Final = 1000
"""Of one sendmsg. Ref: IOV_MAX, 1024 on Linux"""
_MAX_WORDS: Final = 4096
_START_SECONDS: Final = 10.0
_EXIT_SECONDS: Final = 2.0
_RESTART_SECONDS: Final = 0.5
_MAX_RESTARTS: Final = 10
_STEADY_SECONDS: Final = 60.0
"""Who lives as long as this and dies then has not failed to start."""
_NOISE: Final = (b"Failed to send", b"Don't run as root")
"""How lines begin that passt writes when there is no syslog to say things to, and whenever root starts it."""


class PasstLink(Link):
    """An interface's user networking; `arguments` are passt's options. It is started anew when it dies.

    `gateway`, an IPv4 address, is where it answers the interface's `mac` to show that it is there.

    Raises HostError if there is no passt or it does not start.
    """

    def __init__(self, loop: Loop, arguments: Sequence[str], mac: bytes, gateway: bytes) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise HostError(
                "user networking needs the program passt, which is not installed (Debian: apt install passt)"
            )
        self._loop = loop
        self._command = [program, "--foreground", "--quiet", *arguments]
        self._greeting = _arp_request(mac, gateway)
        self._sink: Sink | None = None
        self._input = bytearray(_BUFFER_SIZE)
        self._filled = 0
        self._output = b""
        self._words = b""
        self._restarts = 0
        self._started = 0.0
        self._retry: Deadline | None = None
        self._reading = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._start()
        try:
            self._wait_ready()
        except HostError:
            self.close()
            raise

    # -- the process --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        ours.setblocking(False)
        command = [*self._command, "--fd", str(theirs.fileno())]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C at the terminal is the guest's, or ours
            )
        except OSError as error:
            ours.close()
            raise HostError(f"{self._command[0]}: {error.strerror}") from None
        finally:
            theirs.close()
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._socket = ours
        self._started = time.monotonic()
        self._filled = 0
        self._output = b""

    def _wait_ready(self) -> None:
        """Ask passt something that it answers as soon as it has everything it needs, and wait for that.

        Raises HostError.
        """
        assert self._socket is not None
        with suppress(OSError):
            self._socket.settimeout(_START_SECONDS)
            self._socket.sendall(_LENGTH.pack(len(self._greeting)) + self._greeting)
            if self._socket.recv(1, socket.MSG_PEEK):
                self._socket.setblocking(False)
                return
        raise HostError(f"passt did not start: {self._last_words()}")

    def _last_words(self) -> str:
        """End the process and return what it said, on one line."""
        process, self._process = self._process, None
        if process is None:
            return "it ended"
        assert process.stderr is not None
        if self._socket is not None:
            self._socket.close()
        try:
            process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._hear(process)
        process.stderr.close()
        lines = [line.strip() for line in self._words.splitlines() if line.strip() and not line.startswith(_NOISE)]
        said = b"; ".join(lines).decode(errors="replace")
        return said or f"exit code {process.returncode}"

    def _hear(self, process: subprocess.Popen[bytes]) -> bool:
        """Keep the end of what passt says; tell whether there may be more."""
        assert process.stderr is not None
        with suppress(BlockingIOError):
            words = os.read(process.stderr.fileno(), _MAX_WORDS)
            self._words = (self._words + words)[-_MAX_WORDS:]
            return bool(words)
        return True

    # -- the socket ---------------------------------------------------------------------------------------------------

    def attach(self, sink: Sink) -> None:
        """Begin to deliver frames to an interface."""
        self._sink = sink
        self._watch()

    def _watch(self) -> None:
        assert self._socket is not None
        assert self._process is not None
        assert self._process.stderr is not None
        self._loop.watch(self._socket.fileno(), READ, self._on_readable)
        self._loop.watch(self._process.stderr.fileno(), READ, self._on_words)
        self._reading = True

    def _unwatch(self) -> None:
        if self._socket is not None:
            for event in (READ, WRITE):
                self._loop.watch(self._socket.fileno(), event, None)
        if self._process is not None and self._process.stderr is not None:
            self._loop.watch(self._process.stderr.fileno(), READ, None)
        self._reading = False

    def _on_words(self) -> None:
        process = self._process
        if process is not None and process.stderr is not None and not self._hear(process):
            self._loop.watch(process.stderr.fileno(), READ, None)

    def _on_readable(self) -> None:
        sink = self._sink
        if sink is None:
            return
        with sink.lock:
            if self._socket is None:
                return
            try:
                size = self._socket.recv_into(memoryview(self._input)[self._filled :])
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._died()
                return
            self._filled += size
            self._deliver()

    def _deliver(self) -> None:
        """Give the interface the whole frames that have come, and read on only if it takes them all."""
        assert self._sink is not None
        view = memoryview(self._input)
        done = 0
        refused = False
        frames = self._frames(view)
        while batch := list(islice(frames, BATCH)):
            taken = self._sink.deliver([frame for frame, _ in batch])
            if taken:
                done = batch[taken - 1][1]
            if taken < len(batch):
                refused = True
                break
        rest = self._filled - done
        self._input[:rest] = self._input[done : self._filled]
        self._filled = rest
        if self._socket is not None and self._reading is refused:
            self._reading = not refused
            self._loop.watch(self._socket.fileno(), READ, None if refused else self._on_readable)

    def _frames(self, view: memoryview) -> Iterator[tuple[Frame, int]]:
        """Yield the whole frames of the buffer, and where each ends."""
        start = 0
        while start + _LENGTH.size <= self._filled:
            size = _LENGTH.unpack_from(view, start)[0]
            end = start + _LENGTH.size + size
            if size > MAX_FRAME:
                self._loop.call_soon(self._on_nonsense)
                return
            if end > self._filled:
                return
            if size >= ETH_HLEN:
                yield Frame([view[start + _LENGTH.size : end]], size, validated=True), end
            start = end

    def _on_nonsense(self) -> None:
        sink = self._sink
        if sink is not None:
            with sink.lock:
                self._died()

    def resume(self) -> None:
        """Offer again what the interface did not take."""
        if not self._reading and self._socket is not None:
            self._deliver()

    def send(self, frames: Sequence[Frame]) -> None:
        """Send frames; what the socket has no room for is kept, and the link is busy until it is gone."""
        pieces: list[Buffer] = []
        for frame in frames:
            if len(pieces) + 1 + len(frame.parts) > _MAX_PIECES:
                self._send(pieces)
                pieces = []
            pieces.append(_LENGTH.pack(frame.size))
            pieces.extend(frame.parts)
        self._send(pieces)

    def _send(self, pieces: Sequence[Buffer]) -> None:
        if self._socket is None:
            return
        sent = 0
        if not self._output:
            try:
                sent = self._socket.sendmsg(pieces)
            except BlockingIOError:
                pass
            except OSError:
                return  # it died: the read side hears of it
        if self._output or sent < sum(map(len, pieces)):
            self._output += b"".join(pieces)[sent:]
            self.busy = True
            self._loop.watch(self._socket.fileno(), WRITE, self._on_writable)

    def _on_writable(self) -> None:
        sink = self._sink
        if sink is None:
            return
        with sink.lock:
            if self._socket is None:
                return
            try:
                sent = self._socket.send(self._output)
            except BlockingIOError:
                return
            except OSError:
                sent = len(self._output)
            self._output = self._output[sent:]
            if not self._output:
                self._loop.watch(self._socket.fileno(), WRITE, None)
                self.busy = False
                sink.link_idle()

    # -- its end ------------------------------------------------------------------------------------------------------

    def _died(self) -> None:
        """Say why passt ended, tell the interface, and start it anew after a while."""
        assert self._sink is not None
        self._unwatch()
        words = self._last_words()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if time.monotonic() - self._started >= _STEADY_SECONDS:
            self._restarts = 0
        self._restarts += 1
        again = self._restarts <= _MAX_RESTARTS
        log.note(f"user networking: passt ended ({words}); " + ("it is started anew" if again else "giving up"))
        self._sink.link_changed(up=False)
        if self.busy:
            self.busy = False
            self._sink.link_idle()
        if again:
            self._retry = self._loop.call_later(_RESTART_SECONDS * self._restarts, self._restart)

    def _restart(self) -> None:
        sink = self._sink
        if sink is None:
            return
        with sink.lock:
            self._words = b""
            try:
                self._start()
            except HostError as error:
                log.note(f"user networking: {error}")
                return
            self._watch()
            sink.link_changed(up=True)

    def close(self) -> None:
        """End passt, which goes when its socket does."""
        if self._retry is not None:
            self._retry.cancel()
        self._unwatch()
        self._sink = None
        if self._process is not None:
            self._last_words()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _arp_request(mac: bytes, target: bytes) -> bytes:
    """Return a question for the owner of an IPv4 address. Ref: RFC 826"""
    ethernet_ipv4, request = bytes.fromhex("0001 0800 0604"), bytes.fromhex("0001")
    return b"\xff" * 6 + mac + b"\x08\x06" + ethernet_ipv4 + request + mac + bytes(4) + bytes(6) + target
