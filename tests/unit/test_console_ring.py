"""The PV console ring, with a guest that reads and writes its end, well or badly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpy.devices.console import IN_SIZE, OUT_SIZE, ConsoleRing

OUT = IN_SIZE
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = range(3072, 3088, 4)


class Guest:
    """A guest's end of a ring; `limit` is how much our sink still takes, None for everything."""

    def __init__(self, *, start: int = 0) -> None:
        self.page = bytearray(4096)
        for offset in (IN_CONS, IN_PROD, OUT_CONS, OUT_PROD):
            self.set(offset, start)
        self.notified = 0
        self.output = bytearray()
        self.limit: int | None = None
        self.ring = ConsoleRing(memoryview(self.page), self.notify, self.sink)

    def get(self, offset: int) -> int:
        return int.from_bytes(self.page[offset : offset + 4], "little")

    def set(self, offset: int, value: int) -> None:
        self.page[offset : offset + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")

    def notify(self) -> None:
        self.notified += 1

    def sink(self, data: bytes) -> int:
        taken = data if self.limit is None else data[: self.limit]
        if self.limit is not None:
            self.limit -= len(taken)
        self.output += taken
        return len(taken)

    def write(self, data: bytes) -> bytes:
        """Put as much output into the ring as it has room for; return the rest."""
        prod = self.get(OUT_PROD)
        room = OUT_SIZE - (prod - self.get(OUT_CONS) & 0xFFFF_FFFF)
        for byte in data[:room]:
            self.page[OUT + prod % OUT_SIZE] = byte
            prod += 1
        self.set(OUT_PROD, prod)
        return data[room:]

    def read(self) -> bytes:
        """Take all input out of the ring."""
        cons, prod = self.get(IN_CONS), self.get(IN_PROD)
        data = bytearray()
        while cons != prod:
            data.append(self.page[cons % IN_SIZE])
            cons = cons + 1 & 0xFFFF_FFFF
        self.set(IN_CONS, cons)
        return bytes(data)


STARTS = st.sampled_from([0, 1000, IN_SIZE - 1, OUT_SIZE - 3, 0xFFFF_FFFF, 0xFFFF_FC00])
PIECES = st.lists(st.binary(max_size=3000), max_size=8)


@settings(max_examples=80)
@given(start=STARTS, pieces=PIECES)
def test_output_arrives_whole(start: int, pieces: list[bytes]) -> None:
    guest = Guest(start=start)
    for piece in pieces:
        while piece:
            piece = guest.write(piece)
            guest.ring.on_event()
    assert guest.output == b"".join(pieces)
    assert guest.get(OUT_CONS) == guest.get(OUT_PROD)
    assert guest.notified > 0 or not guest.output


@settings(max_examples=80)
@given(start=STARTS, pieces=PIECES, limits=st.lists(st.integers(0, 700), min_size=1, max_size=8))
def test_a_sink_that_takes_little_loses_nothing(start: int, pieces: list[bytes], limits: list[int]) -> None:
    guest = Guest(start=start)
    waiting = b"".join(pieces)
    for limit in limits:
        waiting = guest.write(waiting)
        guest.limit = limit
        before, told = len(guest.output), guest.notified
        guest.ring.on_event()
        assert guest.notified - told == (len(guest.output) > before), "only progress is worth an event"
    guest.limit = None
    while True:
        waiting = guest.write(waiting)
        guest.ring.on_event()
        if not waiting:
            break
    assert guest.output == b"".join(pieces)


@settings(max_examples=80)
@given(start=STARTS, pieces=PIECES)
def test_input_arrives_whole_when_the_guest_is_slow(start: int, pieces: list[bytes]) -> None:
    guest = Guest(start=start)
    received = b""
    for piece in pieces:
        guest.ring.send_input(piece)
    while chunk := guest.read():
        assert len(chunk) <= IN_SIZE
        received += chunk
        guest.ring.on_event()
    assert received == b"".join(pieces)


def test_output_that_goes_around_the_end_is_one_event() -> None:
    guest = Guest(start=OUT_SIZE - 2)
    guest.write(b"around")
    guest.ring.on_event()
    assert (guest.output, guest.notified) == (b"around", 1)
    guest.ring.on_event()
    assert guest.notified == 1


def test_input_that_waits_for_room_is_announced_when_it_goes_in() -> None:
    guest = Guest()
    guest.ring.send_input(b"x" * IN_SIZE)
    guest.ring.send_input(b"y")
    assert guest.notified == 1
    assert guest.read() == b"x" * IN_SIZE
    guest.ring.on_event()
    assert (guest.read(), guest.notified) == (b"y", 2)


def test_queued_input_is_bounded_by_the_room_it_tells_of() -> None:
    guest = Guest()
    room = guest.ring.room
    guest.ring.send_input(b"z" * (IN_SIZE + 5000))
    assert guest.ring.room == room - 5000


@pytest.mark.parametrize("excess", [1, 1 << 31, 0xFFFF_FFFF - OUT_SIZE])
def test_nonsense_in_the_output_indices_kills_the_console_only(excess: int) -> None:
    guest = Guest()
    guest.set(OUT_PROD, OUT_SIZE + excess)
    guest.ring.on_event()
    assert guest.ring.broken
    assert guest.output == b""
    guest.set(OUT_PROD, 0)
    guest.write(b"later")
    guest.ring.on_event()
    guest.ring.send_input(b"typed")
    assert guest.ring.drain() == b""
    assert (guest.output, guest.read(), guest.notified) == (b"", b"", 0)


@pytest.mark.parametrize("excess", [1, 1 << 31])
def test_nonsense_in_the_input_indices_kills_the_console_only(excess: int) -> None:
    guest = Guest()
    guest.set(IN_PROD, IN_SIZE + excess)
    guest.ring.send_input(b"typed")
    assert guest.ring.broken
    assert guest.page[:IN_SIZE] == bytes(IN_SIZE)


@settings(max_examples=100)
@given(indices=st.lists(st.integers(0, 0xFFFF_FFFF), min_size=4, max_size=4), data=st.binary(min_size=1, max_size=2000))
def test_arbitrary_indices_stay_within_the_rings(indices: list[int], data: bytes) -> None:
    guest = Guest()
    for offset, value in zip((IN_CONS, IN_PROD, OUT_CONS, OUT_PROD), indices, strict=True):
        guest.set(offset, value)
    guest.ring.send_input(data)
    guest.ring.on_event()
    assert len(guest.output) <= OUT_SIZE
    assert guest.page[3088:] == bytes(4096 - 3088)
    assert guest.page[IN_SIZE : IN_SIZE + OUT_SIZE] == bytes(OUT_SIZE)


def test_a_guest_that_keeps_writing_does_not_keep_us() -> None:
    guest = Guest()
    taken = 0

    def endless(data: bytes) -> int:
        nonlocal taken
        taken += len(data)
        assert taken <= 2 * OUT_SIZE, "the loop has no end while the guest writes"
        guest.set(OUT_PROD, guest.get(OUT_CONS) + len(data) + OUT_SIZE)
        return len(data)

    ring = ConsoleRing(memoryview(guest.page), guest.notify, endless)
    guest.write(b"x" * OUT_SIZE)
    ring.on_event()
    assert taken == OUT_SIZE


def test_what_is_left_is_drained_at_the_end() -> None:
    guest = Guest(start=OUT_SIZE - 4)
    guest.limit = 3
    guest.write(b"last words")
    guest.ring.on_event()
    assert guest.ring.drain() == b"t words"
    assert guest.output == b"las"
    assert guest.ring.drain() == b""
