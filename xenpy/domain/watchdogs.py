"""A domain's watchdog timers: SCHEDOP_watchdog.

Ref: xen/include/public/sched.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import SHUTDOWN_ENDS, End
from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from xenpy.domain.domain import Domain
    from xenpy.loop import Deadline

NR_DOMAIN_WATCHDOG_TIMERS: Final = 2


class Watchdogs:
    """Up to two timers, numbered from 1; one that runs out ends the domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._armed: dict[int, Deadline | None] = {}

    def set(self, timer_id: int, timeout_s: int) -> int:
        """Start a timer (id 0) and return its id, or re-arm or stop (timeout 0) the one named and return 0.

        Raises XenError: EINVAL (no such number), ENOSPC (both in use), EEXIST (not armed).
        """
        if timer_id > NR_DOMAIN_WATCHDOG_TIMERS:
            raise XenError(Errno.EINVAL, f"watchdog {timer_id}")
        if timer_id == 0:
            if not timeout_s:
                raise XenError(Errno.EINVAL, "a new watchdog without a timeout")
            free = [number for number in range(1, NR_DOMAIN_WATCHDOG_TIMERS + 1) if number not in self._armed]
            if not free:
                raise XenError(Errno.ENOSPC, "all watchdogs are in use")
            self._arm(free[0], timeout_s)
            return free[0]
        if timer_id not in self._armed:
            raise XenError(Errno.EEXIST, f"watchdog {timer_id} is not armed")
        self._disarm(timer_id)
        if timeout_s:
            self._arm(timer_id, timeout_s)
        return 0

    def _arm(self, number: int, seconds: int) -> None:
        self._armed[number] = None
        loop = self._domain.host.loop

        def start() -> None:
            # In the loop's thread; the timer may have been stopped, or re-armed, since.
            if number in self._armed and self._armed[number] is None:
                self._armed[number] = loop.call_later(seconds, lambda: self._expire(number))

        loop.call_soon(start)

    def _disarm(self, number: int) -> None:
        deadline = self._armed.pop(number, None)
        if deadline is not None:
            deadline.cancel()

    def _expire(self, number: int) -> None:
        self._domain.shutdown(SHUTDOWN_ENDS.index(End.WATCHDOG), f"watchdog {number} was not fed")

    def close(self) -> None:
        """Stop all."""
        for number in list(self._armed):
            self._disarm(number)
