"""System time and the timers of a vCPU, by a clock that stands still."""

from __future__ import annotations

import time

import pytest

from xenpy.abi.event_channel import VIRQ
from xenpy.errors import Errno, XenError
from xenpy.pv.time import MAX_PERIOD_NS, MIN_PERIOD_NS, SystemClock, VcpuTimers

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


def test_a_deadline_in_the_past_fires_at_once_unless_the_caller_minds(rig: Rig) -> None:
    with pytest.raises(XenError) as caught:
        rig.timers.set_singleshot(999 * MS, must_be_future=True)
    assert caught.value.errno is Errno.ETIME
    assert rig.timers.next_deadline() is None
    rig.timers.set_singleshot(1000 * MS, must_be_future=True)
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
