"""The backend's end of a shared ring, against a frontend that plays by the rules and one that does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xenbus_rig import FrontRing

from xenpy.abi.ring import INDEX_MASK, SRING_REQ_EVENT, SRING_REQ_PROD, SRING_RSP_EVENT, SRING_RSP_PROD
from xenpy.devices.ring import BackRing, ring_entries
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

ENTRY = 112


def make(pages: int = 1, entry: int = ENTRY, start: int = 0) -> tuple[FrontRing, BackRing]:
    views = [memoryview(bytearray(PAGE_SIZE)) for _ in range(pages)]
    front = FrontRing(views, entry, start=start)
    return front, BackRing(views, entry)


def entry_of(number: int) -> bytes:
    return number.to_bytes(8, "little") * (ENTRY // 8)


@pytest.mark.parametrize(
    ("pages", "size", "entries"), [(1, 112, 32), (1, 108, 32), (2, 112, 64), (16, 112, 512), (1, 12, 256), (1, 8, 256)]
)
def test_sizes_of_rings(pages: int, size: int, entries: int) -> None:
    assert ring_entries(pages, size) == entries


@given(
    pages=st.sampled_from([1, 2, 4]),
    start=st.sampled_from([0, 5, INDEX_MASK - 10]),
    turns=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=20),
)
def test_requests_and_responses_come_through_in_order(pages: int, start: int, turns: list[tuple[int, int]]) -> None:
    front, back = make(pages, start=start)
    sent = taken = answered = 0
    received: list[bytes] = []
    for puts, answers in turns:
        for _ in range(min(puts, front.room)):
            front.put(entry_of(sent))
            sent += 1
        front.push()
        for request in back.take():
            assert request == entry_of(taken)
            taken += 1
        assert taken == sent
        assert not back.more()
        for _ in range(min(answers, back.in_flight)):
            back.put(entry_of(answered)[:16])
            answered += 1
        back.push()
        received += front.take(8)
        assert received == [entry_of(number)[:8] for number in range(answered)]
    assert back.in_flight == taken - answered


@given(count=st.integers(1, 32), limit=st.integers(1, 40))
def test_take_no_more_than_the_limit(count: int, limit: int) -> None:
    front, back = make()
    for number in range(count):
        front.put(entry_of(number))
    front.push()
    assert back.take(limit) == [entry_of(number) for number in range(min(limit, count))]
    assert back.more() == (limit < count)


def test_entries_may_run_over_the_edge_of_a_page() -> None:
    front, back = make(2)
    for number in range(64):
        front.put(entry_of(number))
    front.push()
    assert back.take() == [entry_of(number) for number in range(64)]
    for number in range(64):
        back.put(entry_of(number + 100))
    back.push()
    assert front.take(ENTRY) == [entry_of(number + 100) for number in range(64)]


@pytest.mark.parametrize("claim", [33, 1000, 1 << 31, INDEX_MASK])
def test_an_index_out_of_bounds_is_the_frontends_fault(claim: int) -> None:
    front, back = make()
    front.words[SRING_REQ_PROD] = claim
    with pytest.raises(FrontendError, match="req_prod"):
        back.take()
    with pytest.raises(FrontendError, match="req_prod"):
        back.more()


def test_an_index_that_goes_back_is_the_frontends_fault() -> None:
    front, back = make()
    front.put(entry_of(1))
    front.push()
    back.take()
    front.words[SRING_REQ_PROD] = 0
    with pytest.raises(FrontendError):
        back.take()


def test_requests_must_wait_for_room_that_unanswered_ones_take() -> None:
    front, back = make()
    for number in range(32):
        front.put(entry_of(number))
    front.push()
    back.take()
    front.words[SRING_REQ_PROD] = 33
    with pytest.raises(FrontendError):
        back.take()
    back.put(bytes(16))
    assert len(back.take()) == 1


def test_events_are_sent_only_when_asked_for() -> None:
    front, back = make()
    for number in range(4):
        front.put(entry_of(number))
    assert front.push()  # the backend starts out wanting one
    back.take()
    back.put(bytes(16))
    assert back.push()
    assert not back.push()
    front.words[SRING_RSP_EVENT] = 3
    back.put(bytes(16))
    assert not back.push()
    back.put(bytes(16))
    assert back.push()
    back.put(bytes(16))
    assert not back.push()  # the one that was asked for has been sent


def test_more_asks_for_the_next_event() -> None:
    front, back = make()
    front.put(entry_of(0))
    front.push()
    back.take()
    assert not back.more()
    assert front.words[SRING_REQ_EVENT] == 2
    front.put(entry_of(1))
    assert front.push()
    assert back.more()


def test_a_response_without_a_request_is_our_own_mistake() -> None:
    _, back = make()
    with pytest.raises(ValueError, match="without a request"):
        back.put(bytes(16))


def test_a_backend_that_takes_over_goes_on_after_the_last_response() -> None:
    front, back = make()
    for number in range(3):
        front.put(entry_of(number))
    front.push()
    back.take()
    back.put(bytes(16))
    back.push()
    assert front.words[SRING_RSP_PROD] == 1
    successor = BackRing(front.pages, ENTRY)
    assert successor.take() == [entry_of(1), entry_of(2)]
