"""Keeping the last records, for tests."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from xenpy.testing.trace.filters import Filter
from xenpy.testing.trace.text import line
from xenpy.testing.trace.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.api.guest import Guest
    from xenpy.testing.trace.record import Record

DEFAULT_LIMIT: Final = 10_000


class Recorder:
    """A sink that keeps the last `limit` records."""

    arguments = True

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        self.records: deque[Record] = deque(maxlen=limit)

    def take(self, record: Record) -> None:
        """Keep a record."""
        self.records.append(record)

    def close(self) -> None:
        """Do nothing: what was kept stays."""

    def named(self, name: str) -> list[Record]:
        """Return the records of a name, such as memory_op.populate_physmap, READ or virq; oldest first."""
        return [record for record in list(self.records) if record.name == name]

    @property
    def text(self) -> str:
        """Return the records as `xenpy strace` prints them."""
        return "".join(f"{line(record)}\n" for record in list(self.records))


@contextmanager
def trace(guest: Guest, *expressions: str, limit: int = DEFAULT_LIMIT) -> Iterator[Recorder]:
    """Trace a guest for as long as the `with` block lasts; `expressions` are those of `xenpy strace -e`. Raises ConfigError."""
    recorder = Recorder(limit)
    with Tracer(guest.host.core, guest.domain, [recorder], only=Filter(expressions)):
        yield recorder
