"""The backend's end of a pair of byte rings, in which each message begins with its size.

Ref: docs/misc/9pfs.pandoc
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.p9 import HEADER
from xenpy.abi.xen_9pfs import (
    IN_CONS,
    IN_PROD,
    INDEX_MASK,
    MAX_RING_ORDER,
    MIN_RING_ORDER,
    OUT_CONS,
    OUT_PROD,
    RING_ORDER,
    RING_REFS,
)
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SIZE_BYTES: Final = 4


def ring_grefs(page: memoryview, max_order: int) -> list[int]:
    """Return the grants of the data pages, as the page of indices has them. Raises FrontendError."""
    words = page.cast("I")
    try:
        order = words[RING_ORDER]
        if not MIN_RING_ORDER <= order <= min(max_order, MAX_RING_ORDER):
            raise FrontendError(f"ring_order is {order}, not {MIN_RING_ORDER} to {max_order}")
        return words[RING_REFS : RING_REFS + (1 << order)].tolist()
    finally:
        words.release()


class MessageRing:
    """Takes requests and puts replies; `page` has the indices, `pages` the data. One thread uses it at a time.

    The guest's indices are read once and checked; requests are copied before anybody looks at them.
    """

    def __init__(self, page: memoryview, pages: Sequence[memoryview]) -> None:
        self._words = page.cast("I")
        half = len(pages) // 2
        self._in, self._out = pages[:half], pages[half:]
        self.size: Final = half << PAGE_SHIFT
        """Bytes of each direction: no message may be longer."""

    def take(self) -> bytes | None:
        """Return the next request if all of it has come. Raises FrontendError."""
        cons = self._words[OUT_CONS]
        queued = self._queued(self._words[OUT_PROD], cons)
        if queued < HEADER.size:
            return None
        size = int.from_bytes(self._copy(cons, _SIZE_BYTES), "little")
        if not HEADER.size <= size <= self.size:
            raise FrontendError(f"a request of {size} bytes, in a ring of {self.size}")
        if queued < size:
            return None
        # The size that was looked at is the size that counts, whatever the guest writes there now.
        message = size.to_bytes(_SIZE_BYTES, "little") + self._copy(cons + _SIZE_BYTES, size - _SIZE_BYTES)
        self._words[OUT_CONS] = (cons + size) & INDEX_MASK
        return message

    def room(self) -> int:
        """Return how many bytes of replies the ring has room for. Raises FrontendError."""
        return self.size - self._queued(self._words[IN_PROD], self._words[IN_CONS])

    def put(self, message: bytes) -> None:
        """Write a reply and show it to the guest, all at once; there must be room for it."""
        prod = self._words[IN_PROD]
        view, place = memoryview(message), 0
        for page, start, end in self._pieces(prod, len(message)):
            self._in[page][start:end] = view[place : place + end - start]
            place += end - start
        self._words[IN_PROD] = (prod + len(message)) & INDEX_MASK

    def _queued(self, prod: int, cons: int) -> int:
        queued = (prod - cons) & INDEX_MASK
        if queued > self.size:
            raise FrontendError(f"indices {prod:#x} and {cons:#x} of a ring of {self.size} bytes")
        return queued

    def _copy(self, index: int, size: int) -> bytes:
        return b"".join([self._out[page][start:end] for page, start, end in self._pieces(index, size)])

    def _pieces(self, index: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield page, start and end in it of each piece of a range."""
        while size:
            place = index & (self.size - 1)
            start = place & PAGE_MASK
            step = min(size, PAGE_SIZE - start)
            yield place >> PAGE_SHIFT, start, start + step
            index += step
            size -= step

    def close(self) -> None:
        """Let go of the pages, which stay the caller's to unmap."""
        self._words.release()
