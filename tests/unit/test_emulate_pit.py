"""The i8254 and the other ports, by a clock that the test moves; and calibration as kernels do it."""

from __future__ import annotations

import pytest

from xenpy.pv.emulate import Ports
from xenpy.pv.emulate.pit import HZ, Pit

S = 1_000_000_000
TSC_HZ = 2_600_000_000
CONTROL = 3


class Clock:
    """Time in ns; every access to a port takes `cost`."""

    def __init__(self, cost: int = 0) -> None:
        self.ns = 0
        self.cost = cost

    def __call__(self) -> int:
        self.ns += self.cost
        return self.ns

    def to_tick(self, tick: int) -> None:
        """Go to the moment of a tick of the timer's input."""
        self.ns = -(-tick * S // HZ)


def pit(clock: Clock, control: int, reload: int, channel: int = 0) -> Pit:
    timer = Pit(clock)
    timer.write_speaker(1)
    timer.write(CONTROL, channel << 6 | control)
    timer.write(channel, reload & 0xFF)
    timer.write(channel, reload >> 8)
    return timer


def word(timer: Pit, channel: int = 0) -> int:
    return timer.read(channel) | timer.read(channel) << 8


@pytest.mark.parametrize(
    ("mode", "reload", "expected"),
    [
        (0, 1000, {0: 1000, 1: 999, 999: 1, 1000: 0, 1001: 0xFFFF}),
        (0, 0, {0: 0, 1: 0xFFFF, 65535: 1, 65536: 0}),
        (2, 1000, {0: 1000, 999: 1, 1000: 1000, 2500: 500}),
        (2, 0, {0: 0, 1: 0xFFFF, 65536: 0}),
        (3, 1000, {0: 1000, 1: 998, 499: 2, 500: 1000, 750: 500}),
        (3, 0, {0: 0, 1: 0xFFFE, 32767: 2, 32768: 0}),
        (4, 1000, {0: 1000, 1000: 0, 1001: 0xFFFF}),
        (6, 1000, {999: 1, 1000: 1000}),
    ],
)
def test_counts(mode: int, reload: int, expected: dict[int, int]) -> None:
    clock = Clock()
    timer = pit(clock, 0x30 | mode << 1, reload)
    for tick, count in expected.items():
        clock.to_tick(tick)
        assert word(timer) == count, tick


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        (0, {0: 0, 999: 0, 1000: 1, 5000: 1}),
        (2, {0: 1, 998: 1, 999: 0, 1000: 1, 1999: 0}),
        (3, {0: 1, 499: 1, 500: 0, 999: 0, 1000: 1, 1500: 0}),
        (4, {0: 1, 999: 1, 1000: 0, 1001: 1}),
    ],
)
def test_output(mode: int, changes: dict[int, int]) -> None:
    clock = Clock()
    timer = pit(clock, 0x30 | mode << 1, 1000, channel=2)
    for tick, high in changes.items():
        clock.to_tick(tick)
        assert timer.read_speaker() >> 5 & 1 == high, tick


def test_one_byte_at_a_time() -> None:
    clock = Clock()
    timer = Pit(clock)
    timer.write(CONTROL, 0x10)  # counter 0, low byte, mode 0
    timer.write(0, 0x80)
    clock.to_tick(0x10)
    assert [timer.read(0), timer.read(0)] == [0x70, 0x70]
    timer.write(CONTROL, 0x60)  # counter 1, high byte
    timer.write(1, 0x80)
    clock.to_tick(0x10 + 0x100)
    assert [timer.read(1), timer.read(1)] == [0x7F, 0x7F]


def test_a_latched_count_stands_still_until_it_is_read() -> None:
    clock = Clock()
    timer = pit(clock, 0x34, 0x4000)
    clock.to_tick(0x10)
    timer.write(CONTROL, 0x00)
    clock.to_tick(0x1234)
    timer.write(CONTROL, 0x00)
    assert [word(timer), word(timer)] == [0x3FF0, 0x4000 - 0x1234]


def test_read_back() -> None:
    clock = Clock()
    timer = pit(clock, 0x36, 1000)
    timer.write(CONTROL, 0xC2)  # count and status of counter 0
    clock.to_tick(100)
    assert [timer.read(0), word(timer), word(timer)] == [0x80 | 0x36, 1000, 800]
    timer.write(CONTROL, 0x70)  # counter 1: no count yet
    timer.write(CONTROL, 0xE0 | 0xE)  # status of all three
    assert [timer.read(channel) for channel in range(3)] == [0x80 | 0x36, 0x40 | 0x30, 0x40 | 0x30]


def test_a_low_gate_stops_counter_2() -> None:
    clock = Clock()
    timer = pit(clock, 0x30, 1000, channel=2)
    clock.to_tick(100)
    timer.write_speaker(0)
    clock.to_tick(5000)
    assert word(timer, 2) == 900
    assert timer.read_speaker() & 0x21 == 0
    timer.write_speaker(1)
    clock.to_tick(5900)
    assert timer.read_speaker() & 0x21 == 0x21
    assert word(timer, 2) == 0


@pytest.mark.parametrize("mode", [1, 2, 3, 5])
def test_a_rising_gate_starts_counter_2_again(mode: int) -> None:
    clock = Clock()
    timer = pit(clock, 0x30 | mode << 1, 1000, channel=2)
    clock.to_tick(100)
    timer.write_speaker(0)
    timer.write_speaker(1)
    clock.to_tick(110)
    assert word(timer, 2) == (980 if mode == 3 else 990)


def test_one_shot_waits_for_the_gate() -> None:
    clock = Clock()
    timer = pit(clock, 0x32, 1000, channel=2)
    clock.to_tick(2000)
    assert timer.read_speaker() & 0x20
    timer.write_speaker(0)
    timer.write_speaker(1)
    clock.to_tick(2999)
    assert not timer.read_speaker() & 0x20
    clock.to_tick(3000)
    assert timer.read_speaker() & 0x20


@pytest.mark.parametrize("reload", [1, 2, 3])
@pytest.mark.parametrize("mode", range(8))
def test_the_shortest_counts(mode: int, reload: int) -> None:
    clock = Clock()
    timer = pit(clock, 0x30 | mode << 1, reload, channel=2)
    for tick in range(5):
        clock.to_tick(tick)
        assert 0 <= word(timer, 2) <= 0xFFFF
        assert timer.read_speaker() in range(0x40)


def test_a_day_does_not_drift() -> None:
    clock = Clock()
    timer = pit(clock, 0x34, 0)
    ticks = HZ * 86400
    clock.to_tick(ticks)
    assert word(timer) == -ticks % 65536


# -- ports ------------------------------------------------------------------------------------------------------------


def test_nothing_is_where_xen_has_nothing() -> None:
    ports = Ports(Clock())
    for port in (0x20, 0x71, 0x80, 0x3F8, 0xCF9, 0xCFC, 0xFFFF):
        for size in (1, 2, 4):
            ports.write(port, size, 0)
            assert ports.read(port, size) == (1 << 8 * size) - 1


@pytest.mark.parametrize("port", [0x40, 0x41, 0x60])
def test_neighbours_of_the_timers_ports(port: int) -> None:
    ports = Ports(Clock())
    ports.write(port, 1, 0)
    assert ports.read(port, 1) == 0xFF


def test_index_registers_read_back() -> None:
    ports = Ports(Clock())
    ports.write(0x70, 1, 0x8A)
    ports.write(0xCF8, 4, 0x8000_1234)
    assert ports.read(0x70, 2) == 0xFF8A
    assert ports.read(0xCF8, 4) == 0x8000_1234
    assert ports.read(0xCF8, 1) == 0xFF


def test_the_timers_ports() -> None:
    clock = Clock()
    ports = Ports(clock)
    ports.write(0x61, 1, 3)
    ports.write(0x43, 1, 0xB0)
    ports.write(0x42, 1, 0xE8)
    ports.write(0x42, 1, 0x03)
    assert ports.read(0x61, 1) & 0x23 == 3
    assert ports.read(0x42, 1) | ports.read(0x42, 1) << 8 == 1000
    assert ports.read(0x43, 1) == 0
    clock.to_tick(1000)
    assert ports.read(0x61, 1) & 0x20


def tsc(clock: Clock) -> int:
    return clock.ns * TSC_HZ // S


@pytest.mark.parametrize("cost", [500, 2_000, 60_000, 400_000])
def test_calibration_by_the_output(cost: int) -> None:
    """Wait 50 ms for counter 2 to run down, and see how far the time-stamp counter got."""
    clock = Clock(cost)
    ports = Ports(clock)
    count = HZ * 50 // 1000
    ports.write(0x61, 1, ports.read(0x61, 1) & ~2 | 1)
    ports.write(0x43, 1, 0xB0)
    ports.write(0x42, 1, count & 0xFF)
    ports.write(0x42, 1, count >> 8)
    start = tsc(clock)
    reads = 0
    while not ports.read(0x61, 1) & 0x20:
        reads += 1
        assert reads < 200_000
    assert (tsc(clock) - start) * 20 == pytest.approx(TSC_HZ, rel=0.0002 + 3 * cost / 50_000_000)


@pytest.mark.parametrize("cost", [500, 2_000])
def test_calibration_by_the_high_byte(cost: int) -> None:
    """Watch the high byte of a free-running counter 2 change 40 times."""
    clock = Clock(cost)
    ports = Ports(clock)
    ports.write(0x61, 1, 1)
    ports.write(0x43, 1, 0xB0)
    ports.write(0x42, 1, 0xFF)
    ports.write(0x42, 1, 0xFF)

    def seen(high: int) -> int:
        """Return the TSC when the high byte was no longer this."""
        for _ in range(50_000):
            ports.read(0x42, 1)
            if ports.read(0x42, 1) != high:
                return tsc(clock)
        raise AssertionError("the counter stands still")

    seen(0xFF)
    first = seen(0xFE)
    for high in range(0xFD, 0xFE - 41, -1):
        last = seen(high)
    assert (last - first) * HZ / (40 * 256) == pytest.approx(TSC_HZ, rel=0.003)
