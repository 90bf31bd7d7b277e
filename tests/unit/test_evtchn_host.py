"""Domain 0's ports: events that call Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from evtchn_rig import Guest, two_guests

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import XenError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.pv.evtchn import HostPorts


@pytest.fixture
def pair() -> Iterator[tuple[Guest, HostPorts]]:
    with two_guests() as (one, _, host):
        yield one, host


def connect(guest: Guest, host: HostPorts) -> tuple[int, int]:
    port = guest.evtchn.alloc_unbound(0)
    return port, host.bind_interdomain(1, port)


def test_an_event_waits_for_a_handler_and_then_calls_it(pair: tuple[Guest, HostPorts]) -> None:
    guest, host = pair
    port, ours = connect(guest, host)
    calls: list[int] = []
    assert host.is_pending(ours), "binding makes the port pending"
    host.set_handler(ours, lambda: calls.append(ours))
    assert calls == [ours]
    guest.evtchn.send(port)
    guest.evtchn.send(port)
    assert calls == [ours] * 3
    host.set_handler(ours, None)
    guest.evtchn.send(port)
    guest.evtchn.send(port)
    assert calls == [ours] * 3
    host.set_handler(ours, lambda: calls.append(-1))
    assert calls[3:] == [-1]


def test_a_handler_may_answer(pair: tuple[Guest, HostPorts]) -> None:
    guest, host = pair
    port, ours = connect(guest, host)
    host.set_handler(ours, lambda: host.send(ours))
    assert guest.drain_2l(0) == [port]
    guest.evtchn.send(port)
    assert guest.drain_2l(0) == [port]


def test_handlers_do_not_nest(pair: tuple[Guest, HostPorts]) -> None:
    _, host = pair
    first = host.alloc_unbound(DOMID_SELF)
    second = host.bind_interdomain(0, first)
    log: list[str] = []
    rounds = iter(range(500))

    def ping() -> None:
        log.append("ping begins")
        if next(rounds, None) is not None:
            host.send(first)
        log.append("ping ends")

    def pong() -> None:
        log.append("pong begins")
        host.send(second)
        log.append("pong ends")

    host.set_handler(second, pong)
    host.set_handler(first, ping)
    host.send(second)
    assert len(log) > 1000
    assert all(begin.split()[0] == end.split()[0] for begin, end in zip(log[::2], log[1::2], strict=True))


def test_events_of_a_closed_port_call_nothing(pair: tuple[Guest, HostPorts]) -> None:
    guest, host = pair
    port, ours = connect(guest, host)
    other, theirs = connect(guest, host)
    calls: list[str] = []

    def close_the_other() -> None:
        guest.evtchn.send(other)
        host.close(theirs)

    host.set_handler(theirs, lambda: calls.append("other"))
    calls.clear()
    host.set_handler(ours, close_the_other)
    assert calls == [], "the event was under way when the port was closed"
    with pytest.raises(XenError):
        host.set_handler(theirs, lambda: None)
    assert host.bind_interdomain(1, other) == theirs
    guest.evtchn.send(port)


def test_a_handler_changed_while_its_event_waits_is_called_once(pair: tuple[Guest, HostPorts]) -> None:
    guest, host = pair
    _, ours = connect(guest, host)
    other, theirs = connect(guest, host)
    calls: list[str] = []
    host.set_handler(theirs, lambda: calls.append("old"))
    calls.clear()

    def change() -> None:
        guest.evtchn.send(other)
        host.set_handler(theirs, None)
        host.set_handler(theirs, lambda: calls.append("new"))

    host.set_handler(ours, change)
    assert calls == ["new"]


def test_a_handler_that_raises_does_not_stop_those_after_it(pair: tuple[Guest, HostPorts]) -> None:
    guest, host = pair
    port, ours = connect(guest, host)
    calls: list[int] = []
    host.set_handler(ours, lambda: calls.append(1))

    def fail() -> None:
        raise ValueError("a bug")

    host.set_handler(ours, fail)
    with pytest.raises(ValueError, match="a bug"):
        guest.evtchn.send(port)
    host.set_handler(ours, lambda: calls.append(2))
    guest.evtchn.send(port)
    assert calls == [1, 2]


def test_a_guest_may_have_closed_its_end(pair: tuple[Guest, HostPorts]) -> None:
    guest, host = pair
    port, ours = connect(guest, host)
    guest.evtchn.close(port)
    host.send(ours)
    host.close(ours)
    assert host.describe() == []
