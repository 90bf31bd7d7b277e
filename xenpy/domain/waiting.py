"""A vCPU whose thread waits: for events, for a moment of system time, for others. All under the host's lock."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.domain.domain import Domain
    from xenpy.pv.time import VcpuTimers

LONGEST_DELAY_NS: Final = 1 << 52
"""What a timer of the host's takes: slow clocks make short deadlines long."""


class Waiting(ABC):
    """What of a vCPU waits."""

    timers: VcpuTimers

    def __init__(self, domain: Domain) -> None:
        self.domain: Domain = domain
        self._wake = threading.Condition(domain.host.lock)
        self._poll_ports: frozenset[int] = frozenset()
        self._polls = False
        self._poll_until: int | None = None
        self._woken = False
        self._kick_at = 0

    @property
    @abstractmethod
    def is_idle(self) -> bool:
        """Tell whether the guest has nothing to do on this vCPU until an event comes. From any thread."""

    @abstractmethod
    def event_pending(self) -> bool:
        """Tell whether an upcall waits."""

    @abstractmethod
    def kick(self) -> None:
        """Make the thread look at what has changed. From any thread."""

    @property
    @abstractmethod
    def is_asked(self) -> bool:
        """Tell whether somebody has asked the thread to do something before the guest goes on."""

    def yield_(self) -> None:
        """Let other vCPUs run: their threads get the interpreter while this one sleeps for the shortest time."""
        self._wake.wait(0)

    def poll(self, ports: Sequence[int], timeout_ns: int) -> None:
        """Sleep until a port is pending, an upcall comes, or system time reaches `timeout_ns` (0: no limit)."""
        domain, evtchn = self.domain, self.domain.evtchn
        self._poll_ports = frozenset(ports)
        self._woken = self.is_asked  # what came while it waited for the lock must not wait for an event
        self._polls, self._poll_until = True, timeout_ns or None
        try:
            while not (self._woken or domain.ending is not None or any(evtchn.is_pending(port) for port in ports)):
                self.wait_until(self.next_deadline())
                self.timers.expire()
                if timeout_ns and domain.clock.now() >= timeout_ns:
                    return
        finally:
            self._poll_ports = frozenset()
            self._polls, self._poll_until = False, None

    def next_deadline(self) -> int | None:
        """Return the system time at which something is due that the vCPU has asked for, or None."""
        deadline = self.timers.next_deadline()
        if self._poll_until is None:
            return deadline
        return self._poll_until if deadline is None else min(deadline, self._poll_until)

    @property
    def waits(self) -> bool:
        """Tell whether the guest has nothing to do on this vCPU until an event comes, or its deadline. From any thread."""
        if self._polls:
            return not self._woken
        return self.is_idle and not self.event_pending()

    @property
    def sleeps(self) -> bool:
        """Tell whether the thread is not in the guest, and has to take the host's lock before it is. Under that lock."""
        return self._polls

    def wait_until(self, deadline: int | None) -> None:
        """Sleep until somebody wakes this vCPU, or system time reaches a deadline."""
        delay = None if deadline is None else self.domain.clock.delay_until(deadline)
        if delay is None:
            self._wake.wait()
        elif delay > 0:
            self._wake.wait(min(delay, LONGEST_DELAY_NS) / 1e9)

    def clock_changed(self) -> None:
        """Look at the clock again, which has leapt or goes at another rate. Under the host's lock, from any thread."""
        self._kick_at = 0
        if self.sleeps:
            self._wake.notify_all()
        else:
            self.kick()

    def wake_if_polling(self, port: int) -> None:
        """End a poll that waits for a port."""
        if port in self._poll_ports:
            self._woken = True
            self._wake.notify_all()
