"""The guest's pages that requests name, mapped for as long as they are needed; with persistent grants, for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.abi.blkif import SECTOR_SHIFT, SEGMENT, SEGMENTS_PER_INDIRECT_PAGE
from xenpy.devices.vbd.requests import SECTORS_PER_PAGE, parse_segments
from xenpy.errors import FrontendError
from xenpy.pv.gnttab import GrantError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.vbd.requests import Request, Segment
    from xenpy.devices.xenbus import Services
    from xenpy.pv.gnttab import GrantMapping


class GrantedPages:
    """Pages of one guest's, used by one queue; everything here is called under the host's lock.

    `persistent` is how many mappings are kept for requests to come; a frontend that wants this grants them writable whatever they are for.
    """

    def __init__(self, services: Services, domid: int, *, persistent: int = 0) -> None:
        self._services = services
        self._domid = domid
        self._limit = persistent
        self._kept: dict[int, GrantMapping] = {}
        self._passing: list[GrantMapping] = []

    def segments_of(self, request: Request) -> tuple[Segment, ...]:
        """Return a request's segments; an indirect one's are copied from the pages that hold them. Raises FrontendError."""
        if not request.indirect:
            return request.segments
        count, data = request.nr_segments, bytearray()
        for gref in request.indirect:
            size = min(count, SEGMENTS_PER_INDIRECT_PAGE) * SEGMENT.size
            data += self.page(gref, writable=False)[:size]
            count -= SEGMENTS_PER_INDIRECT_PAGE
        return parse_segments(bytes(data))

    def views(self, segments: Sequence[Segment], *, writable: bool) -> list[memoryview]:
        """Return live views of what the segments cover; `writable` is for reads from the disk. Raises FrontendError."""
        views = []
        for gref, first, last in segments:
            page = self.page(gref, writable=writable)
            if last - first == SECTORS_PER_PAGE - 1:
                views.append(page)
            else:
                views.append(page[first << SECTOR_SHIFT : last + 1 << SECTOR_SHIFT])
        return views

    def page(self, gref: int, *, writable: bool) -> memoryview:
        """Return a live view of a granted page. Raises FrontendError."""
        mapping = self._kept.get(gref)
        if mapping is None:
            keep = len(self._kept) < self._limit
            try:
                mapping = self._services.map_page(self._domid, gref, readonly=not (writable or self._limit))
            except GrantError as error:
                raise FrontendError(f"grant {gref}: {error}") from None
            if keep:
                self._kept[gref] = mapping
            else:
                self._passing.append(mapping)
        return mapping.view

    def release(self) -> None:
        """Give back what is not kept; views of it must not be used any more."""
        for mapping in self._passing:
            mapping.close()
        self._passing.clear()

    def close(self) -> None:
        """Give back everything."""
        self.release()
        for mapping in self._kept.values():
            mapping.close()
        self._kept.clear()
