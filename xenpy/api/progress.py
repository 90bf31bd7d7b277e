"""Waiting for a guest to do something: one place where all that it does is announced."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from xenpy.api.errors import GuestEnded, Timeout

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.domain.ending import Ending

T = TypeVar("T")

DEFAULT_TIMEOUT_S: Final = 30.0
_LONGEST_STEP_S: Final = 3600.0
"""A lock cannot be waited for without end, or for weeks."""
_REST: Final = 3
"""A look that took long, such as a search in much output, is followed by so many times as long a pause."""


class Progress:
    """Announces what a guest does to whoever waits for it.

    `name` is the guest's, `tail` gives the end of its output, both for messages; `timeout_s` is for waits that name none.
    `notify` and `end` may be called with any lock held: they take none but their own.
    """

    def __init__(
        self, name: str, tail: Callable[[], str] = lambda: "", *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self._tail = tail
        self._changed = threading.Condition()
        self._generation = 0
        self.ending: Ending | None = None
        """How the guest ended, once nothing more will come of it."""

    def notify(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._generation += 1
            self._changed.notify_all()

    def end(self, ending: Ending) -> None:
        """Say that the guest has ended and all its output is there."""
        self.ending = ending
        self.notify()

    def wait(
        self, look: Callable[[], T | None], timeout_s: float | None, what: str, *, poll_s: float = _LONGEST_STEP_S
    ) -> T:
        """Return what `look` returns as soon as that is not None; it is called, without locks, whenever something happened.

        `what` completes the sentence "no ... within 5 s". `poll_s` makes it look at least so often. Raises Timeout, and
        GuestEnded if the guest ended without.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            seen, ending = self._generation, self.ending
            started = time.monotonic()
            result = look()
            if result is not None:
                return result
            if ending is not None:
                raise self.ended(f"without {what}")
            now = time.monotonic()
            if now >= deadline:
                raise Timeout(f"{self.name}: no {what} within {timeout_s:.3g} s{self._tail()}")
            rest = min(deadline, now + _REST * (now - started))
            with self._changed:
                step = min(deadline - now, poll_s, _LONGEST_STEP_S)
                self._changed.wait_for(partial(self._has_moved, seen), step)
            if (pause := rest - time.monotonic()) > 0:
                time.sleep(pause)

    def _has_moved(self, generation: int) -> bool:
        return self._generation != generation

    def ended(self, remark: str) -> GuestEnded:
        """Return the error to raise when only a guest that runs could do what is asked; `remark` follows "ended (...)"."""
        assert self.ending is not None
        return GuestEnded(f"{self.name} ended ({self.ending}) {remark}{self._tail()}", self.ending)
