"""What a trace says of xenstore, events and grants, and that it leaves everything as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from trace_rig import DOMID, Rig, traced
from xs_rig import Peer

from xenpy.abi import event_channel
from xenpy.abi.xs_wire import MsgType
from xenpy.pv.gnttab import GrantError
from xenpy.testing.trace.record import Kind
from xenpy.testing.trace.text import line

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def rig() -> Iterator[Rig]:
    with traced() as made:
        yield made


@pytest.fixture
def peer(rig: Rig) -> Peer:
    home = f"/local/domain/{DOMID}"
    rig.host.store.write(home, "", [f"n{DOMID}"])
    return Peer(rig.host.store, DOMID)


# -- xenstore -------------------------------------------------------------------------------------------------------------


def test_requests_and_answers(rig: Rig, peer: Peer) -> None:
    peer.ask(MsgType.XS_WRITE, "data/a", raw=b"one\0two")
    peer.ask(MsgType.XS_READ, "data/a")
    peer.ask(MsgType.XS_DIRECTORY, "data")
    assert [(record.kind, record.name, record.args, record.result) for record in rig.records] == [
        (Kind.XENSTORE, "WRITE", {"path": "data/a", "value": "one\0two"}, "OK"),
        (Kind.XENSTORE, "READ", {"path": "data/a"}, "one\0two"),
        (Kind.XENSTORE, "DIRECTORY", {"path": "data"}, ["a"]),
    ]
    assert line(rig.last()).split(None, 2)[2].startswith('xenstore DIRECTORY "data" = ["a"] <')


def test_refusals(rig: Rig, peer: Peer) -> None:
    peer.ask(MsgType.XS_READ, "no/such")
    assert (rig.last().result, rig.last().error) == (-2, "ENOENT")
    assert "no/such" in rig.last().reason
    peer.ask(MsgType(22), "x")
    assert rig.last().error


def test_transactions_and_watch_events(rig: Rig, peer: Peer) -> None:
    peer.ask(MsgType.XS_TRANSACTION_START, "")
    transaction = int(str(rig.last().result))
    peer.ask(MsgType.XS_WRITE, "data/b", tx=transaction, raw=b"1")
    assert rig.last().args == {"path": "data/b", "value": "1", "tx": transaction}
    peer.ask(MsgType.XS_TRANSACTION_END, "T", tx=transaction)
    assert rig.last().args["commit"] == "T"
    peer.ask(MsgType.XS_WATCH, "data", "token")
    names = [record.name for record in rig.records[-2:]]
    assert names == ["WATCH", "WATCH_EVENT"]
    assert rig.last().args == {"path": "data", "token": "token"}


def test_other_domains_are_not_heard(rig: Rig) -> None:
    rig.host.store.write("/local/domain/99", "", ["n99"])
    Peer(rig.host.store, 99).ask(MsgType.XS_READ, "x")
    assert rig.records == []


# -- events ---------------------------------------------------------------------------------------------------------------


def test_events_in_both_directions_with_what_they_are_for(rig: Rig) -> None:
    rig.host.store.write(f"/local/domain/{DOMID}/device/vif/0/event-channel-tx", "1")
    port = rig.domain.evtchn.alloc_unbound(0)
    heard: list[int] = []
    ours = rig.host.ports.bind_interdomain(DOMID, port)
    rig.host.ports.set_handler(ours, lambda: heard.append(port))
    rig.recorder.records.clear()
    rig.domain.evtchn.send(port)
    rig.host.ports.send(ours)
    assert heard == [port, port], "one waited from binding, one was sent"
    assert [(record.vcpu_id, record.args) for record in rig.records] == [
        (None, {"to": 0, "port": ours, "from": DOMID, "from_port": port, "for": "device/vif/0"}),
        (0, {"to": DOMID, "port": port, "from": 0, "from_port": ours, "for": "device/vif/0"}),
    ]
    assert "event interdomain" in line(rig.last())
    assert f"d0p{ours} -> d{DOMID}p{port} (device/vif/0)" in line(rig.last())


def test_virqs_and_the_fifo_abi(rig: Rig) -> None:
    evtchn = rig.domain.evtchn
    port = evtchn.bind_virq(event_channel.VIRQ.TIMER, 1)
    evtchn.raise_virq(event_channel.VIRQ.TIMER, 1)
    assert (rig.last().name, rig.last().vcpu_id, rig.last().args["virq"]) == ("virq", 1, "TIMER")
    assert evtchn.is_pending(port)
    evtchn.init_control(0x20, 0, 0)
    count = len(rig.records)
    evtchn.raise_virq(event_channel.VIRQ.TIMER, 1)
    assert len(rig.records) == count + 1, "the other ABI is heard as well"


# -- grants ---------------------------------------------------------------------------------------------------------------


def test_uses_of_grants(rig: Rig) -> None:
    gnttab = rig.domain.gnttab
    gnttab.seed(9, 0, 0x30)
    with gnttab.map_page(0, 9) as page:
        page.view[:4] = b"data"
    assert gnttab.read(0, 9, 0, 4) == b"data"
    with pytest.raises(GrantError):
        gnttab.map_page(0, 10)
    assert [(record.name, record.args["ref"], record.error) for record in rig.records] == [
        ("map", 9, ""), ("unmap", 9, ""), ("copy", 9, ""), ("map", 10, rig.last().error),
    ]  # fmt: skip
    assert rig.last().error in ("general_error", "bad_gntref", "permission_denied")
    assert rig.records[2].args["flags"] == "readonly"


# -- all of it --------------------------------------------------------------------------------------------------------------


def test_nothing_is_left_behind() -> None:
    with traced() as rig:
        rig.tracer.detach()
        places = [
            lambda: rig.domain.dispatch, lambda: rig.domain.evtchn.deliver, lambda: rig.host.ports.deliver,
            lambda: rig.domain.gnttab.make_use, lambda: rig.host.store.serve, lambda: rig.host.store.watches.hand,
        ]  # fmt: skip
        before = [place() for place in places]
        with rig.tracer:
            assert all(place() != was for place, was in zip(places, before, strict=True))
        assert [place() for place in places] == before


def test_a_filter_keeps_from_listening_at_all() -> None:
    with traced("hypercall=sched_op") as rig:
        assert rig.host.store.serve.__module__ == "xenpy.pv.xenstore.requests"
        rig.call(17, 0)
        rig.call(29, 0)
        assert [record.name for record in rig.records] == ["sched_op.yield"]


def test_console_lines() -> None:
    with traced("console") as rig:
        rig.tracer.output(b"one\r\ntw")
        rig.tracer.output(b"o\n" + b"x" * 5000 + b"\nlast")
        rig.tracer.detach()
        texts = [str(record.args["text"]) for record in rig.records]
    assert texts[:2] == ["one", "two"]
    assert all(len(text) <= 1024 for text in texts)
    assert texts[-1] == "last"
