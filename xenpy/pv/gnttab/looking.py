"""Looking a grant up without marking it as in use: for a backend, where nothing bad comes of a guest that takes it back meanwhile.

Such a guest breaks the protocol, and has the backend deal with other bytes of its own. So this is for whoever may see all of its RAM, and,
as nothing here keeps page tables of a PV guest's from being written to, for reading only unless there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi.grant_table import (
    GRANT_ENTRY_SIZE_V1,
    GTF_permit_access,
    GTF_readonly,
    GTF_sub_page,
    GTF_type_mask,
)
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

_PER_PAGE: Final = PAGE_SIZE // GRANT_ENTRY_SIZE_V1
_DOMID_SHIFT, _GFN_SHIFT = 16, 32
_READABLE: Final = 0xFFFF << _DOMID_SHIFT | GTF_type_mask | GTF_sub_page
"""What must be as in an entry that lets domain 0 read a whole page; the domid is behind the flags."""
_WRITABLE: Final = _READABLE | GTF_readonly


class Outline(NamedTuple):
    """Where a table of version 1 and the largest run of RAM are: offsets of the pages of entries in their file, gpa, size and memfd offset.

    It stays true while a grant is in use, but for pages of entries that are added.
    """

    pages: Sequence[int]
    start: int
    size: int
    offset: int
    writable: bool
    """Whether pages may be looked up in order to write to them."""


class Looking:
    """Looks up grants to domain 0 in a table; `words` is the file that has the pages of entries, each a 64-bit word."""

    def __init__(self, words: memoryview, outline: Outline) -> None:
        self._words = words
        self._pages = [offset // GRANT_ENTRY_SIZE_V1 for offset in outline.pages]
        self._first = outline.start >> PAGE_SHIFT
        self._end = (outline.start + outline.size) >> PAGE_SHIFT
        self._shift = outline.offset - outline.start
        self._can_write = outline.writable

    def offset(self, gfn: int) -> int:
        """Return where in the RAM's memfd a page is."""
        return (gfn << PAGE_SHIFT) + self._shift

    def offsets(self, grefs: Sequence[int], *, readonly: bool) -> list[int] | None:
        """Return where in the RAM's memfd pages are; None if one of them is not to be seen here, and the table must be asked."""
        gfns = self.gfns(grefs, readonly=readonly) if readonly or self._can_write else None
        if gfns is None:
            return None
        shift = self._shift
        return [(gfn << PAGE_SHIFT) + shift for gfn in gfns]

    def gfns(self, grefs: Sequence[int], *, readonly: bool) -> list[int] | None:
        """Return the gfns of pages; None if one of them is not to be seen here. Those to be written to must be guarded by the caller."""
        words, pages, first, end = self._words, self._pages, self._first, self._end
        mask = _READABLE if readonly else _WRITABLE
        found: list[int] = []
        for gref in grefs:
            page, entry = divmod(gref, _PER_PAGE)
            if page >= len(pages):
                return None
            word = words[pages[page] + entry]
            gfn = word >> _GFN_SHIFT
            if word & mask != GTF_permit_access or not first <= gfn < end:
                return None
            found.append(gfn)
        return found
