"""A traced run of a guest in the foreground: what `xenpy strace` does around `xenpy.runner.Runner`."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from xenpy import log
from xenpy.config.model import GuestType
from xenpy.testing.trace.tracer import Tracer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.config import DomainConfig
    from xenpy.host import Guest
    from xenpy.testing.faults import Injector, Rule
    from xenpy.testing.trace.filters import Filter
    from xenpy.testing.trace.record import Sink


def without_fast_paths(config: DomainConfig) -> None:
    """Have the PV guests that this process builds from now on leave the guest for every hypercall, so that a trace hears it."""
    if config.type is GuestType.PV:
        from xenpy.domain.pv.domain import PvDomain

        PvDomain.shim_fast = False


class Session:
    """Traces every domain that a runner makes, one after the other, into the same sinks; an observer for `Runner`.

    Time begins when the first domain has been built. `rules` are faults to inject, which count on over reboots.
    """

    def __init__(self, sinks: Sequence[Sink], only: Filter, rules: Sequence[Rule] = ()) -> None:
        self._sinks = sinks
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
        self._tracer = Tracer(guest.host, guest.domain, self._sinks, only=self._filter, epoch_ns=self._epoch_ns)
        if self._rules:
            from xenpy.testing.faults import Injector

            self._injector = Injector(guest.host, guest.domain, self._rules, self._tracer.fault)
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

    def close(self) -> None:
        """Have the sinks write what is left."""
        self._detach()
        for sink in self._sinks:
            try:
                sink.close()
            except OSError as error:
                with suppress(OSError):  # stderr may be what cannot be written
                    log.note(f"the trace is not complete: {error.strerror or error}")
