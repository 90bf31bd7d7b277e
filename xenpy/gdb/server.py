"""A socket at which a debugger may connect to a domain. All in the loop's thread."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import End
from xenpy.errors import HostError
from xenpy.exitcodes import ExitCode
from xenpy.gdb.packets import Oversized
from xenpy.gdb.session import Gone, Session, Stop
from xenpy.gdb.target import DomainTarget
from xenpy.loop import READ, WRITE

if TYPE_CHECKING:
    from xenpy.domain.domain import Domain

ADDRESS: Final = "127.0.0.1"
"""There is no password: nobody else's machine may connect."""
_CHUNK: Final = 16 << 10
_MAX_UNSENT: Final = 1 << 20
_MAX_UNREAD: Final = 256 << 10


class GdbServer:
    """Listens for one debugger at a time; port 0 takes one that is free. With `hold` the domain waits for the first, which starts it.

    Raises HostError if the port cannot be had, or the domain has a debugger.
    """

    def __init__(self, domain: Domain, port: int, *, hold: bool = False) -> None:
        self._domain = domain
        self._loop = domain.host.loop
        try:
            self._listener = socket.create_server((ADDRESS, port))
        except OSError as error:
            raise HostError(f"gdb: cannot listen at {ADDRESS}:{port}: {error.strerror}") from None
        self._listener.setblocking(False)
        self._connection: _Connection | None = None
        self._target: DomainTarget | None = None
        try:
            if hold:
                self._target = self._make_target()
        except HostError:
            self._listener.close()
            raise
        self._loop.watch(self._listener.fileno(), READ, self._on_connection)

    @property
    def address(self) -> str:
        """Return what GDB's `target remote` takes."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def _make_target(self) -> DomainTarget:
        target = DomainTarget(self._domain, self._on_stop, self._on_end)
        target.attach()
        return target

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if self._connection is not None or self._domain.ending is not None:
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            target = self._target or self._make_target()
        except HostError:  # another server's debugger has the domain
            connection.close()
            return
        self._target = target
        self._connection = _Connection(self, connection, target)
        if target.ready:
            self._connection.begin()

    def _on_stop(self, reason: Stop, thread: int, gva: int) -> None:
        if self._connection is not None:
            self._connection.stopped(reason, thread, gva)

    def _on_end(self) -> None:
        if self._connection is not None:
            ending = self._domain.ending
            well = ending is not None and ending.kind is End.POWEROFF
            self._connection.ended(ExitCode.POWEROFF if well else ExitCode.FAILURE)

    def forget(self, connection: _Connection, *, released: bool) -> None:
        """Take note that a debugger has gone; unless it has `released` the domain, that is done now."""
        if self._connection is not connection:
            return
        self._connection = None
        if self._target is not None and not released:
            self._target.close()
        self._target = None

    def close(self) -> None:
        """Listen no more, and let the debugger and the domain go."""
        if self._connection is not None:
            self._connection.close(released=False)
        elif self._target is not None:
            self._target.close()
            self._target = None
        self._loop.watch(self._listener.fileno(), READ, None)
        self._listener.close()


class _Connection:
    """One debugger."""

    def __init__(self, server: GdbServer, connection: socket.socket, target: DomainTarget) -> None:
        self._server = server
        self._socket = connection
        self._loop = target.loop
        self._session = Session(target, self._send)
        self._begun = False
        self._closed = False
        self._unread = b""
        """What has come before the domain stood still."""
        self._unsent = b""
        self._loop.watch(connection.fileno(), READ, self._on_readable)

    def begin(self) -> None:
        """Answer, from now on: the domain stands still."""
        self._begun = True
        unread, self._unread = self._unread, b""
        self._feed(unread)

    def stopped(self, reason: Stop, thread: int, gva: int) -> None:
        """Pass on that the domain stands still."""
        self._session.stopped(reason, thread, gva)
        if not self._begun:
            self.begin()

    def ended(self, code: int) -> None:
        """Pass on that the domain has ended, and hang up."""
        self._session.ended(code)
        self.close(released=False)

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(released=False)
        elif self._begun:
            self._feed(data)
        else:
            self._unread += data
            if len(self._unread) > _MAX_UNREAD:
                self.close(released=False)

    def _feed(self, data: bytes) -> None:
        try:
            self._session.feed(data)
        except Gone:
            self.close(released=True)
        except Oversized:
            self.close(released=False)

    def _send(self, data: bytes) -> None:
        self._unsent += data
        self._flush()

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            if len(self._unsent) > _MAX_UNSENT:  # it asks and does not listen
                self._loop.call_soon(lambda: self.close(released=False))
        except OSError:
            self._loop.call_soon(lambda: self.close(released=False))
            self._unsent = b""
        self._loop.watch(self._socket.fileno(), WRITE, self._flush if self._unsent else None)

    def close(self, *, released: bool) -> None:
        """Hang up; the domain goes on, if it has not been `released` already."""
        if self._closed:
            return
        self._closed = True
        for event in (READ, WRITE):
            self._loop.watch(self._socket.fileno(), event, None)
        self._socket.close()
        self._server.forget(self, released=released)
