"""A driver that breaks the protocol loses its device, with one clear message, and nothing else happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vif_rig import THEIRS, FrontQueue, NetFront, connected, ethernet, net_front

from xenpy.abi.netif import (
    NETIF_CTRL_REQUEST,
    NETIF_EXTRA,
    NETIF_EXTRA_GSO,
    NETIF_TX_REQUEST,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenpy.abi.ring import SRING_REQ_EVENT, SRING_REQ_PROD, SRING_RSP_EVENT, SRING_RSP_PROD
from xenpy.abi.xenbus import XenbusState
from xenpy.config.vif import VifConfig
from xenpy.devices.vif.frame import Frame

if TYPE_CHECKING:
    from collections.abc import Callable

BAD_GREF = 5000
GOOD_ID = 1


def assert_closed(front: NetFront, message: str, notes: str) -> None:
    """The device is Closing, its pages and ports are free, the reason is said once to us and once to the guest."""
    assert front.backend_state is XenbusState.Closing
    assert front.services.bound == []
    assert not any(front.services.in_use(gref) for queue in front.queues for gref in (queue.tx_gref, queue.rx_gref))
    assert message in str(front.services.store.get(front.backend.params.error_path))
    lines = notes.splitlines()
    assert len(lines) == 1
    assert "vif 0 is closed" in lines[0]
    assert message in lines[0]


def gref_of(queue: FrontQueue) -> int:
    gfn, _ = queue.services.page()
    return queue.services.grant(gfn, readonly=True)


def tx(queue: FrontQueue, flags: int = 0, *, offset: int = 0, size: int = 64, gref: int | None = None) -> None:
    queue.tx.put(NETIF_TX_REQUEST.pack(gref_of(queue) if gref is None else gref, offset, flags, GOOD_ID, size))


def extra(queue: FrontQueue, kind: int, more: bool = False, body: bytes = bytes(6)) -> None:
    queue.tx.put(NETIF_EXTRA.pack(kind, XEN_NETIF_EXTRA_FLAG_MORE if more else 0, body).ljust(12, b"\0"))


def torn_packet(queue: FrontQueue) -> None:
    tx(queue, NETTXF_more_data)


def torn_extra(queue: FrontQueue) -> None:
    tx(queue, NETTXF_extra_info)


def endless_packet(queue: FrontQueue) -> None:
    for _ in range(40):
        tx(queue, NETTXF_more_data, size=10)


def endless_extras(queue: FrontQueue) -> None:
    tx(queue, NETTXF_extra_info)
    for _ in range(40):
        extra(queue, XEN_NETIF_EXTRA_TYPE_GSO, more=True, body=NETIF_EXTRA_GSO.pack(1, 1, 0))


def unknown_extra(queue: FrontQueue) -> None:
    tx(queue, NETTXF_extra_info)
    extra(queue, 77)


def gso_of_nothing(queue: FrontQueue) -> None:
    tx(queue, NETTXF_extra_info)
    extra(queue, XEN_NETIF_EXTRA_TYPE_GSO, body=NETIF_EXTRA_GSO.pack(0, 1, 0))


def gso_of_no_kind(queue: FrontQueue) -> None:
    tx(queue, NETTXF_extra_info)
    extra(queue, XEN_NETIF_EXTRA_TYPE_GSO, body=NETIF_EXTRA_GSO.pack(1000, 9, 0))


def crossing(queue: FrontQueue) -> None:
    tx(queue, offset=4000, size=97)


def parts_larger_than_whole(queue: FrontQueue) -> None:
    tx(queue, NETTXF_more_data, size=100)
    tx(queue, size=101)


def bad_gref(queue: FrontQueue) -> None:
    tx(queue, gref=BAD_GREF)


def wild_index(queue: FrontQueue) -> None:
    queue.tx.words[SRING_REQ_PROD] = 258
    queue.tx.req_prod = 258


MISDEEDS = [
    (torn_packet, "last slot is missing"),
    (torn_extra, "extra is missing"),
    (endless_packet, "more than 20 slots"),
    (endless_extras, "more than 4 extras"),
    (unknown_extra, "extra of type 77"),
    (gso_of_nothing, "parts of no size"),
    (gso_of_no_kind, "offload of type 9"),
    (crossing, "97 bytes at offset 4000"),
    (parts_larger_than_whole, "100 bytes has 101"),
    (bad_gref, "grant 5000"),
    (wild_index, "req_prod 0x102 is out of bounds"),
]
"""What a driver may do to its transmit ring, and what is said then."""


@pytest.mark.parametrize(("misdeed", "message"), MISDEEDS)
def test_a_broken_request_costs_the_device(
    misdeed: Callable[[FrontQueue], None], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with connected() as front:
        front.first.send(ethernet(b"good"))
        misdeed(front.first)
        front.first.tx.push()
        front.services.send(front.first.tx_port)
        front.services.pump()
        assert front.link.frames == [ethernet(b"good")]
        assert_closed(front, message, capsys.readouterr().err)
        front.link.give(Frame([bytes(60)], 60))  # what comes from outside then is nobody's
        front.services.pump()
        front.switch(XenbusState.Closed)
        front.switch(XenbusState.Initialising)
        assert front.backend_state is XenbusState.InitWait


def test_a_receive_buffer_that_is_not_granted_costs_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    with connected() as front:
        front.first.post(1)
        front.services.revoke(front.first.grefs[0])
        front.link.give(Frame([bytes(60)], 60))
        front.services.pump()
        assert_closed(front, "grant", capsys.readouterr().err)


def test_one_guests_misdeed_does_not_stop_the_frames_of_a_switch(capsys: pytest.CaptureFixture[str]) -> None:
    with connected() as bad, connected(VifConfig(0, "00:16:3e:00:00:09")) as good:
        bad.first.post(1)
        bad.services.revoke(bad.first.grefs[0])
        good.first.post(1)
        for each in (bad, good):
            assert each.link.give(Frame([ethernet(b"for all", dest=b"\xff" * 6)], 21)) == 1
            each.services.pump()
        assert_closed(bad, "grant", capsys.readouterr().err)
        assert len(good.first.receive()) == 1


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ({"request-rx-copy": 0}, "request-rx-copy is not 1"),
        ({"multi-queue-num-queues": 0}, "not a number from 1 to 4"),
        ({"multi-queue-num-queues": 5}, "not a number from 1 to 4"),
        ({"multi-queue-num-queues": 2}, "there is no tx-ring-ref"),
        ({"tx-ring-ref": "lots"}, "tx-ring-ref is 'lots'"),
        ({"rx-ring-ref": BAD_GREF}, "grant 5000"),
        ({"event-channel-rx": 9999}, "awaits no binding"),
        ({"ctrl-ring-ref": BAD_GREF, "event-channel-ctrl": 9999}, "grant 5000"),
        ({"ctrl-ring-ref": 8}, "there is no event-channel-ctrl"),
        ({"feature-gso-tcpv4": "maybe", "feature-sg": 1}, "'maybe'"),
    ],
)
def test_nodes_that_make_no_sense_are_refused(
    nodes: dict[str, str | int], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with net_front() as front:
        front.write({"request-rx-copy": 1, **front.first.nodes(), **nodes})
        front.switch(XenbusState.Connected)
        assert_closed(front, message, capsys.readouterr().err)


def test_a_bad_page_for_a_key_costs_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    from xenbus_rig import FrontRing

    with net_front() as front:
        gfn, page = front.services.page()
        ring, port = FrontRing([page], 16), front.services.port()
        front.write({"ctrl-ring-ref": front.services.grant(gfn), "event-channel-ctrl": port})
        front.connect()
        ring.put(NETIF_CTRL_REQUEST.pack(1, 3, BAD_GREF, 40, 0))
        ring.push()
        front.services.send(port)
        front.services.pump()
        assert_closed(front, "grant 5000", capsys.readouterr().err)


slot = st.one_of(
    st.builds(
        lambda good, offset, flags, size: (good, offset, flags, size),
        st.sampled_from([True, True, True, False]),
        st.sampled_from([0, 0, 1, 4000, 4095, 4096, 65535]),
        st.integers(0, 15),
        st.sampled_from([0, 1, 13, 14, 60, 97, 1514, 4096, 65535]),
    ),
    st.binary(min_size=12, max_size=12),
)
words = st.sampled_from([SRING_REQ_PROD, SRING_RSP_PROD, SRING_REQ_EVENT, SRING_RSP_EVENT])
action = st.one_of(
    st.tuples(st.just("tx"), st.lists(slot, max_size=12)),
    st.tuples(st.just("post"), st.integers(0, 12)),
    st.tuples(st.just("give"), st.lists(st.sampled_from([14, 60, 1514, 4097, 65535]), max_size=5)),
    st.tuples(st.just("take"), st.none()),
    st.tuples(st.just("index"), st.tuples(st.booleans(), words, st.integers(0, 2**32 - 1))),
    st.tuples(st.just("revoke"), st.integers(8, 60)),
    st.tuples(st.just("state"), st.sampled_from([*XenbusState])),
)


@settings(max_examples=120)
@given(st.lists(action, max_size=25), st.booleans())
def test_whatever_a_guest_does_the_host_goes_on(actions: list[tuple[str, object]], sg: bool) -> None:
    with connected(feature_sg=int(sg), feature_gso_tcpv4=1) as front:
        queue = front.first
        for kind, what in actions:
            _act(front, queue, kind, what)
            front.services.pump()
        used = {gref for gref in range(8, 400) if front.services.in_use(gref)}
        assert used <= {queue.tx_gref, queue.rx_gref}
        front.switch(XenbusState.Closing)
        front.switch(XenbusState.Closed)
        assert front.services.bound == []
        assert not front.services.in_use(queue.tx_gref)
        assert len(front.link.waiting) <= 200


def _act(front: NetFront, queue: FrontQueue, kind: str, what: object) -> None:
    if kind == "tx":
        for entry in what:
            if not queue.tx.room:
                break
            queue.tx.put(entry if isinstance(entry, bytes) else _request(queue, *entry))
        queue.tx.push()
        front.services.send(queue.tx_port)
    elif kind == "post":
        queue.post(min(what, queue.rx.room))
    elif kind == "give":
        front.link.give(*(Frame([THEIRS + bytes(size - 6)], size) for size in what))
    elif kind == "take":  # as far as the index says, which may be the guest's own invention
        queue.tx.rsp_cons = queue.tx.words[SRING_RSP_PROD]
    elif kind == "index":
        is_tx, word, value = what
        (queue.tx if is_tx else queue.rx).words[word] = value
        front.services.send(queue.tx_port)
    elif kind == "revoke":
        front.services.revoke(what)
    else:
        front.switch(what)


def _request(queue: FrontQueue, good: bool, offset: int, flags: int, size: int) -> bytes:
    return NETIF_TX_REQUEST.pack(queue.tx_gref if good else BAD_GREF, offset, flags, GOOD_ID, size)


def test_a_flood_of_failures_says_little(capsys: pytest.CaptureFixture[str]) -> None:
    with connected() as front:
        for _ in range(40):
            bad_gref(front.first)
            front.first.tx.push()
            front.services.send(front.first.tx_port)
            front.services.pump()
            front.switch(XenbusState.Closed)
            front.switch(XenbusState.Initialising)
            front.switch(XenbusState.Connected)
        assert front.backend_state is XenbusState.Closed
        assert len(capsys.readouterr().err.splitlines()) == 1
