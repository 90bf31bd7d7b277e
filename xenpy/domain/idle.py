"""Noticing that a guest has halted for good.

A PVH guest powers off by halting every vCPU with interrupts off. The in-kernel LAPIC keeps halted vCPUs inside KVM_RUN, so nobody is
told; but a halted thread uses no processor time, and that is cheap to look at. Only when all of a domain's threads have stood still is
each kicked once and asked.

Ref: xen-doc misc/pvh.pandoc
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import End, Ending

if TYPE_CHECKING:
    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.loop import Deadline

_PERIOD_S: Final = 0.05


class HaltWatch:
    """Ends a domain whose vCPUs all halt with interrupts off. Lives in the loop's thread."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._last: tuple[int, ...] = ()
        self._asked: tuple[int, ...] = ()
        self._halted: dict[int, bool] = {}
        self._deadline: Deadline | None = None
        self._again()

    def _again(self) -> None:
        self._deadline = self._domain.host.loop.call_later(_PERIOD_S, self._look)

    def _used(self) -> tuple[int, ...]:
        """Return each vCPU thread's processor time, in ns."""
        times = []
        for vcpu in self._domain.vcpus:
            ident = vcpu.thread.ident if vcpu.thread is not None and vcpu.thread.is_alive() else None
            times.append(time.clock_gettime_ns(time.pthread_getcpuclockid(ident)) if ident is not None else 0)
        return tuple(times)

    def _look(self) -> None:
        domain = self._domain
        if domain.ending is not None:
            return
        used = self._used()
        if used == self._last and used != self._asked and not domain.stands:
            self._ask()
        self._last = used
        self._again()

    def _ask(self) -> None:
        """Have each vCPU tell, in its own thread, whether it halts for good."""
        self._halted = {}
        for vcpu in self._domain.vcpus:
            vcpu.request(partial(self._answer, vcpu))

    def _answer(self, vcpu: Vcpu) -> None:
        """Take note of one vCPU's answer, in its thread."""
        self._halted[vcpu.vcpu_id] = vcpu.is_halted_for_good()
        if len(self._halted) == len(self._domain.vcpus):
            self._domain.host.loop.call_soon(self._decide)

    def _decide(self) -> None:
        # The kicks themselves took time; remember the sums so that a guest which stays idle is not asked again.
        self._last = self._asked = self._used()
        if all(self._halted.values()):
            self._domain.end(Ending(End.POWEROFF))

    def close(self) -> None:
        """Stop looking."""
        if self._deadline is not None:
            self._deadline.cancel()
