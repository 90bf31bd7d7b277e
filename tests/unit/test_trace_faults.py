"""Faults: the rules' language, and what becomes of what they strike."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from fakes import fake_domain
from trace_rig import DOMID, Rig
from xs_rig import OK, Peer, error

from xenpy.abi import event_channel, memory
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.xs_wire import MsgType
from xenpy.errors import ConfigError, Errno
from xenpy.pv.gnttab import GrantError
from xenpy.testing.faults import Injector, parse
from xenpy.testing.trace.record import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.host import Guest

MEMORY_OP, MULTICALL, SCHED_OP, EVENT_CHANNEL_OP, VERSION = 12, 13, 29, 32, 17


class FakeDevices:
    """Two devices, and what has become of them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ask: Any = None
        self._disk = SimpleNamespace(
            kill=self._kill, trouble=self._trouble, fail=lambda error: self.asked.append(f"fail {error}")
        )
        self._net = SimpleNamespace(set_carrier=lambda up: self.asked.append(f"carrier {up}"))

    def _kill(self) -> bool:
        self.asked.append("kill")
        return True

    def _trouble(self, ask: Any) -> bool:
        self.ask = ask
        return True

    def names(self) -> list[tuple[str, int]]:
        return [("vbd", 51712), ("vif", 0)]

    def find(self, kind: str, devid: int) -> Any:
        return {("vbd", 51712): self._disk, ("vif", 0): self._net}.get((kind, devid))


class Faulty(Rig):
    """A traced domain between which and its hypervisor rules strike."""

    def __init__(self, domain: Any, rules: tuple[str, ...], seed: int) -> None:
        super().__init__(domain)
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.host.loop = SimpleNamespace(
            call_soon=lambda callback: callback(),
            call_later=lambda delay, callback: self.later.append((delay, callback)),
        )
        self.domain.ending = None
        self.devices = FakeDevices()
        self.injector = Injector(
            cast("Guest", SimpleNamespace(host=self.host, domain=self.domain, devices=self.devices)),
            parse(rules, seed),
        )

    @property
    def faults(self) -> list[tuple[str, object]]:
        return [(record.name, record.args["number"]) for record in self.records if record.kind is Kind.FAULT]


@contextmanager
def faulty(*rules: str, seed: int = 0) -> Iterator[Faulty]:
    with fake_domain() as domain:
        rig = Faulty(domain, rules, seed)
        with rig.host.lock, rig.injector, rig.tracer:
            yield rig
        del domain.peers[0]


# -- when a rule strikes --------------------------------------------------------------------------------------------------


def struck(rule: str, times: int = 12, seed: int = 0) -> list[int]:
    (made,) = parse([rule], seed)
    subject = Record(0, 1, 0, Kind.HYPERCALL, "sched_op.yield")
    return [number for number in range(1, times + 1) if made.strikes(subject)]


@pytest.mark.parametrize(
    ("when", "numbers"),
    [
        ("", list(range(1, 13))),
        (":when=3", [3]),
        (":when=10+", [10, 11, 12]),
        (":when=2+4", [2, 6, 10]),
        (":when=4..6", [4, 5, 6]),
        (":chance=0", []),
        (":chance=1", list(range(1, 13))),
    ],
)
def test_when(when: str, numbers: list[int]) -> None:
    assert struck(f"hypercall:drop{when}") == numbers


def test_chance_is_the_same_for_a_seed() -> None:
    rule = "hypercall:drop:chance=0.3"
    first = struck(rule, 400)
    assert first == struck(rule, 400)
    assert first != struck(rule, 400, seed=1)
    assert 60 < len(first) < 180


def test_what_does_not_match_does_not_count() -> None:
    (rule,) = parse(["hypercall=sched_op:drop:when=2"])
    names = ["sched_op.yield", "iret", "sched_op.poll", "iret", "sched_op.poll"]
    assert [rule.strikes(Record(0, 1, 0, Kind.HYPERCALL, name)) for name in names] == [False, False, True, False, False]
    assert not rule.strikes(Record(0, 1, 0, Kind.EVENT, "virq"))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("x:drop", "'x' is none of hypercall, xenstore, event, grant, request, device, clock"),
        ("request=vbd/1:error=ENOMEM", "a request fails with error or error=EOPNOTSUPP"),
        ("request=vbd/1:kill", "request knows error, delay, drop, duplicate, reorder, not kill"),
        ("device:kill", "a device is named like vbd/51712"),
        ("device=vbd/1:kill:when=2", "'when=2' is not at=TIME"),
        ("device=vbd/1:kill:at=soon", "'soon' is not a time"),
        ("clock:jump", "'' is not a time"),
        ("hypercall", "exactly one of error, delay, drop, duplicate is needed"),
        ("hypercall:drop:drop", "exactly one"),
        ("hypercall:reorder", "hypercall knows error, delay, drop, duplicate, not reorder"),
        ("hypercall=nothing_op:drop", "no hypercall nothing_op"),
        ("hypercall:error", "'' is not the name of an error such as ENOMEM"),
        ("grant:error=ENOMEM", "such as bad_gntref"),
        ("grant:error=okay", "'okay' is not the name of an error"),
        ("event:delay=1h", "'1h' is not a time such as 20ms"),
        ("event:delay=0ms", "is not a time"),
        ("event:delay=61s", "at most 60s"),
        ("event:drop=1", "drop takes no value"),
        ("event:drop:when=0", "neither when="),
        ("event:drop:when=5..2", "ends before it begins"),
        ("event:drop:chance=1.5", "nor chance=0.5"),
        ("event:drop:often", "'often' is neither"),
        ("", "is none of"),
    ],
)
def test_rules_that_mean_nothing_are_refused(rule: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([rule])
    assert says in str(caught.value)


# -- hypercalls -----------------------------------------------------------------------------------------------------------


def test_errors_reach_the_guest_and_the_trace() -> None:
    with faulty("hypercall=memory_op.decrease_reservation:error=ENOMEM:when=2") as rig:
        fields = {"extent_start": 0x9000, "nr_extents": 0, "domid": DOMID_SELF}
        results = [rig.op(MEMORY_OP, memory.XENMEM_decrease_reservation, fields) for _ in range(3)]
        assert results == [0, -Errno.ENOMEM, 0]
        refused = [record for record in rig.records if record.error]
        assert [(record.error, record.reason) for record in refused] == [("ENOMEM", "an injected fault")]
        assert rig.faults == [("error", 2)]


def test_a_tracer_that_came_first_sees_what_comes_of_faults() -> None:
    with fake_domain() as domain:
        rig = Faulty(domain, ("hypercall=xen_version:error=EBUSY", "xenstore=a/b:drop"), 0)
        rig.tracer.attach()
        rig.injector.attach()
        assert rig.call(VERSION, 0) == -Errno.EBUSY
        rig.tracer.detach()
        assert rig.call(VERSION, 0) == -Errno.EBUSY
        rig.injector.detach()
        assert rig.call(VERSION, 0) > 0
        assert [(record.kind, record.error) for record in rig.records] == [(Kind.FAULT, ""), (Kind.HYPERCALL, "EBUSY")]
        del domain.peers[0]


def test_without_a_tracer_the_errno_is_the_same() -> None:
    with faulty("hypercall=xen_version:error=EBUSY") as rig:
        rig.tracer.detach()
        assert rig.call(VERSION, 0) == -Errno.EBUSY


def test_dropped_and_duplicated_hypercalls() -> None:
    with faulty("hypercall=sched_op:drop:when=1", "hypercall=sched_op:duplicate:when=2") as rig:
        assert [rig.call(SCHED_OP, 0) for _ in range(3)] == [0, 0, 0]
        assert rig.domain.vcpus[0].asked == [("yield",)] * 3, "none, two, one"


def test_calls_within_a_multicall_are_struck() -> None:
    with faulty("hypercall=xen_version:error=EIO:when=2") as rig:
        for index in range(2):
            rig.domain.put(0x9000 + index * 64, (VERSION, 8), *[(0, 8)] * 7)
        assert rig.call(MULTICALL, 0x9000, 2) == 0
        assert [rig.domain.number(0x9000 + index * 64 + 8, 8) for index in range(2)] == [
            4 << 16 | 20,
            (1 << 64) - Errno.EIO,
        ]


def test_a_delayed_hypercall_lets_others_have_the_lock() -> None:
    with faulty("hypercall=sched_op:delay=20ms") as rig:
        turns: list[str] = []
        call = rig.domain.call(SCHED_OP, 0, checkpoint=lambda: turns.append("checkpoint"))
        assert rig.domain.dispatch(call) == 0
        assert turns, "a domain that ends meanwhile is noticed"
        assert rig.records[-1].latency_ns >= 20_000_000


# -- events ---------------------------------------------------------------------------------------------------------------


@contextmanager
def two_ports(*rules: str) -> Iterator[tuple[Faulty, list[int], list[int]]]:
    """Make two ports to the host; give them and the list of those whose events have arrived."""
    with fake_domain() as domain:
        rig = Faulty(domain, rules, 0)
        heard: list[int] = []
        ports = [domain.evtchn.alloc_unbound(0) for _ in range(2)]
        for port in ports:
            ours = rig.host.ports.bind_interdomain(DOMID, port)
            rig.host.ports.set_handler(ours, lambda port=port: heard.append(port))
        heard.clear()
        with rig.host.lock, rig.injector, rig.tracer:
            yield rig, ports, heard
        del domain.peers[0]


def test_dropped_and_duplicated_events() -> None:
    with two_ports("event:drop:when=1", "event:duplicate:when=2") as (rig, ports, heard):
        for port in (ports[0], ports[1], ports[0]):
            rig.domain.evtchn.send(port)
        assert heard == [ports[1], ports[1], ports[0]]
        assert rig.faults == [("drop", 1), ("duplicate", 2)]


def test_an_event_is_overtaken_by_the_next() -> None:
    with two_ports("event:reorder:when=1") as (rig, ports, heard):
        rig.domain.evtchn.send(ports[0])
        assert heard == []
        rig.domain.evtchn.send(ports[1])
        assert heard == [ports[1], ports[0]]


def test_what_is_held_arrives_at_the_end() -> None:
    with two_ports("event:reorder") as (rig, ports, heard):
        rig.domain.evtchn.send(ports[0])
        rig.injector.detach()
        assert heard == [ports[0]]


def test_delayed_events_arrive_unless_the_port_was_closed() -> None:
    with two_ports("event:delay=30ms") as (rig, ports, heard):
        rig.domain.evtchn.send(ports[0])
        rig.domain.evtchn.send(ports[1])
        assert heard == []
        assert [delay for delay, _ in rig.later] == [0.03, 0.03]
        rig.domain.evtchn.close(ports[1])
        for _, callback in rig.later:
            callback()
        assert heard == [ports[0]]


def test_events_by_what_they_are_for() -> None:
    with two_ports("event=console:drop") as (rig, ports, heard):
        rig.host.store.write(f"/local/domain/{DOMID}/console/port", str(ports[1]))
        for port in ports:
            rig.domain.evtchn.send(port)
        assert heard == [ports[0]]


def test_held_events_are_bounded() -> None:
    with two_ports("event:reorder") as (rig, ports, heard):
        for _ in range(5000):
            rig.domain.evtchn.send(ports[0])
        assert len(heard) >= 1024, "beyond a bound they are delivered"


def test_virqs_of_the_guest() -> None:
    with faulty("event=virq:drop") as rig:
        port = rig.domain.evtchn.bind_virq(event_channel.VIRQ.TIMER, 0)
        rig.domain.evtchn.raise_virq(event_channel.VIRQ.TIMER, 0)
        assert not rig.domain.evtchn.is_pending(port)


# -- xenstore and grants ----------------------------------------------------------------------------------------------------


def test_xenstore_by_path() -> None:
    with faulty("xenstore=data/bad:error=EIO", "xenstore=watch_event:drop:when=2") as rig:
        rig.host.store.write(f"/local/domain/{DOMID}", "", [f"n{DOMID}"])
        peer = Peer(rig.host.store, DOMID)
        assert peer.ask(MsgType.XS_WRITE, "data/good", raw=b"1").payload == OK
        assert peer.ask(MsgType.XS_WRITE, "data/bad", raw=b"1") == error(Errno.EIO)
        assert not rig.host.store.exists(f"/local/domain/{DOMID}/data/bad")
        peer.ask(MsgType.XS_WATCH, "data/good", "t")
        assert peer.ask(MsgType.XS_WRITE, "data/good", raw=b"2").payload == OK
        assert [name for name, _ in peer.events] == ["data/good"], "the second event is lost"


def test_grants() -> None:
    with faulty("grant=map:error=bad_page:when=2") as rig:
        rig.domain.gnttab.seed(9, 0, 0x30)
        rig.domain.gnttab.map_page(0, 9).close()
        with pytest.raises(GrantError, match="bad_page"):
            rig.domain.gnttab.map_page(0, 9)
        rig.domain.gnttab.map_page(0, 9).close()
        assert rig.faults == [("error", 2)]


# -- devices --------------------------------------------------------------------------------------------------------------


def test_requests_by_device_and_operation() -> None:
    with faulty("request=vbd/51712.write:error:when=2", "request=vbd/*:delay=10ms:when=4") as rig:
        outcomes = [rig.devices.ask(name) for name in ("write", "read", "write", "read")]
        assert [outcome and outcome.mishap.value for outcome in outcomes] == [None, None, "error", "delay"]
        assert outcomes[3].delay_s == 0.01
        assert rig.faults == [("error", 2), ("delay", 4)]
        rig.injector.detach()
        assert rig.devices.ask is None


def test_devices_by_the_clock() -> None:
    with faulty("device=vbd/51712:kill:at=3s", "device=vif/0:down", "device=vbd/51712:close:at=1ms") as rig:
        assert [delay for delay, _ in rig.later] == [3.0, 0.0, 0.001]
        for _, callback in rig.later:
            callback()
        assert rig.devices.asked == ["kill", "carrier False", "fail an injected fault"]
        assert [name for name, _ in rig.faults] == ["kill", "down", "close"]


def test_what_is_due_after_the_end_does_not_strike() -> None:
    with faulty("device=vbd/51712:kill:at=3s") as rig:
        rig.injector.detach()
        for _, callback in rig.later:
            callback()
        assert rig.devices.asked == []


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("device=vif/1:down", "no device vif/1; it has vbd/51712, vif/0"),
        ("device=vbd/51712:down", "vbd/51712 has no cable"),
        ("request=vif/0:drop", "no faults of vif/0's requests"),
        ("request=vbd/7.read:drop", "no device vbd/7"),
    ],
)
def test_rules_for_devices_that_are_not_there_are_refused(rule: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught, faulty(rule):
        pass
    assert says in str(caught.value)


def test_nothing_is_left_behind() -> None:
    rules = ("hypercall:drop", "event:drop", "xenstore:drop", "grant:error=bad_page")
    with fake_domain() as domain:
        rig = Faulty(domain, rules, 0)
        places = [
            lambda: rig.domain.dispatch, lambda: rig.domain.evtchn.deliver, lambda: rig.host.ports.deliver,
            lambda: rig.domain.gnttab.make_use, lambda: rig.host.store.serve, lambda: rig.host.store.watches.hand,
        ]  # fmt: skip
        before = [place() for place in places]
        with rig.injector:
            assert all(place() != was for place, was in zip(places, before, strict=True))
        assert [place() for place in places] == before
        del domain.peers[0]
