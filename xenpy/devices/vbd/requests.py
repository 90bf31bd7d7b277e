"""Block requests, taken off a ring, checked and answered: the protocol without I/O.

Ref: xen/include/public/io/blkif.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi.blkif import (
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP,
    SECTOR_SHIFT,
    SEGMENT,
    SEGMENTS_PER_INDIRECT_PAGE,
)
from xenpy.devices.journaled import JournaledRing
from xenpy.devices.ring import BackRing
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.abi.blkif import BLKIF_RSP, BlkifLayout
    from xenpy.devices.journal import Journal

MAX_INDIRECT_SEGMENTS: Final = 256
"""A megabyte a request; more would be up to BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST * SEGMENTS_PER_INDIRECT_PAGE."""
SECTORS_PER_PAGE: Final = PAGE_SIZE >> SECTOR_SHIFT

_DIRECT: Final = {int(op): op for op in (BLKIF_OP.READ, BLKIF_OP.WRITE, BLKIF_OP.WRITE_BARRIER)}
"""By number: to look one up costs a fraction of what the enumeration itself takes."""


class Segment(NamedTuple):
    """Part of a granted page: sectors `first` to `last`, both included."""

    gref: int
    first: int
    last: int

    @property
    def sectors(self) -> int:
        """Return how many sectors it covers."""
        return self.last - self.first + 1


class Request(NamedTuple):
    """A request as checked; `operation` is the number that the response repeats, `op` what is to be done, None if unknown to us.

    `segments` are those of the request itself; those of an indirect one are in the pages of `indirect`, `nr_segments` of them.
    `nr_sectors` is for a discard.
    """

    id: int
    operation: int
    op: BLKIF_OP | None
    sector: int = 0
    segments: tuple[Segment, ...] = ()
    indirect: tuple[int, ...] = ()
    nr_segments: int = 0
    nr_sectors: int = 0


class BlockRing:
    """A ring of block requests; `pages` are live views of its granted pages. One thread uses it at a time.

    With a `journal`, it goes on where another that used the same journal was when it died: what that one took and did not answer is
    taken again. Raises FrontendError if the guest has withdrawn any of it.
    """

    def __init__(self, pages: Sequence[memoryview], layout: BlkifLayout, journal: Journal | None = None) -> None:
        size = layout.entry_size
        self.ring = BackRing(pages, size) if journal is None else JournaledRing(pages, size, journal)
        self._layout = layout

    def take(self) -> list[Request]:
        """Return the requests that have come. Raises FrontendError for an impossible index or request."""
        return [decode(entry, self._layout) for entry in self.ring.take()]

    def answer(self, request: Request, status: BLKIF_RSP) -> None:
        """Write the response to a request; `push` shows it to the guest."""
        self.ring.put(self._layout.response.pack(request.id, request.operation, status))

    def push(self) -> bool:
        """Show the guest the responses so far; tell whether it wants an event for them."""
        return self.ring.push()

    def more(self) -> bool:
        """Tell whether requests wait; if not, the next one comes with an event. Raises FrontendError."""
        return self.ring.more()

    def close(self) -> None:
        """Let go of the pages."""
        self.ring.close()


def decode(entry: bytes, layout: BlkifLayout) -> Request:
    """Return what a ring entry asks for. Raises FrontendError."""
    operation, count, _, request_id, sector = layout.request.unpack_from(entry)
    op = _DIRECT.get(operation)
    if op is not None:
        _check_count(op, count, BLKIF_MAX_SEGMENTS_PER_REQUEST)
        start = layout.request.size
        segments = parse_segments(entry[start : start + count * SEGMENT.size])
        return Request(request_id, operation, op, sector, segments)
    if operation == BLKIF_OP.FLUSH_DISKCACHE:
        return Request(request_id, operation, BLKIF_OP.FLUSH_DISKCACHE)
    if operation == BLKIF_OP.DISCARD:
        _, _, _, request_id, sector, nr_sectors = layout.discard.unpack_from(entry)
        return Request(request_id, operation, BLKIF_OP.DISCARD, sector, nr_sectors=nr_sectors)
    if operation == BLKIF_OP.INDIRECT:
        return _decode_indirect(entry, layout)
    return Request(request_id, operation, None)


def _decode_indirect(entry: bytes, layout: BlkifLayout) -> Request:
    _, indirect_op, count, request_id, sector, _, *grefs = layout.indirect.unpack_from(entry)
    op = _DIRECT.get(indirect_op)
    if op is None or op is BLKIF_OP.WRITE_BARRIER:
        raise FrontendError(f"indirect request of operation {indirect_op}, which is neither a read nor a write")
    _check_count(op, count, MAX_INDIRECT_SEGMENTS)
    pages = -(-count // SEGMENTS_PER_INDIRECT_PAGE)
    assert pages <= BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST
    # Linux' frontend takes nothing but the inner operation for an answer.
    return Request(request_id, indirect_op, op, sector, indirect=tuple(grefs[:pages]), nr_segments=count)


def _check_count(op: BLKIF_OP, count: int, limit: int) -> None:
    # A barrier may carry no data, and is then an order to those around it.
    if count > limit or (not count and op is not BLKIF_OP.WRITE_BARRIER):
        raise FrontendError(f"{op.name} request of {count} segments; 1 to {limit} are possible")


def parse_segments(data: bytes) -> tuple[Segment, ...]:
    """Return the segments that an array describes. Raises FrontendError for sectors that no page has."""
    segments = tuple(map(Segment._make, SEGMENT.iter_unpack(data)))
    for _, first, last in segments:
        if not first <= last < SECTORS_PER_PAGE:
            raise FrontendError(f"segment of sectors {first} to {last} of a page of {SECTORS_PER_PAGE}")
    return segments
