"""One queue of a block device: requests from its ring, carried out on the medium."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP, SECTOR_SHIFT
from xenpy.devices.trouble import SLICE_S, Mishap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from xenpy.devices.trouble import Ask
    from xenpy.devices.vbd.backing import Backing, Views
    from xenpy.devices.vbd.pages import GrantedPages
    from xenpy.devices.vbd.requests import BlockRing, Request, Segment

MAX_VECTORS: Final = 512
"""Views that are moved together, well below what a system call takes. Ref: limits.h, IOV_MAX"""
_MOVES: Final = (BLKIF_OP.READ, BLKIF_OP.WRITE)
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)

Part = tuple["Request", "tuple[Segment, ...]"]


class BlockQueue:
    """Serves one ring in a thread of its caller's choosing. `notify` sends the event channel.

    Requests are answered in the order in which they came, so a flush covers all that was written before it, and a barrier orders what is
    around it. Neighbours on the disk are moved together, so a frontend's small requests cost one system call.
    """

    def __init__(
        self,
        ring: BlockRing,
        pages: GrantedPages,
        backing: Backing,
        notify: Callable[[], None],
    ) -> None:
        self._lock = pages.lock
        self._ring = ring
        self._pages = pages
        self._backing = backing
        self._notify = notify
        self.ask: Ask | None = None
        """Whom to ask what goes wrong with each request."""
        self.together = False
        """Whether the responses of requests that came together are worth one event at the end, not one each."""
        self.grown: Callable[[], bool] | None = None
        """Looks at the medium's size anew when a request goes beyond it; None where somebody else does when that changes."""

    def serve(self, stopping: Callable[[], bool]) -> None:
        """Carry out requests until none waits, or until `stopping` says so. Raises FrontendError."""
        while not stopping():
            requests = self._ring.take()
            if requests:
                self._work_off(requests, stopping)
            if not self._ring.more():
                return

    def _work_off(self, requests: list[Request], stopping: Callable[[], bool]) -> None:
        with self._lock:
            parts: list[Part] = [(request, self._pages.segments_of(request)) for request in requests]
        ask = self.ask
        groups = _grouped(parts) if ask is None else self._troubled(parts, ask, stopping)
        wanted = False
        for group in groups:
            if group[0][0].op in _MOVES:
                self._transfer(group)
            else:
                self._ring.answer(group[0][0], self._carry_out(group))
            wanted |= self._ring.push()
            if wanted and not self.together:
                self._notify()
                wanted = False
        if wanted:
            self._notify()

    def _troubled(self, parts: list[Part], ask: Ask, stopping: Callable[[], bool]) -> Iterator[list[Part]]:
        """Yield the requests one by one as they are to be carried out; those that fail are answered meanwhile."""
        overtaken: list[Part] = []
        for part in parts:
            op = part[0].op
            trouble = ask(op.name.lower() if op is not None else "unknown")
            match trouble.mishap if trouble is not None else None:
                case Mishap.ERROR:
                    assert trouble is not None
                    self._ring.answer(part[0], BLKIF_RSP.EOPNOTSUPP if trouble.unsupported else BLKIF_RSP.ERROR)
                    if self._ring.push():
                        self._notify()
                    continue
                case Mishap.DROP:
                    continue
                case Mishap.REORDER:
                    overtaken.append(part)
                    continue
                case Mishap.DELAY:
                    assert trouble is not None
                    _sleep(trouble.delay_s, stopping)
                case Mishap.DUPLICATE:
                    if op in _MOVES:
                        self._move([part])
            yield [part]
            yield from ([late] for late in overtaken)
            overtaken = []
        yield from ([late] for late in overtaken)

    def _carry_out(self, group: list[Part]) -> BLKIF_RSP:
        """Do what a request asks for that neither reads nor writes, or orders what does; return its status."""
        request = group[0][0]
        match request.op:
            case BLKIF_OP.WRITE_BARRIER:
                status = self._attempt(self._backing.flush)
                if status is BLKIF_RSP.OKAY and group[0][1]:
                    status = self._move(group)
                if status is BLKIF_RSP.OKAY:
                    status = self._attempt(self._backing.flush)
                return status
            case BLKIF_OP.FLUSH_DISKCACHE:
                return self._attempt(self._backing.flush)
            case BLKIF_OP.DISCARD:
                return self._discard(request)
            case _:
                return BLKIF_RSP.EOPNOTSUPP

    def _transfer(self, group: list[Part]) -> None:
        """Move a group at once; if that fails, each request alone, for each has a status of its own."""
        status = self._move(group)
        for part in group:
            own = status if status is BLKIF_RSP.OKAY or len(group) == 1 else self._move([part])
            self._ring.answer(part[0], own)

    def _move(self, group: list[Part]) -> BLKIF_RSP:
        """Read or write the neighbours of a group. Raises FrontendError for a grant that cannot be used."""
        first = group[0][0]
        reading = first.op is BLKIF_OP.READ
        offset = first.sector << SECTOR_SHIFT
        segments = group[0][1] if len(group) == 1 else [segment for part in group for segment in part[1]]
        if not self._has(offset + (_sectors(segments) << SECTOR_SHIFT)) or not (reading or self._backing.writable):
            return BLKIF_RSP.ERROR
        views: Views = []
        try:
            with self._lock:
                views += self._pages.views(segments, writable=reading)
            move = self._backing.read if reading else self._backing.write
            return self._attempt(move, views, offset)
        finally:
            views.clear()
            with self._lock:
                self._pages.release()

    def _discard(self, request: Request) -> BLKIF_RSP:
        offset, size = request.sector << SECTOR_SHIFT, request.nr_sectors << SECTOR_SHIFT
        if not self._backing.can_discard:
            return BLKIF_RSP.EOPNOTSUPP
        if not size or not self._has(offset + size):
            return BLKIF_RSP.ERROR
        return self._attempt(self._backing.discard, offset, size)

    def _has(self, end: int) -> bool:
        """Tell whether the medium goes on to an offset."""
        return end <= self._backing.size or (self.grown is not None and self.grown() and end <= self._backing.size)

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> BLKIF_RSP:
        try:
            action(*arguments)
        except OSError as error:
            return BLKIF_RSP.EOPNOTSUPP if error.errno in _UNSUPPORTED else BLKIF_RSP.ERROR
        return BLKIF_RSP.OKAY


def _sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while (rest := deadline - time.monotonic()) > 0 and not stopping():
        time.sleep(min(rest, SLICE_S))


def _sectors(segments: Sequence[Segment]) -> int:
    return sum([last - first + 1 for _, first, last in segments])


def _grouped(parts: list[Part]) -> Iterator[list[Part]]:
    """Yield the requests in order, those together that read, or write, next to one another."""
    if len(parts) == 1:
        yield parts
        return
    group: list[Part] = []
    end = vectors = 0
    for part in parts:
        request, segments = part
        joins = (
            bool(group)
            and request.op is group[0][0].op
            and request.op in _MOVES
            and request.sector == end
            and vectors + len(segments) <= MAX_VECTORS
        )
        if not joins:
            if group:
                yield group
            group, vectors = [], 0
        group.append(part)
        end = request.sector + _sectors(segments)
        vectors += len(segments)
    if group:
        yield group
