"""Whoever serves a ring dies between any two of its stores: the next one answers every request once, in order."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest
from xenbus_rig import FrontRing

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP, X86_64
from xenpy.abi.ring import SRING_REQ_PROD, SRING_RSP_PROD
from xenpy.devices.journal import Journal
from xenpy.devices.ring import BackRing, ring_entries
from xenpy.devices.vbd.requests import BlockRing
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

ENTRIES = ring_entries(1, X86_64.entry_size)

STEPS = 13
"""What is done about five requests: two looks for more, five responses, three pushes in two steps each."""


class Died(BaseException):
    """The server is no more."""


class Rig:
    """A ring, its journal, and servers that come and go."""

    def __init__(self, start: int = 0) -> None:
        self.page = memoryview(bytearray(PAGE_SIZE))
        self.front = FrontRing([self.page], X86_64.entry_size, start=start)
        self.journal_memory = bytearray(Journal.size(ENTRIES, X86_64.entry_size))
        self.journal().begin(self.page)
        self.done: list[int] = []

    def journal(self) -> Journal:
        return Journal(memoryview(self.journal_memory), ENTRIES, X86_64.entry_size)

    def ask(self, *ids: int) -> None:
        for request_id in ids:
            self.front.put(X86_64.request.pack(BLKIF_OP.FLUSH_DISKCACHE, 0, 0, request_id, 0))
        self.front.push()

    def serve(self, *, journaled: bool = True) -> None:
        """Serve until nothing waits, two requests to a push."""
        ring = BlockRing([self.page], X86_64, self.journal() if journaled else None)
        while requests := ring.take():
            for number, request in enumerate(requests):
                self.done.append(request.id)
                ring.answer(request, BLKIF_RSP.OKAY)
                if number % 2:
                    ring.push()
            ring.push()

    def answers(self) -> list[int]:
        return [X86_64.response.unpack(entry)[0] for entry in self.front.take(X86_64.response.size)]


def dying(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have the server die after so many of the things that it does."""
    steps = count()

    def wrap(kind: type, name: str) -> None:
        original: Callable[..., object] = getattr(kind, name)

        def wrapped(self: object, *args: object) -> object:
            result = original(self, *args)
            if next(steps) == step:
                raise Died
            return result

        monkeypatch.setattr(kind, name, wrapped)

    for kind, name in ((Journal, "take"), (BackRing, "put"), (Journal, "answer"), (BackRing, "push")):
        wrap(kind, name)


@pytest.mark.parametrize("start", [0, (1 << 32) - 2])
@pytest.mark.parametrize("step", range(STEPS + 1))
def test_every_request_is_answered_once(monkeypatch: pytest.MonkeyPatch, step: int, start: int) -> None:
    rig = Rig(start)
    rig.ask(1, 2, 3, 4, 5)
    with monkeypatch.context() as deadly:
        dying(deadly, step)
        died = False
        try:
            rig.serve()
        except Died:
            died = True
    assert died is (step < STEPS)
    seen, before = rig.answers(), len(rig.done)
    rig.ask(6, 7)
    rig.serve()
    assert seen + rig.answers() == [1, 2, 3, 4, 5, 6, 7]
    assert set(rig.done) == {1, 2, 3, 4, 5, 6, 7}
    assert not set(seen) & set(rig.done[before:])  # the guest may have written something else there since


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_who_has_no_journal_takes_over(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    rig = Rig((1 << 32) - 2)
    rig.ask(1, 2, 3, 4, 5)
    with monkeypatch.context() as deadly, suppress(Died):
        dying(deadly, step)
        rig.serve()
    before = len(rig.done)
    rig.journal().restore([rig.page])
    seen = rig.answers()
    rig.ask(6, 7)
    rig.serve(journaled=False)
    assert seen + rig.answers() == [1, 2, 3, 4, 5, 6, 7]
    assert not set(seen) & set(rig.done[before:])


def test_a_journal_that_is_nonsense_changes_nothing() -> None:
    rig = Rig()
    rig.ask(1, 2)
    memoryview(rig.journal_memory).cast("I")[0] = 1 << 31
    before = bytes(rig.page)
    rig.journal().restore([rig.page])
    assert rig.page == before


def test_what_was_answered_is_not_done_again() -> None:
    rig = Rig()
    rig.ask(1, 2)
    rig.serve()
    assert rig.answers() == [1, 2]
    rig.serve()
    assert rig.done == [1, 2]


def test_an_event_is_owed_to_who_has_not_seen_all() -> None:
    rig = Rig()
    assert not rig.journal().owes_event(rig.page)
    rig.ask(1, 2)
    rig.serve()
    assert rig.journal().owes_event(rig.page)
    rig.answers()
    assert not rig.journal().owes_event(rig.page)


def test_who_takes_back_what_is_under_way_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.ask(1, 2)
    with monkeypatch.context() as deadly:
        dying(deadly, 1)
        with pytest.raises(Died):
            rig.serve()
    rig.front.words[SRING_REQ_PROD] = rig.front.words[SRING_RSP_PROD]
    with pytest.raises(FrontendError, match="2 requests are under way"):
        rig.serve()
