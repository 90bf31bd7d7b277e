"""What `xl dmesg` shows: the messages of all domains' processes, and what guests write to Xen's own console, in one bounded file.

Ref: xl(1), dmesg
"""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.loop import Loop
    from xenpy.toolstack.registry import Entry

_LIMIT: Final = 512 << 10
"""Bytes of the file; the older half goes when there are more."""
_FLUSH_S: Final = 0.1
_MAX_PENDING: Final = 64 << 10
"""Bytes that may wait to be written; what a guest says beyond is counted only, so that it cannot flood the disk."""
_MAX_LINE: Final = 1024
_FILE: Final = "dmesg"


class Messages:
    """The messages of one domain's process; from any thread."""

    def __init__(self, loop: Loop, entry: Entry) -> None:
        self._loop = loop
        self._entry = entry
        self._path = entry.root / _FILE
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._line = b""
        self._lost = 0
        self._due = False

    def add(self, text: str) -> None:
        """Add lines of ours."""
        for line in text.splitlines():
            with self._lock:
                self._put(b"(XEN) " + line.encode("utf-8", "backslashreplace"))

    def add_output(self, data: bytes) -> None:
        """Add output of the guest's, whose lines show whose they are."""
        prefix = b"(d%d) " % self._entry.record.domid
        with self._lock:
            *lines, rest = (self._line + data).split(b"\n")
            while len(rest) > _MAX_LINE:
                lines.append(rest[:_MAX_LINE])
                rest = rest[_MAX_LINE:]
            self._line = rest
            for line in lines:
                self._put(prefix + line.rstrip(b"\r"))

    def _put(self, line: bytes) -> None:
        if len(self._pending) + len(line) > _MAX_PENDING:
            self._lost += 1
            return
        self._pending += line + b"\n"
        if not self._due:
            self._due = True
            self._loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._loop.call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what waits. In the loop's thread."""
        with self._lock:
            self._due = False
            pending, self._pending = self._pending, bytearray()
            if self._lost:
                pending += b"(XEN) %d lines of domain %d are lost\n" % (self._lost, self._entry.record.domid)
                self._lost = 0
        if pending:
            with suppress(OSError):  # no room: messages are not worth a guest
                _append(self._path, bytes(pending))


def _append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        if size + len(data) > _LIMIT:
            newer = os.pread(fd, _LIMIT // 2, max(0, size - _LIMIT // 2))
            os.ftruncate(fd, 0)
            os.write(fd, newer[newer.find(b"\n") + 1 :])
        os.write(fd, data)
    finally:
        os.close(fd)


def read_messages(root: Path, *, clear: bool = False) -> bytes:
    """Return the messages, and forget them."""
    try:
        fd = os.open(root / _FILE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        data = os.pread(fd, 2 * _LIMIT, 0)
        if clear:
            os.ftruncate(fd, 0)
        return data
    finally:
        os.close(fd)
