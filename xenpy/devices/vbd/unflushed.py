"""Writes that a server has been given and may still forget, because no flush has come back since."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.devices.vbd.nbd import NbdBacking


class _Write:
    """A write; `done` when the server has answered it."""

    __slots__ = ("data", "done", "offset")

    def __init__(self, data: bytes, offset: int) -> None:
        self.data = data
        self.offset = offset
        self.done = False


class Unflushed:
    """The writes of one image, oldest first; any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writes: dict[int, _Write] = {}
        self._next = 0
        self.size = 0
        """Bytes that are kept."""

    @contextmanager
    def write(self, data: bytes, offset: int) -> Iterator[bytes]:
        """Keep a write while the body makes it and until it is flushed; one that fails is forgotten.

        It is kept from before it is made: a server may die after it has answered and before anybody here has heard the answer.
        """
        entry = _Write(data, offset)
        with self._lock:
            number = self._next
            self._next += 1
            self._writes[number] = entry
            self.size += len(data)
        try:
            yield data
        except BaseException:
            with self._lock:
                self._forget(number)
            raise
        entry.done = True

    @contextmanager
    def flush(self) -> Iterator[None]:
        """Forget, unless the body fails, what had been answered when it began."""
        with self._lock:
            covered = [number for number, entry in self._writes.items() if entry.done]
        yield
        with self._lock:
            for number in covered:
                self._forget(number)

    def _forget(self, number: int) -> None:
        entry = self._writes.pop(number, None)  # two flushes may cover the same
        if entry is not None:
            self.size -= len(entry.data)

    def replay(self, nbd: NbdBacking) -> None:
        """Make all writes again. Raises OSError."""
        with self._lock:
            writes = list(self._writes.values())
        for entry in writes:
            nbd.write([memoryview(entry.data)], entry.offset)
