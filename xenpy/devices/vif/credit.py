"""rate=: how many bytes may leave a guest in each interval.

Ref: xl-network-configuration(5), rate
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpy.config.vif import VifRate

_US: Final = 1_000_000


class Credit:
    """A bucket of bytes, filled anew at the start of each interval. Times are in seconds."""

    def __init__(self, rate: VifRate, now: float) -> None:
        self._full = rate.bytes_per_interval
        self._interval = rate.interval_us / _US
        self._left = self._full
        self._next = now + self._interval

    def take(self, size: int, now: float) -> float:
        """Spend `size` bytes and return 0, or return how many seconds to wait before asking again.

        What is larger than a whole interval's credit goes when the bucket is full, and later intervals pay for it.
        """
        if now >= self._next:
            periods = int((now - self._next) / self._interval) + 1
            self._left = min(self._full, self._left + periods * self._full)
            self._next += periods * self._interval
        if size <= self._left or self._left == self._full:
            self._left -= size
            return 0.0
        return self._next - now
