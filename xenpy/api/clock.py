"""A guest's time, in the hands of a test."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.api.processors import Processors
    from xenpy.domain.domain import Domain
    from xenpy.pv.time import SystemClock

_NS: Final = 1_000_000_000
_MAX_S: Final = 100 * 365 * 24 * 3600.0
_MIN_FACTOR: Final = 1e-6
_MAX_FACTOR: Final = 1e6
_STEP_LIMIT_S: Final = 0.02
"""How long a guest that is busy is let work off what is due before time goes on."""
_BUSY_STEP_NS: Final = 10_000_000
"""How much of its time a guest that is busy is made to pass in one step, if it has set no timer."""
_LOOK_S: Final = 0.0002
_PRECISION: Final = 100
_MAX_STEP_NS: Final = 4 * _NS


class _View(NamedTuple):
    """What a guest's vCPUs do at one moment."""

    waits: bool
    """All have nothing to do until a timer comes."""
    ticked: bool
    """All have dealt with the timers that were due, whatever they do now."""
    deadline: int | None
    """The system time at which something is due next."""


class Clock:
    """The time of one guest: system time, and all that goes by it: timers, wall clock, runstate, watchdogs.

    Whatever changes is seen by all vCPUs at once. Times are in seconds. Methods raise ConfigError for numbers that cannot be, HostError
    where KVM does not tell the TSC's frequency, and GuestEnded.
    """

    def __init__(self, domain: Domain, processors: Processors) -> None:
        self._domain = domain
        self._processors = processors
        self._has_timers = False

    def __repr__(self) -> str:
        return f"<Clock at {self.now():.6f} s, {self.rate:g} times the host's>"

    def now(self) -> float:
        """Return system time: what a Linux guest's /proc/uptime counts from some moment of its boot on."""
        return self._domain.clock.now() / _NS

    @property
    def rate(self) -> float:
        """Return how fast the guest's time goes: 1 as the host's, 0 not at all."""
        return self._domain.clock.rate

    def wallclock(self) -> float:
        """Return the UTC that Xen tells the guest, in seconds since 1970. Linux reads it when it boots, and when it resumes."""
        seconds, nanoseconds = self._domain.clock.wallclock()
        return self.now() + seconds + nanoseconds / _NS

    def freeze(self) -> None:
        """Stop time. The guest runs on, and sees it stand still."""
        self._change(lambda clock: clock.set_rate(0))

    def scale(self, factor: float) -> None:
        """Have time go `factor` times as fast as the host's, from 1e-6 to 1e6."""
        if not _MIN_FACTOR <= factor <= _MAX_FACTOR:
            raise ConfigError(
                f"clock: scale({factor}) is not from {_MIN_FACTOR:g} to {_MAX_FACTOR:g}; freeze() stops it"
            )
        self._change(lambda clock: clock.set_rate(factor))

    def resume(self) -> None:
        """Have time go as the host's again, from what it is now."""
        self._change(lambda clock: clock.set_rate(1))

    def jump(self, seconds: float) -> None:
        """Have time leap forward, or backward, in one moment, as a fault would: timers that are due meanwhile are late."""
        change = _ns(seconds, "jump")
        self._change(lambda clock: clock.leap(change))

    def jump_wallclock(self, seconds: float) -> None:
        """Have the wall clock leap, and system time not: as if somebody had set the host's."""
        change = _ns(seconds, "jump_wallclock")
        self._change(lambda clock: clock.shift_wallclock(change))

    def advance(self, seconds: float) -> None:
        """Have time pass, leaving out when the guest only waits: timers come in their turn.

        None is later than by a hundredth of what has passed, and never by more than 4 s: less than watchdogs bark at. It takes as long as
        the guest is busy meanwhile. A paused guest finds all its timers due when it goes on.
        """
        if seconds < 0:
            raise ConfigError(f"clock: advance({seconds}): time does not pass backwards; jump() does that")
        self._take_timers()
        clock = self._domain.clock
        start = clock.now()
        end = start + _ns(seconds, "advance")
        waits = True
        while clock.now() < end and self._domain.ending is None:
            if self._domain.stands:
                self._leap_to(end)
                return
            view = self._settle(patiently=waits)
            waits, target = view.waits, view.deadline
            if waits:
                target = end if target is None else max(target, clock.now() + _step(start, clock.now()))
            else:
                target = max(clock.now(), min(clock.now() + _BUSY_STEP_NS, end if target is None else target))
            self._leap_to(min(end, target))

    @contextmanager
    def skipping(self) -> Iterator[None]:
        """Leave out, within the `with`, when the guest only waits: for what blocks the caller meanwhile, such as `Guest.run`.

        Timers are as late as with `advance`.
        """
        import threading

        self._take_timers()
        done = threading.Event()
        clock = self._domain.clock
        start = clock.now()

        def skip() -> None:
            while not done.wait(_LOOK_S) and self._domain.ending is None:
                view = self._look()
                if view.waits and view.deadline is not None:
                    self._leap_to(max(view.deadline, clock.now() + _step(start, clock.now())))

        thread = threading.Thread(target=skip, name=f"{self._domain.name}/time", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    # -- how ----------------------------------------------------------------------------------------------------------

    def _take_timers(self) -> None:
        """Have timers that the kernel keeps be ours: from the first time on that somebody makes the guest's time what he wants it to be."""
        if not self._has_timers:
            self._has_timers = True
            if self._domain.kernel_events is not None:
                self._domain.kernel_events.forbid()

    def _change(self, action: Callable[[SystemClock], None]) -> None:
        self._take_timers()
        domain = self._domain
        with domain.host.lock:
            if domain.ending is None and all(vcpu.sleeps for vcpu in domain.vcpus):
                domain.timekeeper.change(action)
                return
        with self._processors.held():
            if self._domain.ending is None:
                self._domain.timekeeper.change(action)

    def _leap_to(self, moment: int) -> None:
        def leap(clock: SystemClock) -> None:
            clock.leap(max(0, moment - clock.now()))

        self._change(leap)

    def _look(self) -> _View:
        """Return how things are; under the lock under which timers run out, so that none is between two states."""
        domain = self._domain
        with domain.host.lock:
            now = domain.clock.now()
            waits = ticked = True
            deadlines = [domain.watchdogs.next_deadline()]
            for vcpu in domain.vcpus:
                deadline = vcpu.next_deadline()
                deadlines.append(deadline)
                due = deadline is not None and deadline <= now
                waits = waits and vcpu.waits and not due
                ticked = ticked and not due and (vcpu.waits or (deadline is not None and not vcpu.event_pending()))
        return _View(waits, ticked, min((each for each in deadlines if each is not None), default=None))

    def _settle(self, *, patiently: bool) -> _View:
        """Wait for a while until all vCPUs wait; impatiently, until they have dealt with what was due."""
        limit = time.monotonic() + _STEP_LIMIT_S
        view = self._look()
        while not (view.waits or (view.ticked and not patiently)) and time.monotonic() < limit:
            with self._domain.asleep:
                self._domain.asleep.wait(_LOOK_S)
                view = self._look()
        return view


def _step(start: int, now: int) -> int:
    """Return how much time may pass at once when so much has passed: system times in ns."""
    return min((now - start) // _PRECISION, _MAX_STEP_NS)


def _ns(seconds: float, what: str) -> int:
    if not math.isfinite(seconds) or abs(seconds) > _MAX_S:
        raise ConfigError(f"clock: {what}({seconds}) is not a time in seconds, of at most a hundred years")
    return int(seconds * _NS)
