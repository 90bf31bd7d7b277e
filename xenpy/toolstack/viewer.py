"""A console on this terminal, over a connection."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING, Any, Final

from xenpy.errors import ConfigError
from xenpy.log import note
from xenpy.terminal import ESCAPE

if TYPE_CHECKING:
    from xenpy.toolstack.client import Connection

_CHUNK: Final = 64 << 10
_MAX_INPUT: Final = 4 << 10
_CONTROL: Final = 0x40
"""What a letter and its control character differ in."""


def view(connection: Connection, *, escape: int = ESCAPE, stdin: int = 0, stdout: int = 1) -> None:
    """Join stdin and stdout to a console until it ends, with its domain's process, or the user types `escape` on a terminal.

    The connection must have been given to the console (`attach`). The terminal is restored whatever happens.
    """
    rest = connection.take_rest()
    saved: list[Any] | None = None
    if os.isatty(stdin):
        import termios
        import tty

        saved = termios.tcgetattr(stdin)
        tty.setraw(stdin, termios.TCSADRAIN)
    try:
        _write_all(stdout, rest)
        _pump(connection, escape if saved is not None else None, stdin, stdout)
    finally:
        if saved is not None:
            termios.tcsetattr(stdin, termios.TCSADRAIN, saved)


def escape_code(text: str) -> int:
    """Return the character that `-e` names: itself, or with a caret the control character. Raises ConfigError."""
    code = ord(text[1].upper()) ^ _CONTROL if len(text) == 2 and text[0] == "^" else ord(text) if len(text) == 1 else -1
    if not 0 <= code < 128:
        raise ConfigError(f"{text!r} is neither one ASCII character nor ^ and one")
    return code


def attach(connection: Connection) -> None:
    """Give a connection to the console of its domain, whose output since the first byte comes next. Raises CommandError."""
    lost = connection.call("console")
    if lost:
        note(f"the first {lost} bytes of the console are not kept any more")


def _pump(connection: Connection, escape: int | None, stdin: int, stdout: int) -> None:
    poll = select.poll()
    poll.register(connection.socket, select.POLLIN)
    poll.register(stdin, select.POLLIN)
    to_send = b""
    while True:
        for fd, event in poll.poll():
            if fd == stdin:
                data = b"" if event & select.POLLNVAL else os.read(stdin, _MAX_INPUT)
                end = data.find(escape) if escape is not None else -1
                left = end >= 0
                to_send = data[:end] if left else data
                poll.unregister(stdin)  # until this is sent, or for good: the end of input is not that of the console
                if to_send:
                    poll.modify(connection.socket, select.POLLIN | select.POLLOUT)
                if left:
                    connection.socket.sendall(to_send)
                    return
                continue
            if event & select.POLLOUT:
                try:
                    to_send = to_send[connection.socket.send(to_send, socket.MSG_DONTWAIT) :]
                except OSError:
                    to_send = b""  # nobody reads it any more, but there may be more to see
                if not to_send:
                    poll.modify(connection.socket, select.POLLIN)
                    poll.register(stdin, select.POLLIN)
            if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                try:
                    data = connection.socket.recv(_CHUNK)
                except ConnectionError:
                    return
                if not data:
                    return
                _write_all(stdout, data)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:  # somebody else has made the file so
            select.select([], [fd], [])
