"""The guest's ring page: transport, backpressure, reconnection, hostile contents."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.abi.xs_wire import XENSTORE_RING_SIZE, MsgType, RingConnection, RingError, RingOffset, ServerFeature
from xenpy.pv.xenstore import Quotas, Ring, Xenstore
from xenpy.pv.xenstore.ring import FEATURES, PAGE_SIZE
from xenpy.pv.xenstore.wire import Message, MessageReader, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

DOMID = 5
HOME = f"/local/domain/{DOMID}"


class Guest:
    """A guest with its page; it counts the events that it gets."""

    def __init__(self, store: Xenstore) -> None:
        self.page = bytearray(PAGE_SIZE)
        self.notified = 0
        self.ring = Ring(store, DOMID, memoryview(self.page), self._notify)
        store.introduce(DOMID, self.ring.connection)
        self.reader = MessageReader()

    def _notify(self) -> None:
        self.notified += 1

    def get(self, field: RingOffset) -> int:
        return int(struct.unpack_from("<I", self.page, field)[0])

    def set(self, field: RingOffset, value: int) -> None:
        struct.pack_into("<I", self.page, field, value & 0xFFFFFFFF)

    def start_at(self, index: int) -> None:
        """Let all indices stand somewhere, as after much traffic."""
        for field in (RingOffset.req_cons, RingOffset.req_prod, RingOffset.rsp_cons, RingOffset.rsp_prod):
            self.set(field, index)

    def put(self, data: bytes) -> int:
        prod = self.get(RingOffset.req_prod)
        room = XENSTORE_RING_SIZE - ((prod - self.get(RingOffset.req_cons)) & 0xFFFFFFFF)
        for i, byte in enumerate(data[:room]):
            self.page[RingOffset.req + (prod + i) % XENSTORE_RING_SIZE] = byte
        self.set(RingOffset.req_prod, prod + min(len(data), room))
        return min(len(data), room)

    def take(self, limit: int = XENSTORE_RING_SIZE) -> bytes:
        cons = self.get(RingOffset.rsp_cons)
        length = min(limit, (self.get(RingOffset.rsp_prod) - cons) & 0xFFFFFFFF)
        data = bytes(self.page[RingOffset.rsp + (cons + i) % XENSTORE_RING_SIZE] for i in range(length))
        self.set(RingOffset.rsp_cons, cons + length)
        return data

    def send(self, data: bytes) -> None:
        """Send everything, an event after each piece, fetching no replies."""
        while data:
            sent = self.put(data)
            assert sent, "the store stopped reading"
            data = data[sent:]
            self.ring.on_event()

    def receive(self, chunk: int = XENSTORE_RING_SIZE) -> Iterator[Message]:
        """Yield what the store has to say, an event after each piece taken."""
        while data := self.take(chunk):
            self.reader.feed(data)
            self.ring.on_event()
            yield from iter(self.reader.next, None)


@pytest.fixture
def store() -> Xenstore:
    return Xenstore()


@pytest.fixture
def guest(store: Xenstore) -> Guest:
    guest = Guest(store)
    store.mkdir(HOME, ["n0", "r5"])
    store.mkdir(f"{HOME}/data", ["n5"])
    return guest


def test_the_page_is_empty_and_shows_the_features(guest: Guest) -> None:
    assert guest.get(RingOffset.server_features) == FEATURES == 7
    assert guest.get(RingOffset.connection) == RingConnection.XENSTORE_CONNECTED
    assert guest.get(RingOffset.error) == RingError.XENSTORE_ERROR_NONE


def test_features_can_be_withheld(store: Xenstore) -> None:
    page = bytearray(PAGE_SIZE)
    Ring(store, 6, memoryview(page), lambda: None, features=ServerFeature.ERROR)
    assert struct.unpack_from("<I", page, RingOffset.server_features) == (2,)


@pytest.mark.parametrize("page", [memoryview(bytearray(4095)), memoryview(bytes(PAGE_SIZE))])
def test_a_page_must_be_a_writable_page(page: memoryview, store: Xenstore) -> None:
    with pytest.raises(ValueError, match="4096"):
        Ring(store, 6, page, lambda: None)


@pytest.mark.parametrize("index", [0, 1000, 0xFFFFFFF0])
def test_a_request_is_answered_and_the_guest_told(index: int, guest: Guest, store: Xenstore) -> None:
    guest.start_at(index)
    store.write(f"{HOME}/name", "x" * 500)
    for number in range(5):
        guest.send(encode(MsgType.XS_READ, number, 0, b"name\0"))
        assert list(guest.receive()) == [Message(MsgType.XS_READ, number, 0, b"x" * 500)]
    assert guest.notified
    assert guest.get(RingOffset.req_cons) == guest.get(RingOffset.req_prod)


def test_a_request_may_come_in_pieces(guest: Guest) -> None:
    for byte in encode(MsgType.XS_GET_DOMAIN_PATH, 3, 0, b"5\0"):
        assert list(guest.receive()) == []
        guest.send(bytes([byte]))
    assert [message.payload for message in guest.receive()] == [HOME.encode() + b"\0"]


def test_an_event_without_news_is_not_answered(guest: Guest) -> None:
    before = guest.notified
    guest.ring.on_event()
    assert guest.notified == before


@pytest.mark.parametrize("chunk", [1, 100, XENSTORE_RING_SIZE])
def test_what_does_not_fit_waits_for_the_guest(chunk: int, guest: Guest, store: Xenstore) -> None:
    store.write(f"{HOME}/big", "y" * 3000)
    guest.send(encode(MsgType.XS_READ, 1, 0, b"big\0") + encode(MsgType.XS_READ, 2, 0, b"big\0"))
    assert guest.get(RingOffset.rsp_prod) - guest.get(RingOffset.rsp_cons) == XENSTORE_RING_SIZE
    assert [(message.req_id, len(message.payload)) for message in guest.receive(chunk)] == [(1, 3000), (2, 3000)]


def test_requests_wait_for_a_guest_that_fetches_nothing() -> None:
    guest = Guest(Xenstore(quotas=Quotas(outstanding=4)))
    requests = b"".join(encode(MsgType.XS_GET_DOMAIN_PATH, number, 0, b"1\0") for number in range(200))
    sent = 0
    while count := guest.put(requests[sent:]):
        sent += count
        guest.ring.on_event()
    assert sent < len(requests), "the store must stop reading"
    assert guest.ring.connection.output_size < 4096
    replies = list(guest.receive())
    while sent < len(requests):
        sent += guest.put(requests[sent:])
        guest.ring.on_event()
        replies += guest.receive()
    assert [reply.req_id for reply in replies] == list(range(200))


def test_a_change_made_elsewhere_reaches_the_guest(guest: Guest, store: Xenstore) -> None:
    guest.send(encode(MsgType.XS_WATCH, 1, 0, b"device\0t\0"))
    list(guest.receive())
    before = guest.notified
    store.write(f"{HOME}/device/vbd/51712/state", 1)
    assert guest.notified > before
    assert [message.payload for message in guest.receive()] == [b"device/vbd/51712/state\0t\0"]


def test_notifications_are_sent_with_the_store_s_lock_free() -> None:
    store = Xenstore()
    depths = []
    page = memoryview(bytearray(PAGE_SIZE))
    ring = Ring(store, DOMID, page, lambda: depths.append(store.guard._depth))
    store.introduce(DOMID, ring.connection)
    data = encode(MsgType.XS_WATCH, 1, 0, b"/\0t\0")
    page[: len(data)] = data
    page.cast("I")[RingOffset.req_prod // 4] = len(data)
    ring.on_event()
    store.write("/x", "", ["r0"])
    assert depths == [0, 0]


def test_reconnection_gives_a_new_connection(guest: Guest, store: Xenstore) -> None:
    guest.send(
        encode(MsgType.XS_WATCH, 1, 0, b"a\0t\0") + encode(MsgType.XS_TRANSACTION_START, 2, 0, b"\0") + b"partial"
    )
    guest.set(RingOffset.connection, RingConnection.XENSTORE_RECONNECT)
    before = guest.notified
    guest.ring.on_event()
    assert guest.notified == before + 1
    assert guest.get(RingOffset.connection) == RingConnection.XENSTORE_CONNECTED
    assert guest.take() == b""
    store.write(f"{HOME}/a", "")
    guest.send(encode(MsgType.XS_READ, 3, 1, b"a\0"))
    assert list(guest.receive()) == [Message(MsgType.XS_ERROR, 3, 1, b"ENOENT\0")]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        (RingOffset.req_prod, XENSTORE_RING_SIZE + 1, RingError.XENSTORE_ERROR_RINGIDX),
        (RingOffset.req_prod, 0xFFFFFFFF, RingError.XENSTORE_ERROR_RINGIDX),
        (RingOffset.req_cons, 1, RingError.XENSTORE_ERROR_RINGIDX),
    ],
)
def test_impossible_request_indices_stop_the_ring(
    field: RingOffset, value: int, expected: RingError, guest: Guest, store: Xenstore
) -> None:
    guest.set(field, value)
    guest.ring.on_event()
    assert guest.get(RingOffset.error) == expected
    guest.start_at(0)
    guest.send(encode(MsgType.XS_READ, 1, 0, b"/\0"))
    assert guest.take() == b"", "a stopped ring must not answer"
    store.write(f"{HOME}/a", "")
    guest.set(RingOffset.connection, RingConnection.XENSTORE_RECONNECT)
    guest.ring.on_event()
    assert guest.get(RingOffset.error) == RingError.XENSTORE_ERROR_NONE
    guest.send(encode(MsgType.XS_READ, 2, 0, b"a\0"))
    assert list(guest.receive()) == [Message(MsgType.XS_READ, 2, 0, b"")]


def test_impossible_response_indices_stop_the_ring(guest: Guest) -> None:
    guest.set(RingOffset.rsp_cons, 1)
    guest.send(encode(MsgType.XS_READ, 1, 0, b"/\0"))
    assert guest.get(RingOffset.error) == RingError.XENSTORE_ERROR_RINGIDX


def test_an_oversized_payload_stops_the_ring(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        guest.send(struct.pack("<IIII", MsgType.XS_WRITE, 1, 0, 4097))
        assert guest.get(RingOffset.error) == RingError.XENSTORE_ERROR_PROTO
        guest.set(RingOffset.connection, RingConnection.XENSTORE_RECONNECT)
        guest.ring.on_event()
    assert caplog.text.count("dom5") == 1, "a guest must not flood the log"


def test_a_detached_ring_leaves_the_page_alone(guest: Guest, store: Xenstore) -> None:
    guest.send(encode(MsgType.XS_WATCH, 1, 0, b"/\0t\0"))
    guest.ring.detach()
    guest.ring.detach()
    before = bytes(guest.page)
    store.write(f"{HOME}/a", "")
    guest.ring.on_event()
    assert guest.page == before
    guest.page.append(0)  # a BufferError here would mean that a view is left


WRITES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(list(RingOffset)[2:]), st.one_of(st.integers(0, 0xFFFFFFFF), st.integers(0, 2048))),
        st.tuples(st.just(RingOffset.req), st.integers(0, 0xFFFFFFFF)),
        st.tuples(st.none(), st.binary(max_size=200)),
    ),
    max_size=30,
)


@given(WRITES)
def test_nothing_in_the_page_hurts_the_store(writes: list[tuple[RingOffset | None, int | bytes]]) -> None:
    store = Xenstore()
    guest = Guest(store)
    store.mkdir(HOME, ["b0"])
    for field, value in writes:
        if isinstance(value, bytes):
            guest.put(value) if 0 <= guest.get(RingOffset.req_prod) - guest.get(RingOffset.req_cons) <= 1024 else None
        elif field is not None:
            guest.set(field, value)
        guest.ring.on_event()
        store.write(f"{HOME}/x", "")
    guest.set(RingOffset.connection, RingConnection.XENSTORE_RECONNECT)
    guest.ring.on_event()
    guest.reader = MessageReader()
    guest.send(encode(MsgType.XS_READ, 1, 0, b"x\0" if writes else b"\0"))
    assert [message.req_id for message in guest.receive()] == [1]
