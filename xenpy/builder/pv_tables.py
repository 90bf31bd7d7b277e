"""A PV guest's first page tables, and other long runs of ascending frame numbers.

Ref: AMD64 Architecture Programmer's Manual, volume 2, chapter 5
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.entries import ENTRIES, ROOT_LEVEL, adjust_l1
from xenpy.pv.paging import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW, PTE_USER

if TYPE_CHECKING:
    from collections.abc import Iterator

_INDEX_BITS: Final = 9
_LEVELS: Final = range(ROOT_LEVEL, 0, -1)
_SPACE: Final = (1 << 48) - 1  # the bits of an address that select entries

_UPPER_FLAGS: Final = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY
_LOW_BITS: Final = 16
_LOW_VALUES: Final = 1 << _LOW_BITS


class Pages(NamedTuple):
    """A run of pseudo-physical pages."""

    pfn: int
    length: int

    @property
    def end(self) -> int:
        """Return the pfn behind the last."""
        return self.pfn + self.length


class TableKey(NamedTuple):
    """A table by its level, 4 at the top, and its place among those of its level by ascending address."""

    level: int
    number: int

    @property
    def parent(self) -> TableKey:
        """Return the table that points to this one."""
        return TableKey(self.level + 1, self.number >> _INDEX_BITS)


READ_ONLY: Final = adjust_l1(PTE_PRESENT | PTE_ACCESSED)
"""Flags of a level-1 entry for a page table."""
WRITABLE: Final = adjust_l1(PTE_PRESENT | PTE_RW | PTE_ACCESSED)
"""Flags of a level-1 entry for any other page."""


class PageTables:
    """Four levels of tables, each in a pseudo-physical page (pfn) of its own."""

    def __init__(self) -> None:
        self._pfns: dict[TableKey, int] = {}

    def missing(self, start: int, end: int) -> list[TableKey]:
        """Return which tables are still to be placed to map [start, end): by level from the top, then by address."""
        return [key for key in _covering(start, end) if key not in self._pfns]

    def place(self, keys: list[TableKey], pfn: int) -> None:
        """Put tables into consecutive pages."""
        self._pfns.update(zip(keys, range(pfn, pfn + len(keys)), strict=True))

    def levels(self, base_mfn: int) -> dict[int, int]:
        """Return the level of each table's mfn, when pfn 0 is at `base_mfn`."""
        return {base_mfn + pfn: key.level for key, pfn in self._pfns.items()}

    def link(self, words: memoryview, base_mfn: int) -> None:
        """Write the entries that point to tables; `words` is all guest-physical space as 64-bit words."""
        for key, pfn in self._pfns.items():
            parent = self._pfns.get(key.parent)
            if parent is not None:
                entry = (base_mfn + pfn) << PAGE_SHIFT | _UPPER_FLAGS
                words[(base_mfn + parent) * ENTRIES + key.number % ENTRIES] = entry

    def map(self, words: memoryview, base_mfn: int, va: int, pages: Pages, flags: int) -> None:
        """Write the entries that map pages at `va`, for which the tables must be placed."""
        page = (va & _SPACE) >> PAGE_SHIFT
        end = page + pages.length
        entry = (base_mfn + pages.pfn) << PAGE_SHIFT | flags
        while page < end:
            number, index = divmod(page, ENTRIES)
            run = min(ENTRIES - index, end - page)
            at = (base_mfn + self._pfns[TableKey(1, number)]) * ENTRIES + index
            after = entry + run * PAGE_SIZE
            words[at : at + run] = memoryview(array("Q", range(entry, after, PAGE_SIZE)))
            page, entry = page + run, after


def _covering(start: int, end: int) -> Iterator[TableKey]:
    for level in _LEVELS:
        shift = PAGE_SHIFT + _INDEX_BITS * level
        for number in range((start & _SPACE) >> shift, ((end - 1 & _SPACE) >> shift) + 1):
            yield TableKey(level, number)


@cache
def _low_values() -> memoryview:
    return memoryview(array("Q", range(_LOW_VALUES)))


def fill_ascending(words: memoryview, first: int) -> None:
    """Fill a view of 64-bit words with first, first + 1, ...

    Runs that differ in their low 16 bits alone are copied from a template, which is several times faster than making every number:
    a guest of 4 GiB has a million pages.
    """
    template = _low_values()
    quarters = words.cast("B").cast("H")
    done = 0
    while done < len(words):
        high, low = divmod(first + done, _LOW_VALUES)
        run = min(_LOW_VALUES - low, len(words) - done)
        words[done : done + run] = template[low : low + run]
        for quarter in range(1, 4):
            part = high >> _LOW_BITS * (quarter - 1) & _LOW_VALUES - 1
            if part:
                quarters[4 * done + quarter : 4 * (done + run) : 4] = memoryview(array("H", [part]) * run)
        done += run
