"""The backend's end of a shared ring, of one page or several.

Ref: xen/include/public/io/ring.h
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from xenpy.abi.ring import (
    INDEX_MASK,
    SRING_HEADER_SIZE,
    SRING_REQ_EVENT,
    SRING_REQ_PROD,
    SRING_RSP_EVENT,
    SRING_RSP_PROD,
)
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence


def ring_entries(pages: int, entry_size: int) -> int:
    """Return how many entries of `entry_size` bytes a ring of so many pages has: the largest power of two that fits."""
    return 1 << (((pages << PAGE_SHIFT) - SRING_HEADER_SIZE) // entry_size).bit_length() - 1


def spans(slot: int, slots: int, size: int, data: bytes) -> list[tuple[int, bytes]]:
    """Return the offsets and the parts of `data`, entries of `size` bytes from `slot` on, in a round of so many slots."""
    room = (slots - slot) * size
    parts = [(slot * size, data[:room])]
    if len(data) > room:
        parts.append((0, data[room:]))
    return parts


def write_entry(pages: Sequence[memoryview], offset: int, data: bytes) -> None:
    """Write at an offset of a ring's pages what may run on into the next one."""
    page, start = offset >> PAGE_SHIFT, offset & PAGE_MASK
    first = PAGE_SIZE - start
    if len(data) <= first:
        pages[page][start : start + len(data)] = data
    else:
        pages[page][start:] = data[:first]
        pages[page + 1][: len(data) - first] = data[first:]


class BackRing:
    """Takes requests and puts responses; one thread uses it at a time.

    `pages` are live views of the granted pages in order, `entry_size` is the larger of request and response in bytes. Indices are the
    guest's to change at any moment: each is read once and checked, and requests are copied before anybody looks at them.

    Responses go, in the order of `put`, to the slots after the last one, and are for the guest to see after `push`. The loop is:
    `take` until it returns nothing and `more` says no; `put` each response, `push`, and send the event channel if it says so.
    """

    def __init__(self, pages: Sequence[memoryview], entry_size: int) -> None:
        self._pages = pages
        self._words = pages[0].cast("I")
        self._entry_size = entry_size
        self.entries: Final = ring_entries(len(pages), entry_size)
        # A backend that takes over a ring in use goes on after the last response; what was in flight is asked for again.
        self._req_cons = self._rsp_prod = self._words[SRING_RSP_PROD]
        self._pushed = self._rsp_prod
        self._fence = threading.Lock()

    @property
    def in_flight(self) -> int:
        """Return how many requests were taken and have no response yet."""
        return (self._req_cons - self._rsp_prod) & INDEX_MASK

    def take(self, limit: int | None = None) -> list[bytes]:
        """Return copies of the requests that have come, at most `limit`.

        Raises FrontendError if the guest's index claims more of them than the ring has room for.
        """
        waiting = self._waiting()
        if limit is not None and limit < waiting:
            waiting = limit
        first = self._req_cons
        self._req_cons = (first + waiting) & INDEX_MASK
        return self._copies(first, waiting) if waiting else []

    def _waiting(self) -> int:
        prod = self._words[SRING_REQ_PROD]
        waiting = (prod - self._req_cons) & INDEX_MASK
        if waiting > self.entries - self.in_flight:
            raise FrontendError(
                f"ring of {self.entries} entries: req_prod {prod:#x} is out of bounds, {self._req_cons:#x} were taken"
                f" and {self._rsp_prod:#x} answered"
            )
        return waiting

    def more(self, ahead: int = 0) -> bool:
        """Ask for an event with the next request, or `ahead` later, then tell whether one has come already. Raises FrontendError."""
        if self._waiting():
            return True
        self._words[SRING_REQ_EVENT] = (self._req_cons + 1 + ahead) & INDEX_MASK
        self._order()
        return self._waiting() > 0

    def put_all(self, responses: Sequence[bytes]) -> None:
        """Write responses as `put` does, those of a ring of one page at once."""
        if len(self._pages) > 1:
            for response in responses:
                self.put(response)
            return
        if len(responses) > self.in_flight:
            raise ValueError("a response without a request")
        size = self._entry_size
        data = b"".join([response.ljust(size, b"\0") for response in responses])
        for start, part in spans(self._rsp_prod & (self.entries - 1), self.entries, size, data):
            self._pages[0][SRING_HEADER_SIZE + start : SRING_HEADER_SIZE + start + len(part)] = part
        self._rsp_prod = (self._rsp_prod + len(responses)) & INDEX_MASK

    def put(self, response: bytes) -> None:
        """Write a response of at most `entry_size` bytes, not yet for the guest to see; one for each request that was taken."""
        if not self.in_flight:
            raise ValueError("a response without a request")
        write_entry(self._pages, self._offset(self._rsp_prod), response)
        self._rsp_prod = (self._rsp_prod + 1) & INDEX_MASK

    def push(self) -> bool:
        """Show the guest the responses put so far; tell whether it wants an event for them."""
        old, new = self._pushed, self._rsp_prod
        if old == new:
            return False
        self._words[SRING_RSP_PROD] = self._pushed = new
        self._order()
        event = self._words[SRING_RSP_EVENT]
        return (new - event) & INDEX_MASK < (new - old) & INDEX_MASK

    def close(self) -> None:
        """Let go of the pages, which stay the caller's to unmap."""
        self._words.release()

    def _copies(self, first: int, count: int) -> list[bytes]:
        if len(self._pages) > 1:
            return [self._copy(first + index) for index in range(count)]
        size = self._entry_size
        slots = self._pages[0][SRING_HEADER_SIZE:]
        start = first & (self.entries - 1)
        end = min(start + count, self.entries)
        data = bytes(slots[start * size : end * size])
        if end - start < count:
            data += bytes(slots[: (count - end + start) * size])
        return [data[at : at + size] for at in range(0, len(data), size)]

    def _copy(self, index: int) -> bytes:
        offset = self._offset(index)
        page, start = offset >> PAGE_SHIFT, offset & PAGE_MASK
        end = start + self._entry_size
        if end <= PAGE_SIZE:
            return bytes(self._pages[page][start:end])
        return bytes(self._pages[page][start:]) + bytes(self._pages[page + 1][: end - PAGE_SIZE])

    def _offset(self, index: int) -> int:
        return SRING_HEADER_SIZE + (index & (self.entries - 1)) * self._entry_size

    def _order(self) -> None:
        """Have the store before seen before the load after, which x86 may exchange: to take a lock is a LOCK-prefixed instruction."""
        with self._fence:
            pass
