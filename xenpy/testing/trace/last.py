"""The last records of a guest, kept so cheaply that it can be always: for the reports of tests that fail."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from xenpy.testing.trace.text import line
from xenpy.testing.trace.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.api.guest import Guest
    from xenpy.testing.trace.record import Record


class LastRecords:
    """A sink that keeps the last `limit` records, and makes those of in-guest code only when they are looked at."""

    arguments = True

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: deque[Record | Callable[[], list[Record]]] = deque(maxlen=limit)

    def take(self, record: Record) -> None:
        """Keep a record."""
        self._kept.append(record)

    def defer(self, make: Callable[[], list[Record]]) -> None:
        """Keep what makes some records."""
        self._kept.append(make)

    def close(self) -> None:
        """Do nothing: what was kept stays."""

    @property
    def records(self) -> list[Record]:
        """Return the records, in the order in which they ended."""
        found: list[Record] = []
        for kept in list(self._kept):
            found += kept() if callable(kept) else [kept]
        found.sort(key=lambda record: record.time_ns + record.latency_ns)
        return found[-self._limit :]

    @property
    def text(self) -> str:
        """Return the records as `xenpy strace` prints them."""
        return "".join(f"{line(record)}\n" for record in self.records)


def keep_last(guest: Guest, limit: int) -> LastRecords:
    """Keep the last records of a guest for as long as it lives."""
    kept = LastRecords(limit)
    Tracer(guest.host.core, guest.domain, [kept]).attach()
    return kept
