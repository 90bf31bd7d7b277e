"""The side of the command: finding a domain and asking its process for something."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from xenpy.errors import XenpyError
from xenpy.toolstack.protocol import CommandError, decode, encode, socket_address
from xenpy.toolstack.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenpy.toolstack.registry import Record

ANSWER_S: Final = 30.0
"""How long a command waits for an answer that should come at once: the process may have much to do, or be stopped."""
LOOK_S: Final = 3.0
"""How long a command that asks every domain waits for one that does not answer."""
_ERROR_INVAL: Final = -6
"""Ref: libxl, enum libxl_error"""
_CHUNK: Final = 64 << 10
_RETRY_S: Final = 0.01


class Connection:
    """A connection to a domain's process. Raises CommandError if there is no process any more."""

    def __init__(self, registry: Registry, record: Record) -> None:
        self.record = record
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._rest = b""
        try:
            with socket_address(registry.domains / str(record.domid)) as address:
                self._connect(address)
        except OSError:
            self.socket.close()
            raise CommandError(f"Domain {record.domid} does not exist.") from None
        except CommandError:
            self.socket.close()
            raise

    def _connect(self, address: str) -> None:
        """Connect, waiting for a place in the queue. Raises OSError, CommandError. Ref: unix(7), EAGAIN"""
        deadline = time.monotonic() + ANSWER_S
        self.socket.settimeout(ANSWER_S)
        while True:
            try:
                self.socket.connect(address)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise self._silent() from None
                time.sleep(_RETRY_S)
            else:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, command: str, **arguments: Any) -> None:
        """Send a request. Raises CommandError."""
        try:
            self.socket.sendall(encode({"command": command, **arguments}))
        except OSError:
            raise self._gone() from None

    def answer(self, timeout_s: float | None = ANSWER_S) -> Any:
        """Return the result of the request sent; `timeout_s` None waits for ever. Raises CommandError."""
        message = decode(self._line(timeout_s))
        if "error" in message:
            raise CommandError(str(message["error"]), int(message.get("code", XenpyError.exit_code)))
        return message.get("result")

    def call(self, command: str, **arguments: Any) -> Any:
        """Send a request and return its result. Raises CommandError."""
        self.send(command, **arguments)
        return self.answer()

    def take_rest(self) -> bytes:
        """Return what came behind the last answer; from here on the socket is the caller's to read."""
        rest, self._rest = self._rest, b""
        self.socket.settimeout(None)
        return rest

    def wait_closed(self, timeout_s: float | None = ANSWER_S) -> bool:
        """Wait until the other side closes the connection, which it does last of all; tell whether it did."""
        self.socket.settimeout(timeout_s)
        try:
            while self.socket.recv(_CHUNK):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True

    def _line(self, timeout_s: float | None) -> bytes:
        self.socket.settimeout(timeout_s)
        pieces = [self._rest]
        try:
            while b"\n" not in pieces[-1]:
                pieces.append(self.socket.recv(_CHUNK))
                if not pieces[-1]:
                    raise self._gone()
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            raise self._gone() from None
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line

    def _silent(self) -> CommandError:
        return CommandError(f"Domain {self.record.domid}: its process (pid {self.record.pid}) does not answer")

    def _gone(self) -> CommandError:
        return CommandError(f"Domain {self.record.domid}: its process ended before it answered")


def find(registry: Registry, identifier: str) -> Record:
    """Return the domain that a domid or a name means; of several of a name the first. Raises CommandError in xl's words."""
    records = registry.records()
    number = int(identifier) if identifier.isascii() and identifier.isdigit() else None
    for record in records:
        if number == record.domid or (number is None and record.name == identifier):
            return record
    raise CommandError(f"{identifier} is an invalid domain identifier (rc={_ERROR_INVAL})")


def connect(identifier: str) -> Connection:
    """Return a connection to the process of the domain that a domid or a name means. Raises CommandError, HostError."""
    registry = Registry()
    return Connection(registry, find(registry, identifier))


def call(identifier: str, command: str, **arguments: Any) -> Any:
    """Ask one domain for something and return the result. Raises CommandError, HostError."""
    with connect(identifier) as connection:
        return connection.call(command, **arguments)


def ask_all(
    registry: Registry, records: Sequence[Record], command: str, **arguments: Any
) -> Iterator[tuple[Record, Any]]:
    """Ask domains for the same thing at the same time; yield what each says, None for those that say nothing."""
    connections: dict[Record, Connection] = {}
    try:
        for record in records:
            with suppress(CommandError):
                connection = connections[record] = Connection(registry, record)
                connection.send(command, **arguments)
        for record in records:
            result = None
            if record in connections:
                with suppress(CommandError):
                    result = connections[record].answer(LOOK_S)
            if result is not None or registry.is_alive(record.domid):
                yield record, result
    finally:
        for connection in connections.values():
            connection.socket.close()
