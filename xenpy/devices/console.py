"""The PV console: one page with a ring for each direction, and an event channel.

Ref: xen/include/public/io/console.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
_OUT_OFFSET: Final = IN_SIZE
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD = ((IN_SIZE + OUT_SIZE) // 4 + index for index in range(4))
_INDEX_MASK: Final = 0xFFFF_FFFF
_MAX_PENDING_INPUT: Final = 1 << 20


class ConsoleRing:
    """Our end of a console ring.

    `page` is a writable view of the guest's 4096 bytes; `notify` sends the event channel; `sink` takes output and returns how many bytes it
    took, so that a slow reader holds the guest back instead of losing its words. Called under the host's lock.
    """

    def __init__(self, page: memoryview, notify: Callable[[], None], sink: Callable[[bytes], int]) -> None:
        self._bytes = page
        self._words = page.cast("I")
        self._notify = notify
        self._sink = sink
        self._input = bytearray()
        self.broken = False

    def on_event(self) -> None:
        """Take output and give input; to be called when the guest sends the event channel, and when the sink has room again."""
        if self.broken:
            return
        moved = self._take_output()
        moved |= self._give_input()
        if moved:
            self._notify()

    def _take_output(self) -> bool:
        """Take what is in the ring now; what the guest adds meanwhile comes with an event of its own."""
        cons, prod = self._words[_OUT_CONS], self._words[_OUT_PROD]
        size = (prod - cons) & _INDEX_MASK
        if size > OUT_SIZE:
            self.broken = True  # the guest wrote nonsense; its console is dead, nothing else
            return False
        moved = False
        while size:
            start = cons % OUT_SIZE
            step = min(size, OUT_SIZE - start)
            taken = self._sink(bytes(self._bytes[_OUT_OFFSET + start : _OUT_OFFSET + start + step]))
            cons = (cons + taken) & _INDEX_MASK
            size -= taken
            self._words[_OUT_CONS] = cons
            moved |= taken > 0
            if taken < step:
                break
        return moved

    def _give_input(self) -> bool:
        words = self._words
        moved = False
        while self._input:
            cons, prod = words[_IN_CONS], words[_IN_PROD]
            used = (prod - cons) & _INDEX_MASK
            if used > IN_SIZE:
                self.broken = True
                return moved
            start = prod % IN_SIZE
            step = min(len(self._input), IN_SIZE - used, IN_SIZE - start)
            if not step:
                return moved
            self._bytes[start : start + step] = self._input[:step]
            del self._input[:step]
            words[_IN_PROD] = (prod + step) & _INDEX_MASK
            moved = True
        return moved

    @property
    def queued_input(self) -> bytes:
        """Return the input that the ring had no room for."""
        return bytes(self._input)

    @property
    def room(self) -> int:
        """Return how many more bytes of input may be queued."""
        return _MAX_PENDING_INPUT - len(self._input)

    def send_input(self, data: bytes) -> None:
        """Queue input for the guest and give it what its ring has room for."""
        self._input += data
        if not self.broken and self._give_input():
            self._notify()

    def close(self) -> None:
        """Let go of the page, which stays the caller's."""
        self.broken = True
        self._words.release()

    def drain(self) -> bytes:
        """Return the output that is still in the ring, for a domain that has ended."""
        chunks: list[bytes] = []

        def keep(data: bytes) -> int:
            chunks.append(data)
            return len(data)

        sink, self._sink = self._sink, keep
        if not self.broken:
            self._take_output()
        self._sink = sink
        return b"".join(chunks)
