"""A domain that is traced, without KVM."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fakes import DOMID, FakeDomain, fake_domain

from xenpy.abi._xen64 import ffi
from xenpy.hypercalls.dispatch import dispatch
from xenpy.pv.evtchn import HostPorts
from xenpy.pv.xenstore import Xenstore
from xenpy.testing.trace import Filter, Recorder, Tracer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.abi.op import Op
    from xenpy.testing.trace import Record

ARGUMENT = 0x7000


class Rig:
    """A `FakeDomain`, the host it needs, and what a tracer has recorded of it."""

    def __init__(self, domain: FakeDomain, *expressions: str) -> None:
        self.domain: Any = domain
        domain.dispatch = dispatch
        lock = threading.RLock()
        self.host: Any = SimpleNamespace(
            lock=lock, store=Xenstore(lock=lock), ports=HostPorts(0, lookup=lambda domid: domain.peer(domid).evtchn)
        )
        domain.peers[0] = SimpleNamespace(evtchn=self.host.ports)
        self.recorder = Recorder()
        self.tracer = Tracer(self.host, self.domain, [self.recorder], only=Filter(expressions))

    @property
    def records(self) -> list[Record]:
        return list(self.recorder.records)

    def call(self, nr: int, *args: int, wide: bool = True, vcpu: int = 0) -> int:
        """Make a hypercall; return its result."""
        return self.domain.dispatch(self.domain.call(nr, *args, wide=wide, vcpu=vcpu))

    def op(self, nr: int, op: Op, *elements: dict[str, Any], wide: bool = True, at: int = 1) -> int:
        """Make a hypercall on structures."""
        call = self.domain.call(nr, wide=wide)
        for index, fields in enumerate(elements):
            call.store(
                op.struct, ARGUMENT + index * call.struct_size(op.struct), ffi.new(f"struct {op.struct} *", fields)
            )
        args = [op.number, ARGUMENT, len(elements)] if at == 1 else [op.number, 0, ARGUMENT]
        return self.call(nr, *args, wide=wide)

    def last(self) -> Record:
        """Return the newest record."""
        return self.recorder.records[-1]


@contextmanager
def traced(*expressions: str, is_pv: bool = False) -> Iterator[Rig]:
    """Make a domain and trace it."""
    with fake_domain(is_pv=is_pv) as domain:
        rig = Rig(domain, *expressions)
        with rig.tracer:
            yield rig
        assert rig.domain.dispatch is dispatch
        del domain.peers[0]


__all__ = ["ARGUMENT", "DOMID", "Rig", "traced"]
