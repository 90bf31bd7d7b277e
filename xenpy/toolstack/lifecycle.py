"""Ending domains from outside: asking their kernels, waiting, and taking them away.

Ref: xl(1), shutdown, destroy
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenpy.toolstack.client import Connection, find
from xenpy.toolstack.protocol import CommandError
from xenpy.toolstack.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.toolstack.registry import Record

_GRACE_S: Final = 10.0
"""How long a domain's process has to end its guest before it is killed."""


def chosen(registry: Registry, identifiers: Sequence[str], *, every: bool) -> list[Record]:
    """Return the domains that are meant: those named, or every one. Raises CommandError."""
    return registry.records() if every else [find(registry, identifier) for identifier in identifiers]


def request(identifiers: Sequence[str], how: str, *, every: bool, wait: bool, say: Callable[[str], None]) -> None:
    """Ask domains to shut down (`how` is poweroff or reboot), and wait until they have if `wait`; `say` takes what xl says.

    Raises CommandError.
    """
    registry = Registry()
    records = chosen(registry, identifiers, every=every)
    waiting: list[Connection] = []
    try:
        for record in records if wait else ():
            watcher = Connection(registry, record)
            waiting.append(watcher)
            watcher.send("wait")
        for record in records:
            say(f"{'Rebooting' if how == 'reboot' else 'Shutting down'} domain {record.domid}")
            with Connection(registry, record) as connection:
                connection.call("shutdown", how=how)
        if wait:
            say(f"Waiting for {len(records)} domain{'s' if len(records) != 1 else ''}")
            for watcher in waiting:
                say(_death(watcher))
    finally:
        for watcher in waiting:
            watcher.socket.close()


def _death(watcher: Connection) -> str:
    """Wait for a domain's end, and that of its process if it goes too; return what xl says of it."""
    domid = watcher.record.domid
    try:
        ending = watcher.answer(None)
    except CommandError:
        return f"Domain {domid} has been destroyed."  # its process was killed
    if ending["last"]:
        watcher.wait_closed(None)
    if ending["code"] is None:
        return f"Domain {domid} has been destroyed. ({ending['text']})"
    return f"Domain {domid} has been shut down, reason code {ending['code']}"


def destroy(identifier: str) -> None:
    """End a domain at once; nothing is left of it then, even if its process does not listen any more. Raises CommandError."""
    registry = Registry()
    record = find(registry, identifier)
    with suppress(CommandError), Connection(registry, record) as connection:
        connection.send("destroy")
        connection.answer(_GRACE_S)
        if connection.wait_closed(_GRACE_S):
            return
    _kill(registry, record)
    registry.records()


def _kill(registry: Registry, record: Record) -> None:
    try:
        process = os.pidfd_open(record.pid)
    except OSError:
        return  # it is gone
    try:
        if registry.is_alive(record.domid):  # and so the pid is still its own
            signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [])
    finally:
        os.close(process)


def check_overcommitment(count: int) -> None:
    """Refuse more vCPUs than the host has processors, in xl's words. Raises CommandError."""
    processors = os.sysconf("SC_NPROCESSORS_ONLN")
    if count > processors:
        raise CommandError(
            f"You are overcommmitting! You have {processors} physical CPUs and want {count} vCPUs! "
            "Aborting, use --ignore-host to continue"
        )


def parse_kib(text: str) -> int:
    """Return a size in KiB: a number of MiB, or one with a suffix. Raises CommandError. Ref: xl(1), mem-set"""
    number, suffix = (text[:-1], text[-1:].lower()) if text[-1:].isalpha() else (text, "m")
    if suffix not in _SUFFIXES or not number.isascii() or not number.isdigit() or len(number) > _MAX_DIGITS:
        raise CommandError(f"invalid memory size: {text}")
    return (int(number) << _SUFFIXES[suffix]) >> 10


_SUFFIXES: Final = {"b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_MAX_DIGITS: Final = 18
