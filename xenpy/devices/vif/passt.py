"""User networking through passt: the guest's connections become sockets of a process without privileges.

passt listens on a socket of our own; it serves one stream of frames at a time and, when that ends, waits for the next, with its connections
as they were. So whoever moves the frames may die, and so may passt. It takes what is in TCP and UDP frames as given, whatever their
checksums, so a guest's large segments go to it as they are.

Ref: passt(1)
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy import log
from xenpy.devices.isolation.child import NOBODY
from xenpy.devices.isolation.patience import Patience
from xenpy.devices.isolation.process import TEMPLATE
from xenpy.devices.vif.stream import LENGTH
from xenpy.errors import HostError
from xenpy.loop import READ

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.loop import Deadline, Loop

PROGRAM: Final = "passt"
_MAX_WORDS: Final = 4096
_START_S: Final = 90.0
"""It takes a few milliseconds, but more than ten seconds were seen on a busy emulated host."""
_EXIT_S: Final = 2.0
_LOOK_S: Final = 0.01
_RESTART_S: Final = 0.1
_USEFUL_S: Final = 1.0
"""Who lives as long as this after its start has served somebody."""
_NOISE: Final = (
    b"Failed to send", b"Don't run as root", b"UNIX domain socket bound", b"You can now start", b"kvm ", b"or qrap", b"./qrap",
)  # fmt: skip
"""How lines begin that passt writes when there is no syslog to say things to, when root starts it, and at every start."""


class Passt:
    """A passt for one interface; `arguments` are its options. It is started anew when it dies.

    `gateway`, an IPv4 address, is where it answers the interface's `mac` to show that it is there. `on_stream` is called with every stream
    that takes the place of one that `lost` told of, `on_change` when passt has died, and when it is back: both in the loop's thread.

    Raises HostError if there is no passt or it does not start.
    """

    def __init__(self, loop: Loop, arguments: Sequence[str], mac: bytes, gateway: bytes) -> None:
        program = shutil.which(PROGRAM)
        if program is None:
            raise HostError(
                "user networking needs the program passt, which is not installed (Debian: apt install passt)"
            )
        self.on_stream: Callable[[socket.socket], None] = socket.socket.close
        self.on_change: Callable[[bool], None] = _ignore
        self._loop = loop
        self._directory = tempfile.TemporaryDirectory(prefix="xenpy-passt-")
        if not os.geteuid():  # passt will be nobody before it makes its socket
            os.chown(self._directory.name, NOBODY, NOBODY)
        self._path = Path(self._directory.name) / "socket"
        self._command = [program, "--foreground", "--quiet", f"--socket={self._path}", *arguments]
        self._greeting = _arp_request(mac, gateway)
        self._patience = Patience("passt")
        self._words = b""
        self._started = 0.0
        self._due: Deadline | None = None
        self._closed = False
        self._pidfd = -1
        self.deaths = 0
        self.process: subprocess.Popen[bytes] | None = None
        """The process, if one runs."""
        try:
            self._start()
            self._wait_ready()
            self._watch()
        except BaseException:
            self.close()
            raise

    # -- the process --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._words = b""
        self._patience.started()
        try:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C at the terminal is the guest's, or ours
            )
        except OSError as error:
            raise HostError(f"{self._command[0]}: {error.strerror}") from None
        self._pidfd = os.pidfd_open(self.process.pid)
        TEMPLATE.guard(self.process.pid, self._pidfd, self._directory.name)
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        self._started = time.monotonic()

    def _watch(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        self._loop.watch(self._pidfd, READ, self._died)
        self._loop.watch(self.process.stderr.fileno(), READ, self._on_words)

    def _wait_ready(self) -> None:
        """Ask passt something that it answers as soon as it has everything it needs, and wait for that. Raises HostError."""
        assert self.process is not None
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError), self._connect() as stream:
                stream.settimeout(_START_S)
                stream.sendall(LENGTH.pack(len(self._greeting)) + self._greeting)
                if stream.recv(1):
                    return
            time.sleep(_LOOK_S)
        slow = f"no answer within {_START_S:.0f} s; " if self.process.poll() is None else ""
        raise HostError(f"passt did not start: {slow}{self._end()}")

    def _connect(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.setblocking(False)  # a passt that does not accept shall not hold up the loop
            stream.connect(os.fspath(self._path))
            stream.setblocking(True)
        except BaseException:
            stream.close()
            raise
        return stream

    def _end(self) -> str:
        """End the process and return what it said, on one line."""
        process, self.process = self.process, None
        if process is None:
            return "it ended"
        assert process.stderr is not None
        if self._pidfd >= 0:
            self._loop.watch(self._pidfd, READ, None)
            TEMPLATE.unguard(process.pid)
            os.close(self._pidfd)
            self._pidfd = -1
        self._loop.watch(process.stderr.fileno(), READ, None)
        process.terminate()
        try:
            process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._hear(process)
        process.stderr.close()
        lines = [line.strip() for line in self._words.splitlines()]
        said = b"; ".join(line for line in lines if line and not line.startswith(_NOISE)).decode(errors="replace")
        return said or f"exit code {process.returncode}"

    def _hear(self, process: subprocess.Popen[bytes]) -> bool:
        """Keep the end of what passt says; tell whether there may be more."""
        assert process.stderr is not None
        with suppress(BlockingIOError):
            words = os.read(process.stderr.fileno(), _MAX_WORDS)
            self._words = (self._words + words)[-_MAX_WORDS:]
            return bool(words)
        return True

    def _on_words(self) -> None:
        process = self.process
        if process is not None and process.stderr is not None and not self._hear(process):
            self._loop.watch(process.stderr.fileno(), READ, None)

    # -- its end ------------------------------------------------------------------------------------------------------

    def _died(self) -> None:
        """Say why passt ended, tell the interface, and start it anew after a while."""
        words = self._end()
        self.deaths += 1
        report = log.note if self.deaths == 1 else log.debug
        try:
            pause = self._patience.died(useful=time.monotonic() - self._started > _USEFUL_S)
        except HostError as error:
            log.note(f"user networking: passt ended ({words}); giving up: {error}")
        else:
            report(f"user networking: passt ended ({words}); it is started anew")
            self._later(_RESTART_S + pause, self._restart)
        self.on_change(False)

    def _restart(self) -> None:
        try:
            self._start()
        except HostError as error:
            log.note(f"user networking: {error}")
            return
        self._watch()
        self._reconnect()

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        if self._due is not None:
            self._due.cancel()
        if not self._closed:
            self._due = self._loop.call_later(seconds, action)

    # -- streams ------------------------------------------------------------------------------------------------------

    def open(self) -> socket.socket | None:
        """Return a stream, or None if passt is not there at the moment: then one is given to `on_stream` later. From any thread."""
        with suppress(OSError):
            return self._connect()
        return None

    def lost(self) -> None:
        """Hear that a stream has ended, if because of passt's death or not; from the loop's thread."""
        if self.process is not None:
            # Our next connection may come before passt has seen the end of the last one; then it refuses, and we are here again.
            self._later(_LOOK_S, self._reconnect)

    def _reconnect(self) -> None:
        if self.process is None:
            return
        stream = self.open()
        if stream is None:
            self._later(_LOOK_S, self._reconnect)
            return
        self.on_stream(stream)
        self.on_change(True)

    def close(self) -> None:
        """End passt. Idempotent."""
        self._closed = True
        if self._due is not None:
            self._due.cancel()
        self._end()
        self._directory.cleanup()


def _ignore(_up: bool) -> None:
    """Do nothing: nobody has asked yet to be told."""


def _arp_request(mac: bytes, target: bytes) -> bytes:
    """Return a question for the owner of an IPv4 address. Ref: RFC 826"""
    ethernet_ipv4, request = bytes.fromhex("0001 0800 0604"), bytes.fromhex("0001")
    return b"\xff" * 6 + mac + b"\x08\x06" + ethernet_ipv4 + request + mac + bytes(4) + bytes(6) + target
