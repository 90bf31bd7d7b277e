"""System time and the timers of a vCPU, by a clock that stands still."""

from __future__ import annotations

import time
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.abi.event_channel import VIRQ
from xenpy.domain.timekeeping import scale_of
from xenpy.domain.watchdogs import Watchdogs
from xenpy.errors import Errno, XenError
from xenpy.loop import Deadline
from xenpy.pv.time import MAX_PERIOD_NS, MIN_PERIOD_NS, SystemClock, VcpuTimers

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.domain.domain import Domain

MS = 1_000_000


class StoppedClock(SystemClock):
    """A clock that the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000 * MS

    def now(self) -> int:
        return self.time


class Virqs:
    """Stands in for event channels; records what was raised."""

    def __init__(self) -> None:
        self.raised: list[tuple[int, int]] = []

    def raise_virq(self, virq: int, vcpu_id: int) -> None:
        self.raised.append((virq, vcpu_id))


class Rig:
    def __init__(self) -> None:
        self.clock = StoppedClock()
        self.virqs = Virqs()
        self.rearmed = 0
        self.timers = VcpuTimers(self.clock, self.virqs, 3, self.rearm)

    def rearm(self) -> None:
        self.rearmed += 1

    def at(self, now: int) -> bool:
        """Let time pass and return whether the timers fired."""
        self.clock.time = now
        before = len(self.virqs.raised)
        fired = self.timers.expire()
        assert self.virqs.raised[before:] == [(VIRQ.TIMER, 3)] * fired
        return fired


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_nothing_is_due_at_first(rig: Rig) -> None:
    assert rig.timers.next_deadline() is None
    assert not rig.at(1 << 62)


def test_a_single_shot_fires_once(rig: Rig) -> None:
    rig.timers.set_singleshot(1500 * MS)
    assert rig.rearmed == 1
    assert rig.timers.next_deadline() == 1500 * MS
    assert not rig.at(1500 * MS - 1)
    assert rig.at(1500 * MS)
    assert not rig.at(1600 * MS)
    assert rig.timers.next_deadline() is None


def test_a_single_shot_is_replaced_and_stopped(rig: Rig) -> None:
    rig.timers.set_singleshot(1500 * MS)
    rig.timers.set_singleshot(1700 * MS)
    assert not rig.at(1600 * MS)
    rig.timers.stop_singleshot()
    assert rig.rearmed == 3
    assert not rig.at(1800 * MS)


def test_a_deadline_in_the_past_fires_at_once(rig: Rig) -> None:
    rig.timers.set_singleshot(0)
    assert rig.at(1000 * MS)


@pytest.mark.parametrize("period", [0, 1, MIN_PERIOD_NS - 1, MAX_PERIOD_NS + 1, (1 << 64) - 1])
def test_periods_have_limits(rig: Rig, period: int) -> None:
    with pytest.raises(XenError) as caught:
        rig.timers.set_periodic(period)
    assert caught.value.errno is Errno.EINVAL
    assert rig.timers.next_deadline() is None


def test_a_periodic_timer_keeps_its_beat_and_makes_up_for_nothing(rig: Rig) -> None:
    rig.timers.set_periodic(10 * MS)
    assert rig.timers.next_deadline() == 1010 * MS
    assert rig.at(1010 * MS)
    assert rig.at(1023 * MS)
    assert rig.timers.next_deadline() == 1030 * MS
    assert rig.at(2004 * MS), "many were missed"
    assert not rig.at(2004 * MS)
    assert rig.timers.next_deadline() == 2010 * MS
    rig.timers.stop_periodic()
    assert not rig.at(3000 * MS)


def test_both_at_once_is_one_interrupt(rig: Rig) -> None:
    rig.timers.set_periodic(10 * MS)
    rig.timers.set_singleshot(1005 * MS)
    assert rig.timers.next_deadline() == 1005 * MS
    assert rig.at(1010 * MS)
    assert rig.timers.next_deadline() == 1020 * MS
    rig.timers.set_singleshot(1050 * MS)
    assert rig.at(1020 * MS)
    assert rig.timers.singleshot == 1050 * MS


def test_system_time_goes_on_from_where_it_is_set() -> None:
    clock = SystemClock()
    first = clock.now()
    assert 0 <= first <= clock.now()
    clock.set(1 << 50)
    assert clock.now() >= 1 << 50
    clock.set(0)
    assert clock.now() < 1 << 50


def test_the_wall_clock_tells_when_system_time_was_zero() -> None:
    clock = SystemClock()
    clock.set(100_000_000_000)
    seconds, nanoseconds = clock.wallclock()
    assert 0 <= nanoseconds < 1_000_000_000
    assert abs(seconds + 100 - time.time()) < 60


class TestVirtualTime:
    def test_a_clock_that_stands_still(self) -> None:
        clock = SystemClock()
        clock.set(5_000 * MS)
        clock.set_rate(0)
        now = clock.now()
        assert 5_000 * MS <= now == clock.now()
        assert clock.delay_until(now + 1) is None
        assert clock.delay_until(now) == 0
        assert clock.delay_until(now - 7) == -7
        clock.set_rate(1)
        assert clock.now() >= now

    def test_a_clock_at_another_rate(self) -> None:
        clock = SystemClock()
        clock.set_rate(1000)
        delay = clock.delay_until(clock.now() + 1_000_000 * MS)
        assert delay is not None
        assert 0 < delay <= 1_000 * MS
        clock.set_rate(0.5)
        delay = clock.delay_until(clock.now() + 1_000_000 * MS)
        assert delay is not None
        assert delay > 1_000_000 * MS

    def test_a_leap_and_the_wall_clock(self) -> None:
        clock = SystemClock()
        clock.set_rate(0)
        now, wall = clock.now(), clock.wallclock()
        clock.leap(3600 * 1000 * MS)
        assert clock.now() == now + 3600 * 1000 * MS
        assert clock.wallclock() == wall, "UTC at system time 0 is what it was: the wall clock has leapt as well"
        clock.leap(-(1 << 62))
        assert clock.now() == 0
        clock.shift_wallclock(-1)
        assert clock.wallclock() == divmod(wall[0] * 1000 * MS + wall[1] - 1, 1000 * MS)

    def test_another_clock_goes_on(self) -> None:
        clock, other = SystemClock(), SystemClock()
        clock.set_rate(0)
        clock.leap(77)
        other.restore(clock.state())
        assert other.state() == clock.state()
        assert other.now() == clock.now()

    @given(khz=st.integers(10_000, 10_000_000), rate=st.floats(1e-6, 1e6), ticks=st.integers(0, 1 << 40))
    def test_what_a_guest_computes(self, khz: int, rate: float, ticks: int) -> None:
        mul, shift = scale_of(khz, rate)
        assert 0 < mul < 1 << 32
        assert -32 < shift < 32
        shifted = ticks << shift if shift >= 0 else ticks >> -shift
        got = shifted * mul >> 32
        want = Fraction(rate) * ticks * 1_000_000 / khz
        assert want * (1 - Fraction(1, 1 << 30)) - (1 << max(0, -shift)) - 1 <= got <= want

    @given(ticks=st.integers(0, (1 << 63) - 1))
    def test_no_number_of_ticks_is_any_time_while_it_stands_still(self, ticks: int) -> None:
        mul, shift = scale_of(2_600_000, 0)
        assert mul
        assert (ticks >> -shift) * mul >> 32 == 0


class FakeLoop:
    """A loop whose calls the test makes."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []
        self.later: list[tuple[float, Deadline]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Deadline:
        deadline = Deadline(callback)
        self.later.append((seconds, deadline))
        return deadline

    def run(self) -> float | None:
        """Make the calls that are due; return when the next is."""
        while self.soon:
            self.soon.pop(0)()
        return min((seconds for seconds, deadline in self.later if deadline.callback is not None), default=None)


class Dog:
    """A domain for watchdogs."""

    def __init__(self) -> None:
        self.clock = StoppedClock()
        self.host = SimpleNamespace(loop=FakeLoop())
        self.ended: list[str] = []
        self.watchdogs = Watchdogs(cast("Domain", self))

    def shutdown(self, _reason: int, detail: str) -> None:
        self.ended.append(detail)


def test_watchdogs_go_by_the_domains_time() -> None:
    dog = Dog()
    assert (dog.watchdogs.set(0, 30), dog.watchdogs.set(0, 60)) == (1, 2)
    assert dog.watchdogs.next_deadline() == 31_000 * MS
    assert dog.host.loop.run() == 30
    assert dog.watchdogs.set(1, 100) == 0
    assert dog.host.loop.run() == 60
    dog.clock.time = 61_000 * MS - 1
    dog.watchdogs.clock_changed()
    dog.host.loop.run()
    assert not dog.ended
    dog.clock.time += 1
    dog.watchdogs.clock_changed()
    dog.host.loop.run()
    assert dog.ended == ["watchdog 2 was not fed"]


def test_a_watchdog_that_is_stopped() -> None:
    dog = Dog()
    dog.watchdogs.set(0, 30)
    dog.host.loop.run()
    assert dog.watchdogs.set(1, 0) == 0
    dog.clock.time = 1 << 60
    dog.watchdogs.clock_changed()
    assert dog.host.loop.run() is None
    assert not dog.ended
    with pytest.raises(XenError) as caught:
        dog.watchdogs.set(1, 5)
    assert caught.value.errno is Errno.EINVAL
