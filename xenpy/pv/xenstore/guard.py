"""The store's lock, and what must wait until it is released."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from types import TracebackType


class Notifiable(Protocol):
    """Something with output for the outside."""

    on_output: Callable[[], None] | None


class Guard:
    """A re-entrant lock; upon the outermost release, those with output are told, with the lock no longer held.

    So a callback may take other locks (an event channel's) or call back into the store without a deadlock.
    """

    def __init__(self, lock: AbstractContextManager[object] | None = None) -> None:
        self._lock = threading.RLock() if lock is None else lock
        self._depth = 0
        self._touched: dict[Notifiable, None] = {}

    def __enter__(self) -> None:
        self._lock.__enter__()
        self._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._depth -= 1
        touched: tuple[Notifiable, ...] = ()
        if not self._depth and self._touched:
            touched = tuple(self._touched)
            self._touched.clear()
        self._lock.__exit__(kind, error, traceback)
        for one in touched:
            if one.on_output is not None:
                one.on_output()

    def touch(self, one: Notifiable) -> None:
        """Note, under the lock, that someone has output."""
        self._touched[one] = None

    def settle(self, one: Notifiable) -> None:
        """Note, under the lock, that someone's output was fetched or dropped."""
        self._touched.pop(one, None)
