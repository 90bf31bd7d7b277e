"""The host's end of a channel: a pseudo-terminal, or a socket that one client at a time connects to.

Everything here is called under the host's lock.
"""

from __future__ import annotations

import os
import socket
import stat
import tty
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from xenpy.config.devices import ChannelConnection
from xenpy.errors import ConfigError, HostError
from xenpy.loop import READ, WRITE
from xenpy.pv.xenstore.toolstack import CONSOLE_LIMIT

if TYPE_CHECKING:
    import threading

    from xenpy.config.devices import ChannelConfig
    from xenpy.loop import Loop

_CHUNK: Final = 64 << 10


class Peer(Protocol):
    """The guest's side, as its host's end sees it."""

    @property
    def lock(self) -> threading.RLock:
        """Return the host's lock."""

    @property
    def room(self) -> int:
        """Return how many bytes of input may be given."""

    def give(self, data: bytes) -> None:
        """Take input, at most as much as there is room for."""

    def resume(self) -> None:
        """Offer output again, some of which was not taken."""


class HostEnd(ABC):
    """Keeps output until somebody has taken it, CONSOLE_LIMIT bytes at most.

    Where a reader is known to be there the guest waits for it; otherwise the oldest output gives way to the newest.
    """

    path: str
    """Where a program of the host's finds it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._fd = -1
        self._pending = bytearray()
        self._peer: Peer | None = None
        self._reading = self._writing = False

    @property
    @abstractmethod
    def attended(self) -> bool:
        """Tell whether somebody is known to read."""

    def attach(self, peer: Peer) -> None:
        """Begin to serve."""
        self._peer = peer
        self.read_on()

    def put(self, data: bytes) -> int:
        """Take output; return how many bytes of it were taken."""
        if self.attended:
            data = data[: CONSOLE_LIMIT - len(self._pending)]
        self._pending += data
        self._flush()
        excess = len(self._pending) - CONSOLE_LIMIT
        if excess > 0:
            del self._pending[:excess]
        return len(data)

    def read_on(self) -> None:
        """Look for input again, if the guest has room for it."""
        wanted = self._fd >= 0 and self._peer is not None and self._peer.room > 0
        if wanted is not self._reading and self._fd >= 0:
            self._reading = wanted
            self._loop.watch(self._fd, READ, self._on_readable if wanted else None)

    def _on_readable(self) -> None:
        peer = self._peer
        if peer is None:
            return
        with peer.lock:
            if self._fd < 0:
                return
            try:
                data = os.read(self._fd, min(peer.room, _CHUNK)) if peer.room else None
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if data:
                peer.give(data)
            elif data is not None:
                self._hung_up()
            self.read_on()

    def _on_writable(self) -> None:
        if self._peer is not None:
            with self._peer.lock:
                self._flush()
                self._peer.resume()

    def _flush(self) -> None:
        try:
            while self._pending and self._fd >= 0:
                del self._pending[: os.write(self._fd, self._pending[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            self._hung_up()
        wanted = bool(self._pending) and self._fd >= 0
        if wanted is not self._writing and self._fd >= 0:
            self._writing = wanted
            self._loop.watch(self._fd, WRITE, self._on_writable if wanted else None)

    def _hung_up(self) -> None:
        """Do what is to be done when the reader has gone."""
        self._close_fd()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            for event in (READ, WRITE):
                self._loop.watch(self._fd, event, None)
            os.close(self._fd)
            self._fd = -1
            self._reading = self._writing = False

    def close(self) -> None:
        """Close everything."""
        self._close_fd()
        self._peer = None


class PtyEnd(HostEnd):
    """A pseudo-terminal in raw mode; nobody can tell whether the other side of it is read."""

    attended = False

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        try:
            self._fd, self._slave = os.openpty()
        except OSError as error:
            raise HostError(f"no pseudo-terminal for a channel: {error.strerror}") from None
        # Held open: a pseudo-terminal that nobody has open counts as hung up.
        tty.setraw(self._slave)
        os.set_blocking(self._fd, False)
        self.path = os.ttyname(self._slave)

    def close(self) -> None:
        """Close both sides."""
        super().close()
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1


class SocketEnd(HostEnd):
    """A unix socket at `path`, which goes with the device. A stale one is replaced. Raises ConfigError."""

    def __init__(self, loop: Loop, path: str) -> None:
        super().__init__(loop)
        self.path = path
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _remove_stale(path)
            self._listener.bind(path)
            self._listener.listen(1)
            self._identity = _identity(path)
        except OSError as error:
            self._listener.close()
            raise ConfigError(f"channel path={path}: {error.strerror or error}") from None

    @property
    def attended(self) -> bool:
        """Tell whether a client is connected."""
        return self._fd >= 0

    def attach(self, peer: Peer) -> None:
        """Begin to accept clients."""
        super().attach(peer)
        self._listen()

    def _listen(self) -> None:
        if self._listener is not None:
            self._loop.watch(self._listener.fileno(), READ, self._on_client)

    def _on_client(self) -> None:
        if self._peer is None:
            return
        with self._peer.lock:
            if self._listener is None or self._fd >= 0:
                return
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setblocking(False)
            self._loop.watch(self._listener.fileno(), READ, None)  # others wait for their turn
            self._fd = client.detach()
            self._flush()
            self.read_on()

    def _hung_up(self) -> None:
        super()._hung_up()
        self._listen()

    def close(self) -> None:
        """Close the socket and remove it from the file system, unless somebody has put another in its place."""
        listener, self._listener = self._listener, None
        super().close()
        if listener is not None:
            self._loop.watch(listener.fileno(), READ, None)
            listener.close()
            with suppress(OSError):
                if _identity(self.path) == self._identity:
                    Path(self.path).unlink()


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on. Raises OSError."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return  # bind says what is wrong
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()


def open_end(loop: Loop, config: ChannelConfig) -> HostEnd:
    """Open what a channel= entry asks for. Raises ConfigError, HostError."""
    if config.connection is ChannelConnection.PTY:
        return PtyEnd(loop)
    if config.path is None:
        raise ConfigError(f"channel {config.name}: a socket takes path=")
    return SocketEnd(loop, config.path)
