"""Page typing while others are at work: other threads of ours in between tables, and code in the guest at any time."""

from __future__ import annotations

from threading import Lock, Thread
from time import sleep
from typing import TYPE_CHECKING

import pytest
from mmu_rig import FREE, L1, L3, L4, P, Rig, audited_rig, slot, to

from xenpy.errors import Errno, XenError
from xenpy.pv.mmu.layout import FrameType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIN_L4, UNPIN = 3, 4
A, B, C, D, E = range(FREE, FREE + 5)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with audited_rig() as made:
        yield made


def before_locking(rig: Rig, action: Callable[[], None]) -> None:
    """Have code in the guest do something just before we take the next lock."""
    frames = rig.mmu.frames
    lock = frames.lock

    def intrude(mfn: int) -> None:
        frames.lock = lock
        action()
        lock(mfn)

    frames.lock = intrude


def replace_in_guest(rig: Rig, value: int) -> None:
    """Change slot 100 of the first L1 and the counts that go with it."""
    frames = rig.mmu.frames
    old = rig.entry(L1, 100)
    frames.get_l1_entry(value)
    rig.put(L1, 100, value)
    if old & P:
        frames.put_l1_entry(old)


@pytest.mark.parametrize("value", [to(A, P), to(A), to(B)])
def test_the_guest_changes_an_entry_as_we_do(rig: Rig, value: int) -> None:
    where = slot(L1, 100)
    assert rig.update((where, to(A))) == (0, 1)
    before_locking(rig, lambda: replace_in_guest(rig, value))
    assert rig.update((where, to(A))) == (0, 1), "which to us made no difference at first"
    assert [rig.counts(mfn) for mfn in (A, B)] == [(1, 1), (0, 0)]


def test_the_guest_changes_an_entry_before_a_store_that_compares(rig: Rig) -> None:
    where = slot(L1, 100)
    assert rig.update((where, to(A))) == (0, 1)
    old = rig.entry(L1, 100)
    before_locking(rig, lambda: replace_in_guest(rig, to(B)))
    assert not rig.mmu.emulate_write(where, old, 0, compare=True)
    assert [rig.counts(mfn) for mfn in (A, B)] == [(0, 0), (1, 1)]


def test_a_table_goes_while_an_entry_of_it_is_validated(rig: Rig) -> None:
    for table, child in ((D, C), (C, B), (B, A)):
        rig.put(table, 0, to(child))
    rig.put(E, 0, to(L3))
    assert rig.extended((PIN_L4, E, 0)) == (0, 1)

    def unpin() -> None:
        rig.on_checkpoint = lambda: None
        rig.mmu.unpin(E, rig.checkpoint)

    rig.on_checkpoint = unpin
    with pytest.raises(XenError) as caught:
        rig.mmu.update(slot(E, 1), to(C), rig.checkpoint)
    assert caught.value.errno is Errno.EINVAL
    assert [rig.counts(mfn) for mfn in (A, B, C, D, E)] == [(0, 0)] * 5


def test_a_table_that_is_being_validated_takes_no_entries(rig: Rig) -> None:
    for table, child in ((D, C), (C, B), (B, A)):
        rig.put(table, 0, to(child))
    seen: list[tuple[int, int]] = []

    def intrude() -> None:
        rig.on_checkpoint = lambda: None
        seen.append((rig.kind(C), rig.update((slot(C, 5), 0))[0]))

    rig.on_checkpoint = intrude
    assert rig.extended((PIN_L4, D, 0)) == (0, 1)
    assert seen == [(FrameType.L3, -Errno.EINVAL)]


def test_threads_wait_for_tables_that_others_validate_or_take_apart(rig: Rig) -> None:
    """Two trees share all but their L4s, and two threads pin and unpin one each, taking turns in between tables."""
    for child in range(3):
        rig.put(C, child, to(FREE + 10 + child))
        for index in range(4):
            rig.put(FREE + 10 + child, index, to(FREE + 20 + child * 4 + index))
    for root in (D, E):
        rig.put(root, 0, to(C))
    lock = Lock()
    turns: list[int] = []

    def checkpoint() -> None:
        lock.release()
        sleep(0.0002)
        lock.acquire()

    def work(root: int) -> None:
        for _ in range(20):
            with lock:
                rig.mmu.pin(root, 4, checkpoint)
            with lock:
                rig.mmu.unpin(root, checkpoint)
            turns.append(root)

    threads = [Thread(target=work, args=(root,)) for root in (D, E)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turns) == [D] * 20 + [E] * 20
    assert rig.counts(C) == (0, 0)
    assert rig.counts(L4) == (3, 2)
