"""An interface's backend, against a driver that plays by the rules."""

from __future__ import annotations

import os
from functools import partial

import pytest
from vif_rig import BROADCAST, MAC, OURS, THEIRS, FakeLink, connected, ethernet, net_front

from xenpy.abi.netif import (
    NETIF_CTRL_REQUEST,
    NETIF_CTRL_RESPONSE,
    NETIF_CTRL_SLOT_SIZE,
    NETIF_EXTRA,
    NETIF_EXTRA_GSO,
    NETIF_EXTRA_HASH,
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    NETIF_TX_RESPONSE,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_HASH,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    CtrlStatus,
    CtrlType,
    HashType,
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETTXF_csum_blank,
)
from xenpy.abi.xenbus import XenbusState
from xenpy.config.vif import VifConfig, VifRate
from xenpy.devices.vif.frame import Frame, Gso
from xenpy.devices.vif.headers import parse
from xenpy.memory import PAGE_SIZE


def responses(front) -> list[tuple[int, int]]:
    return [NETIF_TX_RESPONSE.unpack(slot) for slot in front.tx.take(NETIF_TX_RESPONSE.size)]


def frame(data: bytes, **what) -> Frame:
    return Frame([data], len(data), **what)


def test_the_tree_says_what_libxl_would() -> None:
    config = VifConfig(3, MAC, bridge="br7", ip=("10.0.0.5",), rate=VifRate(6250, 50000), mtu=9000, trusted=False)
    with net_front(config) as front:
        store = front.services.store
        assert {name: front.theirs(name) for name in ("mac", "handle", "bridge", "ip", "rate", "mtu", "type")} == {
            "mac": MAC, "handle": "3", "bridge": "br7", "ip": "10.0.0.5", "rate": "6250,50000", "mtu": "9000", "type": "vif",
        }  # fmt: skip
        assert {name: store.get(f"{front.path}/{name}") for name in ("mac", "handle", "mtu", "trusted")} == {
            "mac": MAC, "handle": "3", "mtu": "9000", "trusted": "0",
        }  # fmt: skip
        assert front.theirs("feature-rx-copy") == front.theirs("carrier") == "1"
        assert front.backend_state is XenbusState.InitWait


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("cuts", [(), (1,), (14, 20, 300), (100, 191, 192, 193, 900)])
def test_a_packet_of_several_slots_is_one_frame(split: bool, seen: bool, cuts: tuple[int, ...]) -> None:
    data = ethernet(os.urandom(1000))
    with connected(split=split) as front:
        if seen:
            front.services.gnttab.make_use = partial(front.services.gnttab.make_use)
        ids = front.first.send(data, cuts=cuts)
        assert front.link.frames == [data]
        assert responses(front.first) == [(ident, NETIF_RSP_OKAY) for ident in ids]
        assert front.services.events[front.first.tx_port] >= 1
        assert front.services.mapped == 2 + (len(cuts) + 1) * seen, "whoever wants to see grants in use does"


def test_nothing_of_the_guests_is_in_use_once_it_is_told() -> None:
    with connected() as front:
        front.first.send(ethernet(bytes(8000)))
        front.first.post(3)
        front.link.give(frame(ethernet(bytes(9000))))
        used = [gref for gref in range(8, 40) if front.services.in_use(gref)]
        assert used == [front.first.tx_gref, front.first.rx_gref]
        front.switch(XenbusState.Closing)
        front.switch(XenbusState.Closed)
        assert front.backend_state is XenbusState.Closed
        assert not front.services.in_use(front.first.tx_gref)
        assert front.services.bound == []


def test_what_was_sent_before_the_backend_connected_is_not_lost() -> None:
    with net_front() as front:
        front.first.queue(ethernet(b"early"))
        front.first.tx.push()
        front.connect()
        assert front.link.frames == [ethernet(b"early")]


def test_many_packets_go_in_batches_and_in_order() -> None:
    frames = [ethernet(number.to_bytes(4, "big") * 20) for number in range(200)]
    with connected() as front:
        for data in frames:
            front.first.queue(data)
        front.first.push()
        assert front.link.frames == frames
        assert len(front.link.sent) <= 4
        assert len(responses(front.first)) == 200


def test_checksum_and_segmentation_requests_reach_the_link() -> None:
    extra = NETIF_EXTRA.pack(XEN_NETIF_EXTRA_TYPE_GSO, 0, NETIF_EXTRA_GSO.pack(1448, 1, 0))
    with connected() as front:
        front.first.send(ethernet(bytes(60000)), flags=NETTXF_csum_blank, extras=[extra])
        (batch,) = front.link.sent
        assert (batch[0].gso, batch[0].csum_blank, batch[0].size) == (Gso(1448, False), True, 60014)
        assert [status for _, status in responses(front.first)] == [NETIF_RSP_OKAY, NETIF_RSP_NULL] + [
            NETIF_RSP_OKAY
        ] * 14


def test_a_packet_too_short_for_a_header_is_refused_and_the_next_goes() -> None:
    with connected() as front:
        front.first.queue(bytes(13))
        front.first.send(ethernet(b"next"))
        assert front.link.frames == [ethernet(b"next")]
        assert [status for _, status in responses(front.first)] == [NETIF_RSP_ERROR, NETIF_RSP_OKAY]


@pytest.mark.parametrize("size", [14, 60, 1514, PAGE_SIZE, PAGE_SIZE + 1, 65535])
def test_frames_reach_the_guest_in_as_many_pages_as_they_need(size: int) -> None:
    data = os.urandom(size)
    with connected() as front:
        front.first.post(20)
        middle = size // 3
        front.link.give(
            Frame([data[:middle], memoryview(data)[middle : 2 * middle], data[2 * middle :]], size, validated=True)
        )
        (got,) = front.first.receive()
        assert got.data == data
        assert got.flags & (NETRXF_csum_blank | NETRXF_data_validated) == NETRXF_data_validated
        assert front.services.events[front.first.rx_port] >= 1


def test_frames_wait_until_the_guest_has_room() -> None:
    frames = [frame(ethernet(bytes([number]) * 5000)) for number in range(8)]
    with connected() as front:
        front.first.post(5)
        assert front.link.give(*frames) == 2
        assert front.link.give() == 0
        got = front.first.receive()
        for _ in range(4):
            front.first.post(4)
            got += front.first.receive()
        assert [received.data for received in got] == [bytes(each.head) for each in frames]


def test_a_large_segment_is_given_whole_to_a_guest_that_takes_it_and_cut_for_one_that_does_not() -> None:
    head = ethernet(b"", 0x0800) + bytes.fromhex("4500 0000 0001 4000 4006 0000 0a000001 0a000002")
    head += bytes.fromhex("0001 0002 00000064 00000000 5010 ffff 0000 0000")
    payload = os.urandom(10000)
    large = Frame([head, payload], len(head) + len(payload), csum_blank=True, gso=Gso(1460, False))
    with connected(feature_gso_tcpv4=1) as front:
        front.first.post(10)
        front.link.give(large)
        (got,) = front.first.receive()
        assert got.data == head + payload
        assert got.extras == [NETIF_EXTRA.pack(XEN_NETIF_EXTRA_TYPE_GSO, 0, NETIF_EXTRA_GSO.pack(1460, 1, 0))]
        assert got.flags & NETRXF_csum_blank
    with connected() as front:
        front.first.post(4)
        front.link.give(large)
        got_parts = front.first.receive()
        front.first.post(9)
        got_parts += front.first.receive()
        assert [len(part.data) for part in got_parts] == [1514] * 6 + [54 + 10000 - 6 * 1460]
        assert b"".join(part.data[54:] for part in got_parts) == payload
        assert not any(part.flags & NETRXF_csum_blank for part in got_parts)


def test_without_scatter_gather_no_frame_exceeds_a_page() -> None:
    with connected(feature_sg=0) as front:
        front.first.post(4)
        front.link.give(frame(bytes(PAGE_SIZE + 1)), frame(bytes(PAGE_SIZE)))
        assert [len(received.data) for received in front.first.receive()] == [PAGE_SIZE]


@pytest.mark.parametrize("split", [True, False])
def test_flows_keep_to_their_queues_and_all_queues_are_used(split: bool) -> None:
    with connected(queues=4, split=split) as front:
        for queue in front.queues:
            queue.post(200)
        flows = [
            ethernet(bytes.fromhex("4500 0020 0000 0000 4011 0000 0a000001 0a000002") + port.to_bytes(2, "big") + bytes(12), 0x0800)
            for port in range(50)
        ]  # fmt: skip
        for _ in range(3):
            front.link.give(*(frame(flow) for flow in flows))
        got = [[received.data for received in queue.receive()] for queue in front.queues]
        assert sum(map(len, got)) == 150
        assert all(got)
        for flow in flows:
            assert sorted(each.count(flow) for each in got) == [0, 0, 0, 3]
        front.queues[2].send(ethernet(b"from the third"))
        assert front.link.frames == [ethernet(b"from the third")]


def test_rate_holds_packets_back_until_there_is_credit() -> None:
    config = VifConfig(0, MAC, rate=VifRate(3000, 50_000))
    with connected(config) as front:
        for _ in range(5):
            front.first.queue(ethernet(bytes(986)))
        front.first.push()
        assert len(front.link.frames) == 3
        ((delay, wake),) = front.services.loop.deadlines
        assert 0 < delay <= 0.05
        front.vif.station.port._credit._next -= 0.05  # the time passes
        front.services.loop.deadlines.clear()
        wake()
        front.services.pump()
        assert len(front.link.frames) == 5


def test_a_busy_link_holds_the_guest_back() -> None:
    link = FakeLink()
    with connected(link=link) as front:
        link.busy = True
        front.first.send(ethernet(b"later"))
        assert link.frames == []
        link.busy = False
        front.vif.station.port.link_idle()
        front.services.pump()
        assert link.frames == [ethernet(b"later")]


def test_block_loses_frames_and_carrier_tells_the_guest_too() -> None:
    with connected() as front:
        front.first.post(10)

        def passes() -> bool:
            before = len(front.link.frames)
            front.first.send(ethernet(b"out"))
            front.link.give(frame(ethernet(b"in")))
            out, into = len(front.link.frames) > before, bool(front.first.receive())
            assert out == into
            return out

        assert passes()
        front.vif.block()
        assert not passes()
        assert front.theirs("carrier") == "1"
        front.vif.block(blocked=False)
        assert passes()
        front.vif.set_carrier(up=False)
        assert not passes()
        assert front.theirs("carrier") == "0"
        front.vif.set_carrier(up=True)
        front.vif.link_changed(up=False)
        assert front.theirs("carrier") == "0"
        front.vif.link_changed(up=True)
        assert passes()


def test_group_frames_are_filtered_on_request_at_any_time() -> None:
    groups = [bytes([1, 0, 0x5E, 0, 0, number]) for number in (1, 2)]
    offered = [ethernet(b"", dest=dest, source=THEIRS) for dest in (*groups, BROADCAST, OURS)]

    def change(kind: int) -> bytes:
        return NETIF_EXTRA.pack(kind, 0, groups[0])

    with connected() as front:
        front.first.post(30)

        def passing() -> list[int]:
            front.link.give(*(frame(data) for data in offered))
            return [offered.index(received.data) for received in front.first.receive()]

        front.first.send(bytes(14), extras=[change(XEN_NETIF_EXTRA_TYPE_MCAST_ADD)])
        assert front.link.frames == []
        assert passing() == [0, 1, 2, 3]
        front.write({"request-multicast-control": 1})
        front.services.pump()
        assert passing() == [0, 2, 3]
        front.first.send(bytes(14), extras=[change(XEN_NETIF_EXTRA_TYPE_MCAST_DEL)])
        assert passing() == [2, 3]
        front.write({"request-multicast-control": 0})
        front.services.pump()
        assert passing() == [0, 1, 2, 3]


def test_the_control_ring_sets_a_hash_that_steers_and_is_told() -> None:
    from xenbus_rig import FrontRing

    with net_front(queues=2) as front:
        services = front.services
        gfn, page = services.page()
        ring, port = FrontRing([page], NETIF_CTRL_SLOT_SIZE), services.port()
        front.write({"ctrl-ring-ref": services.grant(gfn), "event-channel-ctrl": port})
        front.connect()

        def ask(kind: int, *data: int) -> tuple[int, int]:
            ring.put(NETIF_CTRL_REQUEST.pack(7, kind, *data, *[0] * (3 - len(data))))
            if ring.push():
                services.send(port)
            services.pump()
            ((ident, answered, status, value),) = map(NETIF_CTRL_RESPONSE.unpack, ring.take(NETIF_CTRL_SLOT_SIZE))
            assert (ident, answered) == (7, kind)
            return status, value

        okay = (CtrlStatus.SUCCESS, 0)
        assert ask(CtrlType.GET_HASH_FLAGS)[0] == CtrlStatus.NOT_SUPPORTED
        assert ask(CtrlType.SET_HASH_ALGORITHM, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ) == okay
        assert ask(CtrlType.GET_HASH_FLAGS) == (CtrlStatus.SUCCESS, 0xF)
        assert ask(CtrlType.SET_HASH_FLAGS, 1 << HashType.IPV4_TCP) == okay
        gfn, data = services.page()
        data[:40] = bytes(range(1, 41))
        gref = services.grant(gfn, readonly=True)
        assert ask(CtrlType.SET_HASH_KEY, gref, 41)[0] == CtrlStatus.BUFFER_OVERFLOW
        assert ask(CtrlType.SET_HASH_KEY, gref, 40) == okay
        assert ask(CtrlType.SET_HASH_MAPPING_SIZE, 2) == okay
        data[:8] = (1).to_bytes(4, "little") * 2
        assert ask(CtrlType.SET_HASH_MAPPING, gref, 2, 0) == okay
        data[:4] = (2).to_bytes(4, "little")
        assert ask(CtrlType.SET_HASH_MAPPING, gref, 1, 0)[0] == CtrlStatus.INVALID_PARAMETER
        assert ask(CtrlType.SET_HASH_MAPPING, gref, 2, 1)[0] == CtrlStatus.BUFFER_OVERFLOW
        assert ask(99)[0] == CtrlStatus.NOT_SUPPORTED

        head = ethernet(bytes.fromhex("4500 0028 0000 0000 4006 0000 0a000001 0a000002"), 0x0800)
        segment = head + bytes.fromhex("0001 0002 00000064 00000000 5010 ffff 0000 0000")
        assert parse(segment)
        for queue in front.queues:
            queue.post(5)
        front.link.give(frame(segment))
        assert front.queues[0].receive() == []
        (got,) = front.queues[1].receive()
        kind, more, body = NETIF_EXTRA.unpack(got.extras[0])
        hash_type, algorithm, value = NETIF_EXTRA_HASH.unpack(body)
        assert (kind, more, hash_type, algorithm) == (XEN_NETIF_EXTRA_TYPE_HASH, 0, HashType.IPV4_TCP, 1)
        assert value
        assert got.data == segment


def test_the_link_is_closed_with_the_device() -> None:
    link = FakeLink()
    with connected(link=link):
        assert not link.closed
    assert link.closed == 1
