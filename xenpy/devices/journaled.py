"""A ring whose server may die: the next one, with the same journal, goes on where that one was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.devices.ring import BackRing
from xenpy.errors import FrontendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.journal import Journal


class JournaledRing(BackRing):
    """Takes again what another that used the same journal took and did not answer, and then what comes.

    Raises FrontendError if the guest has withdrawn any of it.
    """

    def __init__(self, pages: Sequence[memoryview], entry_size: int, journal: Journal) -> None:
        self._journal = journal
        self._again = journal.mend(pages[0])
        super().__init__(pages, entry_size)
        if len(super().take(len(self._again))) < len(self._again):  # in the ring, responses may lie over them
            raise FrontendError(f"ring: {len(self._again)} requests are under way, and req_prod now says fewer")

    def take(self, limit: int | None = None) -> list[bytes]:
        """Return copies of the requests that have come, at most `limit`. Raises FrontendError."""
        if self._again:
            taken = self._again[:limit]
            del self._again[:limit]
            return taken
        taken = super().take(limit)
        self._journal.take(taken)
        return taken

    def push(self) -> bool:
        """Show the guest the responses put so far; tell whether it wants an event for them."""
        self._journal.answer(self.in_flight)
        return super().push()
