"""The unix socket that unmodified xenstore clients talk to.

Every peer is privileged, as with xenstored: who may connect is decided by the socket's file permissions.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from typing import TYPE_CHECKING, Protocol

from xenpy.errors import HostError
from xenpy.pv.xenstore.wire import ProtocolError

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.pv.xenstore.server import Xenstore

log = logging.getLogger(__name__)

RECEIVE_SIZE = 65536
SEND_SIZE = 65536
BACKLOG_PAUSE = 1 << 20
"""Unfetched output in bytes at which a peer's requests wait."""
BACKLOG_MAX = 16 << 20
"""Unfetched output in bytes, watch events that is, at which a peer is disconnected."""
SOCKET_MODE = 0o600


class Endpoint(Protocol):
    """A file descriptor with what to do when it is ready."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def interest(self) -> int:
        """Return the `selectors` events to wait for, perhaps 0."""

    def on_readable(self) -> None:
        """Take what has arrived."""

    def on_writable(self) -> None:
        """Send what waits."""


class Loop(Protocol):
    """An I/O loop; all may be called from any thread."""

    def add(self, endpoint: Endpoint) -> None:
        """Begin to drive an endpoint."""

    def update(self, endpoint: Endpoint) -> None:
        """Ask for `endpoint.interest()` again."""

    def remove(self, endpoint: Endpoint) -> None:
        """Forget an endpoint; it closes its descriptor afterwards."""


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
        events = selectors.EVENT_WRITE if self.backlog else 0
        return events if self.backlog > BACKLOG_PAUSE else events | selectors.EVENT_READ

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
            self._server.forget(self)
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
        self._listener = _listen(path)
        loop.add(self)

    def fileno(self) -> int:
        """Return the listening descriptor."""
        return self._listener.fileno()

    def interest(self) -> int:
        """Wait for clients."""
        return selectors.EVENT_READ

    def on_readable(self) -> None:
        """Accept a client."""
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
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
        for peer in tuple(self._peers):
            peer.close()
        self.loop.remove(self)
        self._listener.close()
        self.path.unlink(missing_ok=True)


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


class SelectorLoop:
    """A Loop for one thread that calls `run`; for the stand-alone server and tests."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for sock in (self._wake_receiver, self._wake_sender):
            sock.setblocking(False)
        self._selector.register(self._wake_receiver, selectors.EVENT_READ)
        self._stopping = self._closed = False

    def add(self, endpoint: Endpoint) -> None:
        """Begin to drive an endpoint."""
        self._selector.register(endpoint, selectors.EVENT_READ, endpoint)
        self._wake()

    def update(self, endpoint: Endpoint) -> None:
        """Ask for `endpoint.interest()` again."""
        self._selector.modify(endpoint, endpoint.interest(), endpoint)
        self._wake()

    def remove(self, endpoint: Endpoint) -> None:
        """Forget an endpoint."""
        if not self._closed:
            self._selector.unregister(endpoint)

    def stop(self) -> None:
        """Let `run` return; callable from a signal handler or another thread."""
        self._stopping = True
        self._wake()

    def run(self) -> None:
        """Drive the endpoints until `stop`."""
        while not self._stopping:
            for key, events in self._selector.select():
                self._serve(key.data, events)
        self._closed = True
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def _serve(self, endpoint: Endpoint | None, events: int) -> None:
        if endpoint is None:
            with contextlib.suppress(BlockingIOError):
                self._wake_receiver.recv(RECEIVE_SIZE)
            return
        if events & selectors.EVENT_WRITE and endpoint.fileno() >= 0:
            endpoint.on_writable()
        if events & selectors.EVENT_READ and endpoint.fileno() >= 0:
            endpoint.on_readable()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            self._wake_sender.send(b"\0")
