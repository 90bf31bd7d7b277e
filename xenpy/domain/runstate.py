"""A vCPU's runstate without the kernel's help: what the host's scheduler accounts for its thread.

Ref: xen/include/public/vcpu.h, struct vcpu_runstate_info
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from struct import pack
from typing import TYPE_CHECKING, Final

from xenpy.abi.vcpu import RUNSTATE, XEN_RUNSTATE_UPDATE
from xenpy.codec import plain
from xenpy.domain.areas import RUNSTATE_LAYOUTS, Area
from xenpy.errors import XenError

if TYPE_CHECKING:
    from xenpy.domain.vcpu import Vcpu
    from xenpy.pv.time import SystemClock

Runstate = tuple[int, int, tuple[int, int, int, int]]
"""(RUNSTATE_*, since when, (ns running, ns runnable, ns blocked, ns offline))"""

_PERIOD_NS: Final = 10_000_000
"""The guest's copy is brought up to date no more often than this."""
_QUIET_PERIOD_NS: Final = 100_000_000
"""And so much later, at the latest, while the vCPU has no other reason to leave the guest."""
_COST_RATIO: Final = 64
"""Nor more often than once in so many times what it takes, which is long on a slow host."""
_PERIOD_MAX_NS: Final = 1_000_000_000
_SCHEDSTAT_SIZE: Final = 128


@plain
@dataclass(frozen=True, slots=True)
class RunstateState:
    """An account as plain data: when it began, how long it has (run, waited), in ns of system time; where the guest wants a copy."""

    started: int
    used: tuple[int, int]
    offline_since: int | None
    offline_ns: int
    area: Area | None
    wide: bool
    update_flag: bool


class ThreadRunstate:
    """The account of one vCPU, from the clocks of the thread that carries it."""

    def __init__(self, clock: SystemClock) -> None:
        self._clock = clock
        self._started = clock.now()
        self._before = 0, 0
        """What of (running, waiting) belongs to the time before the clock last changed, in system time."""
        self._host_before = 0, 0
        """Both then, in the host's time."""
        self._offline_since: int | None = None
        self._offline_ns = 0
        self._cpu_clock: int | None = None
        self._schedstat = ""
        self.area: Area | None = None
        """Where the guest wants a copy, in the layout of a `wide` one of 64 bits or not."""
        self.wide = True
        self._next = 0
        self.update_flag = False

    def adopt_thread(self) -> None:
        """Account the calling thread."""
        self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
        self._schedstat = f"/proc/self/task/{threading.get_native_id()}/schedstat"

    def set_online(self, online: bool) -> None:
        """Take note that the vCPU goes online or offline, or stays so."""
        now = self._clock.now()
        if online:
            self._offline_ns = self._offline(now)
            self._offline_since = None
        elif self._offline_since is None:
            self._offline_since = now

    def _offline(self, now: int) -> int:
        """Return for how long the vCPU has been offline, in ns."""
        return self._offline_ns + (max(0, now - self._offline_since) if self._offline_since is not None else 0)

    def read(self, state: RUNSTATE = RUNSTATE.running) -> Runstate:
        """Return the account as of now."""
        now = self._clock.now()
        total = max(0, now - self._started)
        offline = min(total, self._offline(now))
        if self._offline_since is not None:
            state = RUNSTATE.offline
        running, waited = self._used()
        running = min(total - offline, running)
        waited = min(waited, total - offline - running)
        return state, now, (running, waited, total - offline - running - waited, offline)

    def state(self) -> RunstateState:
        """Return the account as plain data."""
        return RunstateState(
            self._started, self._used(), self._offline_since, self._offline_ns, self.area, self.wide, self.update_flag
        )

    def restore(self, state: RunstateState) -> None:
        """Go on with an account of the same system time; another thread will carry the vCPU."""
        self._started, self._before, self.update_flag = state.started, state.used, state.update_flag
        self._offline_since, self._offline_ns = state.offline_since, state.offline_ns
        self.area, self.wide = state.area, state.wide

    def _used(self) -> tuple[int, int]:
        """Return how long the thread has run and waited, in system time."""
        if self._cpu_clock is None:
            return self._before
        rate = self._clock.rate
        running, waited = (
            before + (now - since if rate == 1 else int((now - since) * rate))
            for before, now, since in zip(self._before, self._host(self._cpu_clock), self._host_before, strict=True)
        )
        return running, waited

    def _host(self, cpu_clock: int) -> tuple[int, int]:
        """Return how long the thread has run and waited, in the host's time; what it last was if the thread has ended."""
        try:
            return time.clock_gettime_ns(cpu_clock), self._waited()
        except OSError:
            return self._host_before

    def clock_changes(self) -> None:
        """Settle the account before the clock leaps or goes at another rate."""
        self._before = self._used()
        if self._cpu_clock is not None:
            self._host_before = self._host(self._cpu_clock)
        self._next = 0

    def _waited(self) -> int:
        """Return how long the thread has waited for a processor, in ns. Ref: Linux Documentation/scheduler/sched-stats"""
        try:
            fd = os.open(self._schedstat, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return 0  # the thread is gone
        try:
            return int(os.read(fd, _SCHEDSTAT_SIZE).split()[1])
        except (OSError, ValueError, IndexError):
            return 0  # a kernel without CONFIG_SCHED_INFO
        finally:
            os.close(fd)

    def publication_at(self) -> int | None:
        """Return the system time at which the guest's copy wants to be brought up to date, None if there is none."""
        return None if self.area is None else self._next + _QUIET_PERIOD_NS

    def publish(self, vcpu: Vcpu, *, now: bool = False) -> None:
        """Bring the guest's copy up to date if it is due, or `now`. Under the host's lock."""
        if self.area is None:
            return
        started = self._clock.now()
        if started < self._next and not now:
            return
        state, entered, times = self.read()
        flag = XEN_RUNSTATE_UPDATE if self.update_flag else 0
        layout = RUNSTATE_LAYOUTS[self.wide]
        with suppress(XenError):  # it is not there now
            if flag:
                self.area.write(vcpu, pack(layout, state, entered | flag, *times))
            self.area.write(vcpu, pack(layout, state, entered, *times))
        done = self._clock.now()
        self._next = done + min(max(_PERIOD_NS, _COST_RATIO * (done - started)), _PERIOD_MAX_NS)
