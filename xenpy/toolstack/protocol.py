"""What a command and a domain's process say to each other: JSON, one object a line, the answer after the request.

A request is {"command": NAME, argument: value, ...}; the answer {"result": value} or {"error": text, "code": exit code}. After
the answer to `console` the connection carries the console's bytes, both ways, and nothing else; after that to `trace` the lines of
xenpy.testing.trace.wire, until the command shuts its side down.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from xenpy.errors import XenpyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_REQUEST: Final = 64 << 10
"""Bytes of a request."""
SOCKET: Final = "socket"
"""The name of the socket in a domain's directory."""


class CommandError(XenpyError):
    """A domain's process could not do what it was asked; `exit_code` is its word for it."""

    def __init__(self, message: str, code: int = XenpyError.exit_code) -> None:
        super().__init__(message)
        self.exit_code = code


def encode(message: dict[str, Any]) -> bytes:
    """Return a message as it goes over the socket."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message in a line. Raises CommandError for anything else."""
    try:
        message: Any = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise CommandError("the other side of the control socket does not speak this protocol")
    return message


@contextmanager
def socket_address(directory: Path) -> Iterator[str]:
    """Provide an address of the socket in a directory that is short enough, however long the directory's path.

    Ref: unix(7), sun_path has 108 bytes
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def listen(directory: Path) -> socket.socket:
    """Return a socket that listens in a domain's directory; it does not block. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket_address(directory) as address:
            listener.bind(address)
        listener.listen()
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
