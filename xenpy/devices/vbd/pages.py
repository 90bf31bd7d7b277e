"""The guest's pages that requests name, mapped for as long as they are needed; with persistent grants, for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.abi.blkif import SECTOR_SHIFT, SEGMENT, SEGMENTS_PER_INDIRECT_PAGE
from xenpy.devices.vbd.requests import SECTORS_PER_PAGE, parse_segments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xenpy.devices.grants import Grants, Page
    from xenpy.devices.vbd.requests import Request, Segment


class GrantedPages:
    """Pages of one guest's, used by one queue; everything here is called under `lock`.

    `persistent` is how many mappings are kept for requests to come; a frontend that wants this grants them writable whatever they are for.
    """

    def __init__(self, grants: Grants, *, persistent: int = 0) -> None:
        self.lock = grants.lock
        self._grants = grants
        self._limit = persistent
        self._kept: dict[int, Page] = {}
        self._passing: list[Page] = []

    def segments_of(self, request: Request) -> tuple[Segment, ...]:
        """Return a request's segments; an indirect one's are copied from the pages that hold them. Raises FrontendError."""
        if not request.indirect:
            return request.segments
        pages = self._pages(request.indirect, writable=False)
        count, data = request.nr_segments, bytearray()
        for gref in request.indirect:
            size = min(count, SEGMENTS_PER_INDIRECT_PAGE) * SEGMENT.size
            data += pages[gref].view[:size]
            count -= SEGMENTS_PER_INDIRECT_PAGE
        return parse_segments(bytes(data))

    def views(self, segments: Sequence[Segment], *, writable: bool) -> list[memoryview]:
        """Return live views of what the segments cover; `writable` is for reads from the disk. Raises FrontendError."""
        pages = self._pages([segment.gref for segment in segments], writable=writable)
        views = []
        for gref, first, last in segments:
            page = pages[gref].view
            if last - first == SECTORS_PER_PAGE - 1:
                views.append(page)
            else:
                views.append(page[first << SECTOR_SHIFT : last + 1 << SECTOR_SHIFT])
        return views

    def _pages(self, grefs: Sequence[int], *, writable: bool) -> Mapping[int, Page]:
        """Have pages mapped, those that are not all at once. Raises FrontendError."""
        kept = self._kept
        missing = [gref for gref in dict.fromkeys(grefs) if gref not in kept]
        if not missing:
            return kept
        mapped = self._grants.map(missing, readonly=not (writable or self._limit))
        room = self._limit - len(kept)
        kept.update((page.gref, page) for page in mapped[:room])
        passing = mapped[room:]
        self._passing += passing
        return kept | {page.gref: page for page in passing} if passing else kept

    def release(self) -> None:
        """Give back what is not kept; views of it must not be used any more."""
        if self._passing:
            self._grants.unmap(self._passing)
            self._passing = []

    def close(self) -> None:
        """Give back everything."""
        self.release()
        self._grants.unmap(list(self._kept.values()))
        self._kept = {}
