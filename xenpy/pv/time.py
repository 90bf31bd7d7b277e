"""Xen system time, and the timers a vCPU sets in it.

System time is in nanoseconds since the host's Xen started; here, since the Host object was made.

Ref: xen/include/public/vcpu.h, xen.h
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import VIRQ
from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.evtchn import EventChannels

MIN_PERIOD_NS: Final = 1_000_000
"""Shorter periods are refused, as by Xen."""
MAX_PERIOD_NS: Final = 1 << 62


class SystemClock:
    """The system time of one domain's Xen."""

    def __init__(self) -> None:
        self._base = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)

    def now(self) -> int:
        """Return system time in ns."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - self._base

    def set(self, now: int) -> None:
        """Make system time read `now` from here on."""
        self._base = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) - now

    def wallclock(self) -> tuple[int, int]:
        """Return the UTC (seconds, nanoseconds) at which system time was zero, as shared_info tells it."""
        return divmod(time.time_ns() - self.now(), 1_000_000_000)


class VcpuTimers:
    """The one-shot and the periodic timer of a vCPU; both raise VIRQ_TIMER.

    `rearm` is called when the next deadline has changed. All times are system time in ns.
    """

    def __init__(self, clock: SystemClock, evtchn: EventChannels, vcpu_id: int, rearm: Callable[[], None]) -> None:
        self.clock = clock
        self._evtchn = evtchn
        self._vcpu_id = vcpu_id
        self._rearm = rearm
        self.singleshot: int | None = None
        self.period = 0
        self._next_period = 0

    def set_singleshot(self, deadline: int, *, must_be_future: bool = False) -> None:
        """Fire at `deadline`, at once if it has passed. Raises XenError(ETIME) for a past one when the caller asked for that."""
        if must_be_future and deadline < self.clock.now():
            raise XenError(Errno.ETIME, "the deadline has passed")
        self.singleshot = deadline
        self._rearm()

    def stop_singleshot(self) -> None:
        """Do not fire."""
        self.singleshot = None
        self._rearm()

    def set_periodic(self, period: int) -> None:
        """Fire every `period`. Raises XenError(EINVAL) for periods under 1 ms."""
        if not MIN_PERIOD_NS <= period <= MAX_PERIOD_NS:
            raise XenError(Errno.EINVAL, f"timer period of {period} ns")
        self.period = period
        self._next_period = self.clock.now() + period
        self._rearm()

    def stop_periodic(self) -> None:
        """Stop the periodic timer."""
        self.period = 0
        self._rearm()

    def next_deadline(self) -> int | None:
        """Return when a timer is due next, or None."""
        if not self.period:
            return self.singleshot
        return self._next_period if self.singleshot is None else min(self.singleshot, self._next_period)

    def expire(self) -> bool:
        """Raise VIRQ_TIMER if a timer is due; tell whether one was."""
        deadline = self.next_deadline()
        if deadline is None:
            return False
        now = self.clock.now()
        if deadline > now:
            return False
        if self.singleshot is not None and self.singleshot <= now:
            self.singleshot = None
        if self.period and self._next_period <= now:
            # Ticks that were missed while the vCPU did not run are not made up for.
            self._next_period += ((now - self._next_period) // self.period + 1) * self.period
        self._evtchn.raise_virq(VIRQ.TIMER, self._vcpu_id)
        return True
