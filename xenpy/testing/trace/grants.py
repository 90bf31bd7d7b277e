"""A use of a grant that tells when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.memory import Frame
    from xenpy.pv.gnttab.pins import Use


class TracedUse:
    """Stands before a use of a grant; `ended` is called once, when it has been released."""

    __slots__ = ("_ended", "_use")

    def __init__(self, use: Use, ended: Callable[[], None]) -> None:
        self._use = use
        self._ended: Callable[[], None] | None = ended

    @property
    def gref(self) -> int:
        """Return the grant reference."""
        return self._use.gref

    @property
    def readonly(self) -> bool:
        """Tell whether the use is for reading only."""
        return self._use.readonly

    @property
    def frame(self) -> Frame:
        """Return the page."""
        return self._use.frame

    def view(self) -> tuple[memoryview, int]:
        """Return a live view of the page, and our address of it. Raises GrantError."""
        return self._use.view()

    def part(self, offset: int, size: int) -> memoryview:
        """Return a live view of part of the page. Raises GrantError."""
        return self._use.part(offset, size)

    def release(self) -> None:
        """End the use; idempotent."""
        self._use.release()
        if self._ended is not None:
            ended, self._ended = self._ended, None
            ended()
