"""The FIFO ABI with guests that race with us or break the rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from evtchn_rig import (
    ARRAY_GFN,
    BUSY,
    CONTROL_GFN,
    LINK_MASK,
    LINKED,
    MASKED,
    PENDING,
    FifoGuest,
    Guest,
    ipis,
    two_guests,
)

from xenpy import atomics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def guest() -> Iterator[Guest]:
    with two_guests(max_ports=1 << 17) as (one, _, _):
        yield one


class Racer:
    """Lets a guest act right before each compare-and-exchange of the hypervisor, as another CPU would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = atomics.cmpxchg32
        self.steps: list[Callable[[], None]] = []
        monkeypatch.setattr(atomics, "cmpxchg32", self._racing)

    def _racing(self, hva: int, expected: int, new: int) -> int:
        if self.steps:
            step = self.steps.pop(0)
            self.steps, rest = [], self.steps  # the guest's own steps race with nothing
            step()
            self.steps = rest
        return self._real(hva, expected, new)


def nothing() -> None:
    pass


def test_the_tail_is_taken_while_we_append_to_it(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = FifoGuest(guest)
    a, b = ipis(guest, fifo, 2)
    guest.evtchn.send(a)
    guest.take_upcalls()
    taken = []
    race = Racer(monkeypatch)
    race.steps = [nothing, lambda: taken.extend(fifo.drain(0))]
    guest.evtchn.send(b)
    assert taken == [a]
    assert guest.upcalls == [0], "the queue had run empty, so it is announced again"
    assert fifo.words[a] == 0, "BUSY does not stay behind"
    assert fifo.drain(0) == [b]


def test_the_tail_is_masked_and_cleared_while_we_append_to_it(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = FifoGuest(guest)
    a, b = ipis(guest, fifo, 2)
    guest.evtchn.send(a)
    race = Racer(monkeypatch)
    race.steps = [nothing, lambda: fifo.mask(a), lambda: fifo.update(a, clear=PENDING) and None]
    guest.evtchn.send(b)
    assert fifo.words[a] == MASKED | LINKED | b
    assert fifo.drain(0) == [b]


def test_a_word_masked_while_we_queue_it_is_not_queued(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = FifoGuest(guest)
    (a,) = ipis(guest, fifo, 1)
    race = Racer(monkeypatch)
    race.steps = [lambda: fifo.mask(a)]
    guest.evtchn.send(a)
    assert fifo.words[a] == PENDING | MASKED
    fifo.unmask(a)
    assert fifo.drain(0) == [a]


def test_a_word_that_never_rests_still_gets_its_event(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo = FifoGuest(guest)
    (a,) = ipis(guest, fifo, 1)
    race = Racer(monkeypatch)

    def toggle() -> None:
        fifo.words[a] ^= MASKED

    race.steps = [toggle] * 4
    guest.evtchn.send(a)
    assert fifo.words[a] & PENDING
    fifo.unmask(a)
    assert fifo.drain(0) == [a]


def test_a_guest_that_never_lets_us_append_loses_only_its_own_event(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = FifoGuest(guest)
    a, b = ipis(guest, fifo, 2)
    guest.evtchn.send(a)
    race = Racer(monkeypatch)

    def toggle() -> None:
        fifo.words[a] ^= MASKED

    race.steps = [nothing, *[toggle] * 20]
    guest.evtchn.send(b)
    assert len(race.steps) > 10, "the number of attempts is bounded"
    assert not fifo.words[a] & BUSY


def test_rubbish_in_words_and_control_block_stays_the_guests_problem(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    ports = ipis(guest, fifo, 20)
    for value in (0xFFFFFFFF, 0, LINKED | LINK_MASK, BUSY | LINKED, PENDING, LINKED | 5):
        for index in range(64):
            fifo.words[index] = value
        fifo.block(0)[:] = memoryview(bytes([value & 0xFF]) * 72).cast("I")
        for port in ports:
            guest.evtchn.send(port)
            guest.evtchn.unmask(port)
            guest.evtchn.set_priority(port, port % 16)
    for port in ports:
        guest.evtchn.close(port)


def test_pages_stay_ours_whatever_the_guest_puts_in_their_place(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    (port,) = ipis(guest, fifo, 1)
    for gfn in (CONTROL_GFN, ARRAY_GFN):
        guest.memory.place(gfn, guest.pool.allocate(), readonly=True)
    guest.evtchn.send(port)
    assert guest.upcalls == [0]
    assert fifo.words[port] == 0, "the guest looks at another page now"
