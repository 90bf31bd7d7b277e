"""The VMM's I/O loop: file descriptors, deadlines and calls from other threads, in one thread.

Guests' timers do not go through here (see kvm.kick): its resolution is a millisecond.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR
_LONGEST_WAIT_S: Final = 3600.0
"""epoll counts milliseconds in an int: deadlines weeks ahead are waited for in steps."""

Callback = Callable[[], None]


class Deadline:
    """A call that the loop will make; `cancel` it to prevent that."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callback) -> None:
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Do not make the call."""
        self.callback = None


class Loop:
    """An epoll loop. Only `call_soon` and `stop` may be used from other threads."""

    def __init__(self) -> None:
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, READ)
        self._handlers: dict[int, dict[int, Callback]] = {}
        self._soon: deque[Callback] = deque()
        self._deadlines: list[tuple[float, int, Deadline]] = []
        self._order = itertools.count()
        self._stopped = False

    def watch(self, fd: int, event: int, callback: Callback | None) -> None:
        """Call `callback` whenever fd is ready for `event` (READ or WRITE), or stop doing so (None).

        A hang-up or error counts as readiness for whatever is watched. Raises OSError for files that cannot be polled.
        """
        handlers = self._handlers.setdefault(fd, {})
        before = bool(handlers)
        if callback is None:
            handlers.pop(event, None)
        else:
            handlers[event] = callback
        mask = sum(handlers)
        try:
            if not mask:
                del self._handlers[fd]
                if before:
                    self._epoll.unregister(fd)
            elif before:
                self._epoll.modify(fd, mask)
            else:
                self._epoll.register(fd, mask)
        except OSError:
            self._handlers.pop(fd, None)
            if mask:
                raise

    def call_soon(self, callback: Callback) -> None:
        """Call `callback` in the loop's thread. May be called from any thread."""
        self._soon.append(callback)
        os.eventfd_write(self._wake, 1)

    def call_later(self, seconds: float, callback: Callback) -> Deadline:
        """Call `callback` once, after a delay."""
        deadline = Deadline(callback)
        heapq.heappush(self._deadlines, (time.monotonic() + seconds, next(self._order), deadline))
        return deadline

    def stop(self) -> None:
        """Make `run` return. May be called from any thread, or from a signal handler."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)

    def run(self) -> None:
        """Serve until `stop` is called; if it was called already, return at once. Calls asked for before that are made."""
        while not self._stopped:
            self._run_once()
        self._make_calls()
        self._stopped = False

    def _run_once(self) -> None:
        for fd, event in self._epoll.poll(self._timeout()):
            if fd == self._wake:
                os.eventfd_read(self._wake)
                continue
            for kind in (READ, WRITE):
                callback = self._handlers.get(fd, {}).get(kind)  # an earlier callback may have ended the watch
                if callback is not None and event & (kind | _GONE):
                    callback()
        # Callbacks that ask to be called again get their turn in the next round, behind descriptors.
        now = time.monotonic()
        for _ in range(len(self._deadlines)):
            if self._deadlines[0][0] > now and self._deadlines[0][2].callback is not None:
                break
            deadline = heapq.heappop(self._deadlines)[2]
            if deadline.callback is not None:
                deadline.callback()
        self._make_calls()

    def _make_calls(self) -> None:
        for _ in range(len(self._soon)):
            self._soon.popleft()()

    def _timeout(self) -> float | None:
        if self._soon:
            return 0
        if not self._deadlines:
            return None
        return min(max(0.0, self._deadlines[0][0] - time.monotonic()), _LONGEST_WAIT_S)

    def close(self) -> None:
        """Free the loop's own file descriptors."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake)
