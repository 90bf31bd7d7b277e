"""Requests taken off a ring and not answered yet, kept where the death of whoever serves them does not reach.

A response lies where its request lay, so the ring alone does not tell what was under way: a server that dies between writing a response and
showing it to the guest has overwritten the request. The journal has a copy of each, and says which have been answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.ring import INDEX_MASK, SRING_HEADER_SIZE, SRING_RSP_EVENT, SRING_RSP_PROD
from xenpy.devices.ring import spans, write_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

_TAKEN: Final = 0
_ANSWERED: Final = 1
_HEADER: Final = 64


class Journal:
    """The journal of a ring of `entries` entries of `entry_size` bytes, in shared `memory`; one process writes it at a time.

    Whatever instant that process dies at, the two indices tell the truth: each is one store, made after what it vouches for.
    """

    def __init__(self, memory: memoryview, entries: int, entry_size: int) -> None:
        self._memory = memory
        self._words = memory[:_HEADER].cast("I")
        self._entries = entries
        self._entry_size = entry_size

    @staticmethod
    def size(entries: int, entry_size: int) -> int:
        """Return how many bytes of memory a journal takes."""
        return _HEADER + entries * entry_size

    def begin(self, ring: memoryview) -> None:
        """Begin where a ring, given by its first page, stands; nothing is under way."""
        self._words[_TAKEN] = self._words[_ANSWERED] = ring.cast("I")[SRING_RSP_PROD]

    @property
    def answered(self) -> int:
        """Return the index up to which requests have been answered."""
        return self._words[_ANSWERED]

    def mend(self, ring: memoryview) -> list[bytes]:
        """Show the guest the responses that were written and not shown; return the requests that are to be done again."""
        taken, answered = self._words[_TAKEN], self._words[_ANSWERED]
        ring.cast("I")[SRING_RSP_PROD] = answered
        return [self._copy(answered + index) for index in range((taken - answered) & INDEX_MASK)]

    def restore(self, pages: Sequence[memoryview]) -> None:
        """Have the ring's pages be as a server without a journal takes them over: all that was answered is shown, requests are the rest."""
        if (self._words[_TAKEN] - self._words[_ANSWERED]) & INDEX_MASK > self._entries:
            return  # no server of ours has written this
        answered = self.answered
        for index, request in enumerate(self.mend(pages[0]), answered):
            slot = index & (self._entries - 1)
            write_entry(pages, SRING_HEADER_SIZE + slot * self._entry_size, request)

    def owes_event(self, ring: memoryview) -> bool:
        """Tell whether the guest may have been shown responses without the event that it wants for them.

        It names the response after the last that it saw. One too many does no harm, but Linux hears less and less often of a channel
        that cries wolf.
        """
        words = ring.cast("I")
        return (words[SRING_RSP_PROD] - words[SRING_RSP_EVENT]) & INDEX_MASK < self._entries

    def take(self, requests: Sequence[bytes]) -> None:
        """Keep requests that were taken off the ring; before anything is done about them."""
        taken = self._words[_TAKEN]
        if not requests:
            return
        for start, part in spans(taken & (self._entries - 1), self._entries, self._entry_size, b"".join(requests)):
            self._memory[_HEADER + start : _HEADER + start + len(part)] = part
        self._words[_TAKEN] = (taken + len(requests)) & INDEX_MASK

    def answer(self, in_flight: int) -> None:
        """Forget all but the last `in_flight` requests: their responses are written, and are about to be shown."""
        self._words[_ANSWERED] = (self._words[_TAKEN] - in_flight) & INDEX_MASK

    def close(self) -> None:
        """Let go of the memory, which stays the caller's."""
        self._words.release()
        self._memory.release()

    def _slot(self, index: int) -> int:
        return _HEADER + (index & (self._entries - 1)) * self._entry_size

    def _copy(self, index: int) -> bytes:
        start = self._slot(index)
        return bytes(self._memory[start : start + self._entry_size])
