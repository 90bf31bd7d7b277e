"""Xen system time, and the timers a vCPU sets in it.

System time is in nanoseconds since the host's Xen started; here, since the domain was made. It goes as fast as the host's unless somebody
makes it virtual: then it has a rate, which may be 0, and leaps.

Ref: xen/include/public/vcpu.h, xen.h
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi.event_channel import VIRQ
from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.evtchn import EventChannels

MIN_PERIOD_NS: Final = 1_000_000
"""Shorter periods are refused, as by Xen."""
_NS: Final = 1_000_000_000
MAX_PERIOD_NS: Final = 1 << 62


class ClockState(NamedTuple):
    """What makes a clock go on elsewhere where it has stopped here."""

    now: int
    """System time in ns."""
    rate: float
    utc_at_zero: int | None
    """UTC in ns at system time 0; None: that of the host."""


class SystemClock:
    """The system time of one domain's Xen. Reading is for any thread; who changes it sees to it that nobody else does."""

    def __init__(self) -> None:
        self._anchor = _host_ns(), 0, 1.0
        self._utc_at_zero: int | None = None

    @property
    def rate(self) -> float:
        """Return how fast system time goes: 1 as the host's, 0 not at all."""
        return self._anchor[2]

    def now(self) -> int:
        """Return system time in ns."""
        host, system, rate = self._anchor
        elapsed = _host_ns() - host
        return system + (elapsed if rate == 1 else int(elapsed * rate))

    def set(self, now: int) -> None:
        """Make system time read `now` from here on."""
        self._anchor = _host_ns(), now, self.rate

    def set_rate(self, rate: float) -> None:
        """Have system time go on at a rate from what it is. The wall clock goes with it, and not by the host's any more."""
        self._leave_host()
        self._anchor = _host_ns(), self.now(), rate

    def leap(self, nanoseconds: int) -> None:
        """Have system time be later, or earlier but not below 0, from one moment to the next. The wall clock leaps with it."""
        self._leave_host()
        self._anchor = _host_ns(), max(0, self.now() + nanoseconds), self.rate

    def _leave_host(self) -> None:
        if self._utc_at_zero is None:
            self._utc_at_zero = time.time_ns() - self.now()

    def delay_until(self, deadline: int) -> int | None:
        """Return how many ns of the host's time pass until a system time, negative if it has passed; None if it does not come."""
        left = deadline - self.now()
        rate = self.rate
        if rate == 1 or left <= 0:
            return left
        return int(left / rate) if rate else None

    def wallclock(self) -> tuple[int, int]:
        """Return the UTC (seconds, nanoseconds) at which system time was zero, as shared_info tells it."""
        at_zero = time.time_ns() - self.now() if self._utc_at_zero is None else self._utc_at_zero
        return divmod(at_zero, _NS)

    def shift_wallclock(self, nanoseconds: int) -> None:
        """Have the wall clock read so much more, or less, than system time makes it."""
        seconds, rest = self.wallclock()
        self._utc_at_zero = max(0, seconds * _NS + rest + nanoseconds)

    def state(self) -> ClockState:
        """Return what `restore` takes."""
        return ClockState(self.now(), self.rate, self._utc_at_zero)

    def restore(self, state: ClockState) -> None:
        """Go on where another clock has stopped."""
        self._anchor = _host_ns(), state.now, state.rate
        self._utc_at_zero = state.utc_at_zero


def _host_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)


@dataclass(frozen=True, slots=True)
class TimersState:
    """A vCPU's timers as plain data; times are system time in ns, a period of 0 is none."""

    singleshot: int | None
    period: int
    next_period: int


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
        self.offload: Callable[[int], None] | None = None
        """Keeps the one-shot timer in our place: takes the deadline, 0 for none. By the vCPU's thread, out of the guest."""

    def set_singleshot(self, deadline: int) -> None:
        """Fire at `deadline`, at once if it has passed."""
        if self.offload is not None:
            self.offload(max(1, deadline))
            return
        self.singleshot = deadline
        self._rearm()

    def stop_singleshot(self) -> None:
        """Do not fire."""
        if self.offload is not None:
            self.offload(0)
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

    def state(self) -> TimersState:
        """Return the timers as plain data."""
        return TimersState(self.singleshot, self.period, self._next_period)

    def restore(self, state: TimersState) -> None:
        """Take over what `state` returned, whose system time goes on here; `rearm` is left to the caller."""
        self.singleshot, self.period, self._next_period = state.singleshot, state.period, state.next_period

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
