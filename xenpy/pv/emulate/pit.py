"""The i8254 timer: three counters behind ports 0x40 to 0x43, and the speaker port that gates the third.

Nothing interrupts: a PV guest has timers of its own, and uses this one to measure how fast its time-stamp counter runs. Counters are
computed when looked at. Counting in BCD is not implemented; the bit is kept, for the status byte, and otherwise ignored.

Ref: Intel 8254 Programmable Interval Timer data sheet, order number 231164
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ChannelState = tuple[bool, int, int, int, int | None, int | None, int, int | None, bool, tuple[int, ...], int | None]
"""A counter as plain data: gate, mode, access, BCD, reload, start and stop in ticks, then what is half written or read."""

HZ: Final = 1_193_182
_NS_PER_S: Final = 1_000_000_000
_MODULUS: Final = 1 << 16

_READ_BACK: Final = 3
_READ_BACK_NO_COUNT: Final = 1 << 5
_READ_BACK_NO_STATUS: Final = 1 << 4
_ACCESS_LATCH, _ACCESS_LOW, _ACCESS_HIGH, _ACCESS_BOTH = range(4)
_GATE_STARTS: Final = frozenset((1, 2, 3, 5))
"""Modes in which the gate's rise starts the count anew; in the others a low gate stops the clock."""
_GATE_ONLY: Final = frozenset((1, 5))
"""Modes that count after a rise of the gate only, and then whatever the gate does."""

_SPEAKER_GATE: Final = 1 << 0
_SPEAKER_DATA: Final = 1 << 1
_SPEAKER_REFRESH: Final = 1 << 4
_SPEAKER_OUT: Final = 1 << 5
_REFRESH_NS: Final = 15_085
"""How long the refresh bit keeps its value: 18 ticks of the timer."""
_SPEAKER_CHANNEL: Final = 2


class Channel:
    """One counter. `ticks` returns how often the timer's input has ticked."""

    def __init__(self, ticks: Callable[[], int], *, gate: bool) -> None:
        self._ticks = ticks
        self._gate = gate
        self._mode = 0
        self._access = _ACCESS_BOTH
        self._bcd = 0
        self._reload: int | None = None
        self._started: int | None = None
        self._stopped_after = 0
        self._low_written: int | None = None
        self._high_next = False
        self._latched: list[int] = []
        self._status: int | None = None

    def state(self) -> ChannelState:
        """Return the counter as plain data."""
        return (
            self._gate, self._mode, self._access, self._bcd, self._reload, self._started, self._stopped_after,
            self._low_written, self._high_next, tuple(self._latched), self._status,
        )  # fmt: skip

    def restore(self, state: ChannelState) -> None:
        """Take over what `state` returned, with a clock that goes on from there."""
        (
            self._gate, self._mode, self._access, self._bcd, self._reload, self._started, self._stopped_after,
            self._low_written, self._high_next, latched, self._status,
        ) = state  # fmt: skip
        self._latched = list(latched)

    @property
    def gate(self) -> bool:
        """Tell whether the gate is high."""
        return self._gate

    @gate.setter
    def gate(self, high: bool) -> None:
        if high == self._gate:
            return
        elapsed = self._elapsed()
        self._gate = high
        if not high:
            self._stopped_after = elapsed
        elif self._reload is not None:
            self._started = self._ticks() - (0 if self._mode in _GATE_STARTS else self._stopped_after)

    def _elapsed(self) -> int:
        """Return the ticks counted since the count was loaded."""
        if self._started is None:
            return 0
        if not self._gate and self._mode not in _GATE_ONLY:
            return self._stopped_after
        return self._ticks() - self._started

    @property
    def output(self) -> bool:
        """Tell whether the output is high."""
        if self._reload is None or self._started is None:
            return self._mode != 0
        elapsed = self._elapsed()
        if self._mode in (0, 1):
            return elapsed >= self._reload
        if self._mode == 2:
            return not self._gate or elapsed % self._reload != self._reload - 1
        if self._mode == 3:
            return not self._gate or elapsed % self._reload < (self._reload + 1) // 2
        return elapsed != self._reload

    @property
    def count(self) -> int:
        """Return the 16-bit count."""
        reload = _MODULUS if self._reload is None else self._reload
        elapsed = self._elapsed()
        if self._mode == 2:
            left = reload - elapsed % reload
        elif self._mode == 3:
            left = (reload & ~1) - 2 * elapsed % max(reload & ~1, 2)
        else:
            left = reload - elapsed
        return left % _MODULUS

    def control(self, access: int, mode: int, bcd: int) -> None:
        """Take a control word: latch the count, or set the mode and wait for a count."""
        if access == _ACCESS_LATCH:
            self.latch_count()
            return
        self._access = access
        self._mode = mode & 3 if mode > 5 else mode
        self._bcd = bcd
        self._reload = self._started = self._low_written = self._status = None
        self._stopped_after = 0
        self._high_next = False
        self._latched = []

    def latch_count(self) -> None:
        """Keep the count for the next read or two; a latch before those is ignored."""
        if not self._latched:
            low, high = self.count & 0xFF, self.count >> 8
            self._latched = {_ACCESS_LOW: [low], _ACCESS_HIGH: [high]}.get(self._access, [low, high])

    def latch_status(self) -> None:
        """Keep the status for the next read; a latch before that is ignored."""
        if self._status is None:
            null_count = self._reload is None
            self._status = self.output << 7 | null_count << 6 | self._access << 4 | self._mode << 1 | self._bcd

    def write(self, value: int) -> None:
        """Take a byte of the count; the last one loads it."""
        if self._access == _ACCESS_BOTH:
            if self._low_written is None:
                self._low_written = value
                return
            value = value << 8 | self._low_written
            self._low_written = None
        elif self._access == _ACCESS_HIGH:
            value <<= 8
        self._reload = value or _MODULUS
        self._stopped_after = 0
        self._started = None if self._mode in _GATE_ONLY else self._ticks()

    def read(self) -> int:
        """Return the next byte: of a latched status, a latched count, or the count as it is."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        high = self._access == _ACCESS_HIGH or self._high_next
        if self._access == _ACCESS_BOTH:
            self._high_next = not self._high_next
        return self.count >> 8 if high else self.count & 0xFF


class Pit:
    """The timer of one domain; `now_ns` is its clock, in ns. It has no lock: the domain's serialises its ports."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self.channels = tuple(Channel(self._ticks, gate=number != _SPEAKER_CHANNEL) for number in range(3))
        self._speaker_data = 0

    def state(self) -> tuple[tuple[ChannelState, ...], int]:
        """Return the counters and the speaker's bit as plain data."""
        return tuple(channel.state() for channel in self.channels), self._speaker_data

    def restore(self, state: tuple[tuple[ChannelState, ...], int]) -> None:
        """Take over what `state` returned."""
        channels, self._speaker_data = state
        for channel, saved in zip(self.channels, channels, strict=True):
            channel.restore(saved)

    def _ticks(self) -> int:
        return self._now_ns() * HZ // _NS_PER_S

    def read(self, register: int) -> int:
        """Return a byte of counter 0, 1 or 2; 0 for register 3, which can only be written."""
        return self.channels[register].read() if register < len(self.channels) else 0

    def write(self, register: int, value: int) -> None:
        """Write a byte to counter 0, 1 or 2, or a control word to register 3."""
        if register < len(self.channels):
            self.channels[register].write(value)
        elif value >> 6 == _READ_BACK:
            self._read_back(value)
        else:
            self.channels[value >> 6].control(value >> 4 & 3, value >> 1 & 7, value & 1)

    def _read_back(self, value: int) -> None:
        for number, channel in enumerate(self.channels):
            if value >> number + 1 & 1:
                if not value & _READ_BACK_NO_COUNT:
                    channel.latch_count()
                if not value & _READ_BACK_NO_STATUS:
                    channel.latch_status()

    def read_speaker(self) -> int:
        """Return port 0x61: the gate and the output of counter 2, the speaker's bit, and the one that memory refresh toggles."""
        channel = self.channels[_SPEAKER_CHANNEL]
        return (
            (_SPEAKER_GATE if channel.gate else 0)
            | self._speaker_data
            | (_SPEAKER_REFRESH if self._now_ns() // _REFRESH_NS & 1 else 0)
            | (_SPEAKER_OUT if channel.output else 0)
        )

    def write_speaker(self, value: int) -> None:
        """Write port 0x61: the gate of counter 2, and the speaker's bit, which nobody hears."""
        self.channels[_SPEAKER_CHANNEL].gate = bool(value & _SPEAKER_GATE)
        self._speaker_data = value & _SPEAKER_DATA
