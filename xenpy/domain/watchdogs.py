"""A domain's watchdog timers: SCHEDOP_watchdog.

Ref: xen/include/public/sched.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import SHUTDOWN_ENDS, End
from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.domain.domain import Domain
    from xenpy.loop import Deadline

NR_DOMAIN_WATCHDOG_TIMERS: Final = 2
_NS: Final = 1_000_000_000


class Watchdogs:
    """Up to two timers, numbered from 1, in system time; one that runs out ends the domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._deadlines: dict[int, int] = {}
        self._call: Deadline | None = None

    def set(self, timer_id: int, timeout_s: int) -> int:
        """Start a timer (id 0) and return its id, or re-arm or stop (timeout 0) the one named and return 0.

        A new one with a timeout of 0 runs out at once. Raises XenError: EINVAL (no such number, or not armed), ENOSPC (both in use).
        """
        if timer_id > NR_DOMAIN_WATCHDOG_TIMERS:
            raise XenError(Errno.EINVAL, f"watchdog {timer_id}")
        if timer_id == 0:
            free = [number for number in range(1, NR_DOMAIN_WATCHDOG_TIMERS + 1) if number not in self._deadlines]
            if not free:
                raise XenError(Errno.ENOSPC, "all watchdogs are in use")
            self._arm(free[0], timeout_s)
            return free[0]
        if timer_id not in self._deadlines:
            raise XenError(Errno.EINVAL, f"watchdog {timer_id} is not armed")
        if timeout_s:
            self._arm(timer_id, timeout_s)
        else:
            del self._deadlines[timer_id]
        return 0

    def state(self) -> dict[int, int]:
        """Return the system time at which each armed timer runs out."""
        return dict(self._deadlines)

    def restore(self, deadlines: Mapping[int, int]) -> None:
        """Arm timers that run out at these system times."""
        self._deadlines = dict(deadlines)
        self.clock_changed()

    def _arm(self, number: int, seconds: int) -> None:
        self._deadlines[number] = self._domain.clock.now() + seconds * _NS
        self.clock_changed()

    def next_deadline(self) -> int | None:
        """Return the system time at which the first runs out, or None."""
        return min(list(self._deadlines.values()), default=None)

    def clock_changed(self) -> None:
        """Look at the clock again. From any thread."""
        if self._deadlines or self._call is not None:
            self._domain.host.loop.call_soon(self._look)

    def _look(self) -> None:
        """End the domain if a timer has run out, else look again when the first may have. In the loop's thread."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        clock = self._domain.clock
        for number, deadline in list(self._deadlines.items()):
            if deadline <= clock.now():
                self._domain.shutdown(SHUTDOWN_ENDS.index(End.WATCHDOG), f"watchdog {number} was not fed")
                return
        first = self.next_deadline()
        delay = None if first is None else clock.delay_until(first)
        if delay is not None:
            self._call = self._domain.host.loop.call_later(max(0, delay) / _NS, self._look)

    def close(self) -> None:
        """Stop all."""
        self._deadlines.clear()
        if self._call is not None:
            self._call.cancel()
