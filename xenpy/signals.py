"""Signal handlers that a waiting program does not miss."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import FrameType

_READ_SIZE = 4096


class Wake:
    """A descriptor that is readable once a signal has come, and `drained` until the next."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        """Return the descriptor, to be watched beside what the program waits for."""
        return self._end.fileno()

    def drained(self) -> None:
        """Take what the signals left; by then, Python has called their handlers."""
        try:
            os.read(self._end.fileno(), _READ_SIZE)
        except BlockingIOError:
            return


@contextmanager
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[Wake]:
    """Have `handler` called for the signals `numbers` within the body, which must run in the main thread.

    Python calls it between two of its instructions: a signal that comes between the last one and the system call by which the
    program waits does not interrupt that call and would be seen only when the wait ends.  So waits must include the `Wake`.

    Raises ValueError in another thread. Ref: signal.set_wakeup_fd in Python's library reference
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        before_wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, handler) for number in numbers}
        try:
            yield Wake(ours)
        finally:
            for number, handler_before in before.items():
                signal.signal(number, handler_before)
            signal.set_wakeup_fd(before_wakeup)
