"""The unix socket that unmodified xenstore clients talk to.

Every peer is privileged, as with xenstored: who may connect is decided by the socket's file permissions.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING

from xenpy.errors import HostError
from xenpy.pv.xenstore.wire import ProtocolError

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.pv.xenstore.loops import Loop
    from xenpy.pv.xenstore.server import Xenstore

log = logging.getLogger(__name__)

RECEIVE_SIZE = 65536
SEND_SIZE = 65536
BACKLOG_PAUSE = 1 << 20
"""Unfetched output in bytes at which a peer's requests wait."""
BACKLOG_MAX = 16 << 20
"""Unfetched output in bytes, watch events that is, at which a peer is disconnected."""
SOCKET_MODE = 0o600


class SocketPeer:
    """One client of the socket."""

    def __init__(self, server: SocketServer, sock: socket.socket) -> None:
        self._server = server
        self._socket = sock
        self._unsent = b""
        self._open = True
        self.connection = server.store.connect(on_output=self.flush)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    @property
    def backlog(self) -> int:
        """Bytes that the client has yet to take."""
        return len(self._unsent) + self.connection.output_size

    def interest(self) -> int:
        """Wait for room if there is output, for requests unless too much output waits."""
        events = EVENT_WRITE if self.backlog else 0
        return events if self.backlog > BACKLOG_PAUSE else events | EVENT_READ

    def on_readable(self) -> None:
        """Take requests and answer them."""
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            self.connection.feed(data)
        except ProtocolError as error:
            log.warning("xenstore client disconnected: %s", error)
            self.close()

    def on_writable(self) -> None:
        """Send what waits."""
        self.flush()

    def flush(self) -> None:
        """Send as much output as the client takes; runs in whichever thread made it."""
        with self._server.store.guard:
            if not self._open:
                return
            waited = bool(self._unsent)
            try:
                while self.backlog:
                    if not self._unsent:
                        self._unsent = self.connection.take_output(SEND_SIZE)
                    self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                if self.backlog > BACKLOG_MAX:
                    log.warning("xenstore client disconnected: it does not fetch its %d bytes of output", self.backlog)
                    self.close()
                    return
            except OSError:
                self.close()
                return
            if waited != bool(self._unsent):
                self._server.loop.update(self)

    def close(self) -> None:
        """Disconnect; idempotent."""
        with self._server.store.guard:
            if not self._open:
                return
            self._open = False
            self.connection.close()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._server.forget(self)

    def dispose(self) -> None:
        """Close the descriptor, which the loop no longer watches."""
        self._socket.close()


class SocketServer:
    """A listening unix socket; a leftover file of one that nobody serves is replaced.

    Raises HostError if it cannot be made.
    """

    def __init__(self, store: Xenstore, path: Path, loop: Loop) -> None:
        self.store = store
        self.loop = loop
        self.path = path
        self._peers: set[SocketPeer] = set()
        self._open = True
        self._listener = _listen(path)
        loop.add(self)

    def fileno(self) -> int:
        """Return the listening descriptor."""
        return self._listener.fileno()

    def interest(self) -> int:
        """Wait for clients."""
        return EVENT_READ

    def on_readable(self) -> None:
        """Accept a client."""
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        with self.store.guard:
            if not self._open:
                sock.close()
                return
            peer = SocketPeer(self, sock)
            self._peers.add(peer)
            self.loop.add(peer)

    def on_writable(self) -> None:
        """Do nothing: a listener never asks for this."""

    def forget(self, peer: SocketPeer) -> None:
        """Drop a peer that closes."""
        self._peers.discard(peer)
        self.loop.remove(peer)

    def close(self) -> None:
        """Disconnect everybody and remove the socket's file."""
        with self.store.guard:
            self._open = False
            for peer in tuple(self._peers):
                peer.close()
        self.path.unlink(missing_ok=True)
        self.loop.remove(self)

    def dispose(self) -> None:
        """Close the descriptor, which the loop no longer watches."""
        self._listener.close()


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
                if probe.connect_ex(str(path)) == 0:
                    raise HostError(f"{path}: another xenstored listens there; give another path")
            path.unlink()
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
        listener.listen()
    except OSError as error:
        listener.close()
        raise HostError(f"{path}: cannot listen there: {error.strerror or error}") from error
    except HostError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
