"""The side of a domain's process in `xenpy strace -p`: records go out over a connection, until that ends or the domain does."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenpy.loop import READ, WRITE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from xenpy.host import Guest
    from xenpy.loop import Loop
    from xenpy.testing.trace.record import Record
    from xenpy.testing.trace.session import Session

_MAX_WAITING: Final = 16 << 20
"""Bytes that wait for who traces; what comes beyond is lost, and counted: the guest does not wait."""
_PATIENCE_S: Final = 10.0
"""How long the process of a domain that has ended waits for who traces it and takes nothing."""
_CHUNK: Final = 4 << 10


class _Stream:
    """A sink that sends records over a connection."""

    def __init__(self, loop: Loop, *, arguments: bool) -> None:
        from xenpy.testing.trace.wire import encode

        self.arguments = arguments
        self._encode = encode
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._lost = 0
        self._due = False
        self._watched = False
        self._connection: socket.socket | None = None

    def start(self, connection: socket.socket) -> None:
        """Send over a connection. In the loop's thread."""
        self._connection = connection
        self._send()

    def take(self, record: Record) -> None:
        """Have a record be sent."""
        self.say(self._encode(record))

    def say(self, line: bytes) -> None:
        """Have a line be sent, unless too much waits."""
        with self._lock:
            if len(self._waiting) + len(line) > _MAX_WAITING:
                self._lost += 1
                return
            if self._lost:
                self._waiting += json.dumps({"lost": self._lost}).encode() + b"\n"
                self._lost = 0
            self._waiting += line
            if self._due:
                return
            self._due = True
        self._loop.call_soon(self._send)

    def wait(self) -> None:
        """Send nothing more before `finish`: there may be no loop."""
        with self._lock:
            self._due = True

    def close(self) -> None:
        """Do nothing: the connection goes on until it has sent all."""

    def _send(self) -> None:
        """Send what the connection takes. In the loop's thread."""
        with self._lock:
            self._due = False
            connection = self._connection
            if connection is None:
                return
            try:
                while self._waiting:
                    del self._waiting[: connection.send(self._waiting[: _CHUNK * 16])]
            except BlockingIOError:
                pass
            except OSError:
                self._waiting.clear()
            full = bool(self._waiting)
        if full != self._watched:
            self._watched = full
            self._loop.watch(connection.fileno(), WRITE, self._send if full else None)

    def finish(self) -> None:
        """Send the rest, waiting for it, and close the connection; when the loop has ended or in its thread."""
        with self._lock:
            connection, self._connection = self._connection, None
            rest = bytes(self._waiting)
        if connection is None:
            return
        with suppress(OSError):
            connection.settimeout(_PATIENCE_S)
            connection.sendall(rest)
        connection.close()


class Tracing:
    """Those who trace a domain that runs: an observer for its Runner. All in the loop's thread."""

    def __init__(self, loop: Loop, guest: Callable[[], Guest]) -> None:
        self._loop = loop
        self._guest = guest
        self._traces: list[_Trace] = []

    def begin(
        self,
        *,
        expressions: Sequence[str] = (),
        always: Sequence[str] = (),
        faults: Sequence[str] = (),
        seed: int = 0,
        in_guest: str = "record",
        arguments: bool = True,
    ) -> Callable[[socket.socket], None]:
        """Return what takes the connection over. Raises ConfigError for what cannot be traced."""
        from xenpy.testing.faults.rules import parse
        from xenpy.testing.trace.filters import Filter
        from xenpy.testing.trace.record import Kind
        from xenpy.testing.trace.session import InGuestCalls, Session

        stream = _Stream(self._loop, arguments=arguments)
        only = Filter(expressions, always=[Kind(kind) for kind in always])
        session = Session([stream], only, parse(faults, seed), InGuestCalls(in_guest))

        def start(connection: socket.socket) -> None:
            trace = _Trace(connection, stream, session)
            self._traces.append(trace)
            self._loop.watch(connection.fileno(), READ, lambda: self._on_word(trace))
            session.created(self._guest())
            stream.start(connection)

        return start

    def _on_word(self, trace: _Trace) -> None:
        """Let go of the guest when who traces it says so, by saying no more."""
        try:
            if trace.connection.recv(_CHUNK):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._traces.remove(trace)
        self._loop.watch(trace.connection.fileno(), READ, None)
        self._loop.watch(trace.connection.fileno(), WRITE, None)
        trace.session.close()
        trace.stream.finish()

    def created(self, guest: Guest) -> None:
        """Go on with a guest that has been started anew."""
        for trace in self._traces:
            trace.session.created(guest)

    def output(self, data: bytes) -> None:
        """Take note of what the guest wrote to its console."""
        for trace in self._traces:
            trace.session.output(data)

    def finish(self, ending: str) -> None:
        """Tell all that the domain has ended, with what is left; when the loop has ended."""
        for trace in self._traces:
            trace.stream.wait()
            trace.session.close()
            trace.stream.say(json.dumps({"ended": ending}).encode() + b"\n")
            trace.stream.finish()
        self._traces.clear()


class _Trace:
    """One who traces."""

    def __init__(self, connection: socket.socket, stream: _Stream, session: Session) -> None:
        self.connection = connection
        self.stream = stream
        self.session = session
