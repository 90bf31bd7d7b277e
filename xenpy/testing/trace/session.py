"""A traced run of a guest in the foreground: what `xenpy strace` does around `xenpy.runner.Runner`."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING

from xenpy.testing.trace.record import close
from xenpy.testing.trace.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.domain.inguest import InGuest
    from xenpy.host import Guest
    from xenpy.testing.faults import Injector, Rule
    from xenpy.testing.trace.filters import Filter
    from xenpy.testing.trace.record import Sink


class InGuestCalls(Enum):
    """What becomes of hypercalls that a PV guest makes without leaving it."""

    RECORD = "record"
    IGNORE = "ignore"
    FORBID = "forbid"


class Session:
    """Traces every domain that a runner makes, one after the other, into the same sinks; an observer for `Runner`.

    Time begins when the first domain has been built. `rules` are faults to inject, which count on over reboots.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        only: Filter,
        rules: Sequence[Rule] = (),
        in_guest: InGuestCalls = InGuestCalls.RECORD,
    ) -> None:
        self._sinks = sinks
        self._in_guest = in_guest
        self._forbidding: InGuest | None = None
        self._rules = rules
        self._filter = only
        self._epoch_ns: int | None = None
        self._tracer: Tracer | None = None
        self._injector: Injector | None = None

    def created(self, guest: Guest) -> None:
        """Listen to a new domain, and no more to the one before it."""
        self._detach()
        if self._epoch_ns is None:
            self._epoch_ns = time.perf_counter_ns()
        self._tracer = Tracer(
            guest.host, guest.domain, self._sinks, only=self._filter, epoch_ns=self._epoch_ns,
            in_guest=self._in_guest is InGuestCalls.RECORD,
        )  # fmt: skip
        if self._in_guest is InGuestCalls.FORBID and guest.domain.in_guest is not None:
            self._forbidding = guest.domain.in_guest
            self._forbidding.forbid()
        if self._rules:
            from xenpy.testing.faults import Injector

            self._injector = Injector(guest, self._rules)
            self._injector.attach()
        self._tracer.attach()

    def output(self, data: bytes) -> None:
        """Take note of console output."""
        if self._tracer is not None:
            self._tracer.output(data)

    def _detach(self) -> None:
        if self._tracer is not None:
            self._tracer.detach()
            self._tracer = None
        if self._injector is not None:
            self._injector.detach()
            self._injector = None
        if self._forbidding is not None:
            self._forbidding.allow()
            self._forbidding = None

    def close(self) -> None:
        """Have the sinks write what is left."""
        self._detach()
        close(self._sinks)
