"""The control socket of a domain's process, served by its loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from xenpy import log
from xenpy.errors import XenError, XenpyError
from xenpy.exitcodes import ExitCode
from xenpy.loop import READ, WRITE
from xenpy.toolstack.protocol import MAX_REQUEST, CommandError, decode, encode

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from xenpy.loop import Loop

_MAX_CONNECTIONS: Final = 256
_CHUNK: Final = 16 << 10


class Viewers(Protocol):
    """Who takes over the connections that want to see the console."""

    @property
    def lost(self) -> int:
        """Return how many bytes, from the first, are not kept any more."""

    def add_viewer(self, connection: socket.socket) -> None:
        """Send a connection all output that is kept and all to come, and take its input."""


class Later:
    """The result of a command that is answered when something happens: by `Server.announce`."""


LATER: Final = Later()


class _Connection:
    def __init__(self, server: Server, connection: socket.socket) -> None:
        self._server = server
        self.socket = connection
        self._received = bytearray()
        self._to_send = b""
        self.waits = False
        server.loop.watch(connection.fileno(), READ, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if not data or len(self._received) > MAX_REQUEST:
            self.close()
            return
        while b"\n" in self._received and self in self._server.connections:
            line, _, rest = bytes(self._received).partition(b"\n")
            self._received = bytearray(rest)
            self._carry_out(line)

    def _carry_out(self, line: bytes) -> None:
        try:
            request = decode(line)
            name = request.pop("command", None)
            if name == "console":
                self._become_viewer()
                return
            if name == "trace":
                self._become_tracer(request)
                return
            result = self._server.carry_out(name, request)
        except (XenpyError, XenError) as error:
            self.send({"error": str(error), "code": int(getattr(error, "exit_code", ExitCode.FAILURE))})
        except Exception as error:  # a bug of ours costs this command, not the domain
            log.note(f"control socket: {type(error).__name__}: {error}")
            self.send({"error": f"{type(error).__name__}: {error}", "code": int(ExitCode.FAILURE)})
        else:
            if isinstance(result, Later):
                self.waits = True
            else:
                self.send({"result": result})

    def _become_viewer(self) -> None:
        viewers = self._server.viewers
        self._give_away(viewers.lost)
        viewers.add_viewer(self.socket)

    def _become_tracer(self, request: dict[str, Any]) -> None:
        start = self._server.begin_trace(**request)
        self._give_away(None)
        start(self.socket)

    def _give_away(self, result: Any) -> None:
        """Answer, and leave the socket to somebody else."""
        self.socket.setblocking(True)
        self.socket.sendall(encode({"result": result}))  # a line always fits
        self.socket.setblocking(False)
        self._server.give_up(self)

    def send(self, message: dict[str, Any]) -> None:
        """Send an answer; the rest goes when there is room."""
        self.waits = False
        self._to_send += encode(message)
        self._flush()

    def _flush(self) -> None:
        waiting = bool(self._to_send)
        try:
            while self._to_send:
                self._to_send = self._to_send[self.socket.send(self._to_send) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if waiting:
            self._server.loop.watch(self.socket.fileno(), WRITE, self._flush if self._to_send else None)

    def close(self) -> None:
        """End the connection."""
        self._server.give_up(self)
        self.socket.close()


class Server:
    """Serves `listener`, which is others' to close: carries out `commands`, functions with keyword arguments, in the loop's thread.

    `begin_trace` takes the arguments of `trace` and returns what takes its connection over.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        commands: Mapping[str, Callable[..., Any]],
        viewers: Viewers,
        begin_trace: Callable[..., Callable[[socket.socket], None]],
    ) -> None:
        self.loop = loop
        self.viewers = viewers
        self.begin_trace = begin_trace
        self.connections: list[_Connection] = []
        self._commands = commands
        self._listener = listener
        loop.watch(listener.fileno(), READ, self._on_connection)

    def _on_connection(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self.connections) >= _MAX_CONNECTIONS:
            connection.close()
            return
        self.connections.append(_Connection(self, connection))

    def carry_out(self, name: object, arguments: dict[str, Any]) -> Any:
        """Carry out a command and return its result. Raises XenpyError, XenError."""
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            raise CommandError(f"there is no command {name!r}")
        return command(**arguments)

    def announce(self, result: Any) -> None:
        """Answer all commands that wait for what has happened."""
        for connection in list(self.connections):
            if connection.waits:
                connection.send({"result": result})

    def give_up(self, connection: _Connection) -> None:
        """Forget a connection, which somebody else uses or closes."""
        if connection in self.connections:
            self.connections.remove(connection)
            for event in (READ, WRITE):
                self.loop.watch(connection.socket.fileno(), event, None)

    def stop(self) -> None:
        """Listen and read no more; while the loop is still there."""
        self.loop.watch(self._listener.fileno(), READ, None)
        for connection in self.connections:
            for event in (READ, WRITE):
                self.loop.watch(connection.socket.fileno(), event, None)

    def close(self) -> None:
        """Close the connections: those who wait for the end of this process see it."""
        for connection in self.connections:
            connection.socket.close()
        self.connections.clear()
