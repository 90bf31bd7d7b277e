"""How much of what happened when, in bounded space however long it goes on."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

_FIRST_WIDTH_NS: Final = 1_000_000
_MAX_BINS: Final = 4096


class Density:
    """Counts by lane, group and time. Bins double their width whenever time outgrows so many of them."""

    def __init__(self) -> None:
        self.width_ns = _FIRST_WIDTH_NS
        self.end_ns = 0
        self._bins: dict[tuple[str, str], defaultdict[int, int]] = {}

    def add(self, lane: str, group: str, time_ns: int) -> None:
        """Count one thing; groups are few, for the caller sees to that."""
        self.end_ns = max(self.end_ns, time_ns)
        while time_ns >= self.width_ns * _MAX_BINS:
            self._double()
        bins = self._bins.get((lane, group))
        if bins is None:
            bins = self._bins[lane, group] = defaultdict(int)
        bins[time_ns // self.width_ns] += 1

    def _double(self) -> None:
        self.width_ns *= 2
        for key, bins in self._bins.items():
            merged: defaultdict[int, int] = defaultdict(int)
            for index, count in bins.items():
                merged[index // 2] += count
            self._bins[key] = merged

    @property
    def lanes(self) -> list[str]:
        """Return the lanes by name."""
        return sorted({lane for lane, _ in self._bins})

    def groups(self, lane: str | None = None) -> dict[str, int]:
        """Return the groups of a lane, or of all, with their totals, the largest first."""
        totals: defaultdict[str, int] = defaultdict(int)
        for (of, group), bins in self._bins.items():
            if lane in (None, of):
                totals[group] += sum(bins.values())
        return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))

    def columns(self, lane: str, count: int, end_ns: int) -> list[dict[str, int]]:
        """Return what a lane holds in `count` columns of equal time from 0 to `end_ns`: group -> number."""
        columns: list[dict[str, int]] = [{} for _ in range(count)]
        for (of, group), bins in self._bins.items():
            if of != lane:
                continue
            for index, number in bins.items():
                column = columns[min(count - 1, index * self.width_ns * count // max(1, end_ns))]
                column[group] = column.get(group, 0) + number
        return columns
