"""The side of the command in `xenpy strace -p`: records of a guest that runs in another process."""

from __future__ import annotations

import json
import select
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from xenpy import log
from xenpy.signals import handled
from xenpy.testing.trace.wire import decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenpy.signals import Wake
    from xenpy.testing.trace.record import Sink
    from xenpy.toolstack.client import Connection

_CHUNK: Final = 256 << 10
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LAST_WORDS_S: Final = 30.0
"""How long to wait for the rest when the guest has been let go."""


def follow(identifier: str, sinks: Sequence[Sink], *, timeout_s: float | None = None, **wanted: Any) -> None:
    """Give sinks what the process of a domain tells, until the domain ends, a signal comes or time is up; then let the guest go.

    `wanted` are the arguments of `xenpy.toolstack.tracing.Tracing.begin`. Raises CommandError, ConfigError.
    """
    from xenpy.toolstack.client import connect

    with connect(identifier) as connection:
        connection.call("trace", **wanted)
        live = list(sinks)
        with handled(_SIGNALS, lambda *_: _let_go(connection)) as wake:
            for line in _lines(connection, wake, timeout_s):
                _take(line, live, identifier)


def _let_go(connection: Connection) -> None:
    """Have the other side trace no more; what it still has to tell comes before the end."""
    with suppress(OSError):
        connection.socket.shutdown(socket.SHUT_WR)


def _lines(connection: Connection, wake: Wake, timeout_s: float | None) -> Iterator[bytes]:
    rest = connection.take_rest()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    let_go = False
    while True:
        *lines, rest = rest.split(b"\n")
        yield from lines
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([connection.socket.fileno(), wake.fileno()], [], [], left)
        if wake.fileno() in ready:
            wake.drained()
        if not ready:
            if let_go:
                return
            let_go = True
            _let_go(connection)
            deadline = time.monotonic() + _LAST_WORDS_S
        if connection.socket.fileno() not in ready:
            continue
        try:
            data = connection.socket.recv(_CHUNK)
        except OSError:
            return
        if not data:
            return
        rest += data


def _take(line: bytes, sinks: list[Sink], identifier: str) -> None:
    message = json.loads(line)
    if isinstance(message, dict):
        if "lost" in message:
            log.note(f"{message['lost']} records were lost: they came faster than they were read")
        if "ended" in message:
            log.note(f"{identifier}: {message['ended']}")
        return
    record = decode(message)
    for sink in list(sinks):
        try:
            sink.take(record)
        except OSError as error:
            sinks.remove(sink)
            with suppress(OSError):  # stderr may be what cannot be written
                log.note(f"the trace ends here: {error.strerror or error}")
