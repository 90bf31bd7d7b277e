"""Events that may reach us late: when they may, and that they come."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from evtchn_rig import Guest, two_guests

from xenpy.domain.pv.late import LATEST_NS, LateEvents
from xenpy.memory import PAGE_SIZE
from xenpy.shim.layout import State

if TYPE_CHECKING:
    from collections.abc import Iterator

FAR_NS = 100 * LATEST_NS


class Rig:
    """A vCPU's late events, and a domain whose port leads to us."""

    def __init__(self, guest: Guest, ours: Any) -> None:
        self.guest = guest
        self.heard = 0
        port = guest.evtchn.alloc_unbound(0)
        remote = ours.bind_interdomain(guest.evtchn.domid, port)
        ours.set_handler(remote, self._hear)
        self.heard = 0
        self.words = memoryview(bytearray(PAGE_SIZE)).cast("Q")
        domain: Any = SimpleNamespace(evtchn=guest.evtchn, late_port=port, host=SimpleNamespace(lock=threading.RLock()))
        self.domain = domain
        self.late = LateEvents(domain, self.words)

    def _hear(self) -> None:
        self.heard += 1

    def allow(self, in_ns: int) -> bool:
        return self.late.allow(time.monotonic_ns() + in_ns)

    @property
    def allowed(self) -> bool:
        port = self.words[State.LATE_PORT]
        assert port in (0, self.domain.late_port)
        return port > 0


@pytest.fixture
def rig() -> Iterator[Rig]:
    with two_guests() as (guest, _, ours):
        yield Rig(guest, ours)


def test_they_may_be_late_while_a_kick_is_near(rig: Rig) -> None:
    assert not rig.allowed
    assert rig.allow(LATEST_NS)
    assert rig.allowed
    for in_ns in (FAR_NS, -FAR_NS):
        assert rig.allow(in_ns)
        assert not rig.allowed


def test_where_more_are_expected_a_kick_is_asked_for_once(rig: Rig) -> None:
    rig.late.expected = True
    assert not rig.allow(FAR_NS)
    assert rig.allowed
    assert rig.allow(FAR_NS)
    assert not rig.allowed


def test_those_of_a_port_that_leads_nowhere_may_not(rig: Rig) -> None:
    rig.guest.evtchn.close(rig.domain.late_port)
    rig.late.expected = True
    assert rig.allow(FAR_NS)
    assert not rig.allowed
    rig.domain.late_port = 0
    assert rig.allow(LATEST_NS)
    assert not rig.allowed


def test_what_was_sent_comes_once(rig: Rig) -> None:
    rig.late.send()
    assert rig.heard == 0
    rig.words[State.SENT] = 1
    rig.late.send()
    rig.late.send()
    assert rig.heard == 1


def test_what_was_sent_from_a_port_that_has_been_closed_since_is_nobodys(rig: Rig) -> None:
    rig.words[State.SENT] = 1
    rig.guest.evtchn.close(rig.domain.late_port)
    rig.late.send()
    assert rig.heard == 0
    assert rig.words[State.SENT] == 0
