"""Page types as entries change: by updates, by stores of the guest's own, and while others have a frame locked."""

from __future__ import annotations

from threading import Timer
from typing import TYPE_CHECKING

import pytest
from mmu_rig import (
    ACCESSED,
    ARGUMENTS,
    BASE,
    DIRTY,
    FREE,
    GLOBAL,
    L1,
    L2,
    L3,
    L4,
    NX,
    PAGES,
    PIN_L1,
    PIN_L4,
    POOL,
    PRESENT,
    PRW,
    UNPIN,
    A,
    B,
    C,
    D,
    P,
    Rig,
    audited_rig,
    slot,
    to,
    tree,
    va,
)

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.layout import MAX_REFS, ONE_REF, VALIDATED
from xenpy.pv.mmu.reservation import INVALID_M2P_ENTRY

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def rig() -> Iterator[Rig]:
    with audited_rig() as made:
        yield made


# -- updates ----------------------------------------------------------------------------------------------------------


def test_entries_keep_count(rig: Rig) -> None:
    where = slot(L1, 100)
    assert rig.update((where, to(A)), (where, to(B)), (where, to(B, P)), (where | 2, to(B, P | NX))) == (0, 4)
    assert [rig.counts(mfn) for mfn in (A, B)] == [(0, 0), (1, 0)]
    assert rig.update((where, to(C) & ~PRESENT)) == (0, 1), "what is not present may say anything"
    assert [rig.counts(mfn) for mfn in (B, C)] == [(0, 0), (0, 0)]


def test_upper_entries_make_and_unmake_tables(rig: Rig) -> None:
    assert rig.update((slot(L2, 1), to(A))) == (0, 1)
    assert rig.kind(A) == 1
    assert rig.update((slot(L2, 1), to(A, P))) == (0, 1)
    assert rig.counts(A) == (1, 1)
    assert rig.update((slot(L2, 1), to(B))) == (0, 1)
    assert [rig.kind(A), rig.kind(B)] == [0, 1]
    assert rig.update((slot(L2, 1), 0)) == (0, 1)
    assert rig.kind(B) == 0


@pytest.mark.parametrize("index", [256, 257, 271])
def test_the_hypervisors_slots(rig: Rig, index: int) -> None:
    before = rig.entry(L4, index)
    for value in (0, to(L3)):
        assert rig.update((slot(L4, index), value)) == (-Errno.EINVAL, 0)
    assert rig.entry(L4, index) == before
    assert rig.update((slot(L3, index), to(A))) == (0, 1), "other levels are the guest's"


def test_accessed_and_dirty_bits_are_kept_on_request(rig: Rig) -> None:
    where = slot(L1, 100)
    assert rig.update((where, to(A, PRW | ACCESSED | DIRTY))) == (0, 1)
    assert rig.update((where | 2, to(B, P))) == (0, 1)
    assert rig.entry(L1, 100) == to(B, P | ACCESSED | DIRTY | GLOBAL)
    assert rig.update((where | 3, to(B, P))) == (0, 1)
    assert rig.entry(L1, 100) == to(B, P | GLOBAL)
    rig.put(L2, 0, rig.entry(L2, 0) | ACCESSED | DIRTY)
    assert rig.update((slot(L2, 0) | 2, to(L1))) == (0, 1)
    assert rig.entry(L2, 0) == to(L1, PRW | ACCESSED | DIRTY)


def test_plain_memory_is_written_as_it_is(rig: Rig) -> None:
    assert rig.update((slot(A, 2), 0x1234), (slot(ARGUMENTS, 200), 0x5678)) == (0, 2)
    assert (rig.entry(A, 2), rig.entry(ARGUMENTS, 200)) == (0x1234, 0x5678)
    assert rig.counts(A) == (0, 0)
    assert rig.stored == []
    assert rig.update((slot(A, 2) + 4, 0)) == (-Errno.ENOSYS, 0), "the low three bits are a command"


def test_writes_to_what_was_a_table_are_made_in_the_guest(rig: Rig) -> None:
    assert rig.extended((PIN_L1, A, 0), (UNPIN, A, 0)) == (0, 2)
    assert rig.update((slot(A, 2), 0x1234)) == (0, 1)
    assert rig.stored == [(slot(A, 2), 0x1234)]
    rig.stored.clear()
    assert rig.extended((16, A, 0)) == (0, 1)
    assert len(rig.stored) == 512
    assert rig.entry(A, 2) == 0


def test_pages_are_cleared_and_copied(rig: Rig) -> None:
    rig.put(A, 5, 0x55)
    assert rig.extended((17, B, A), (16, A, 0)) == (0, 2)
    assert (rig.entry(A, 5), rig.entry(B, 5)) == (0, 0x55)
    assert rig.extended((16, L1, 0)) == rig.extended((17, L1, A)) == (-Errno.EINVAL, 0), "not a page table"
    assert rig.extended((17, A, L1)) == (0, 1), "but from one"


def test_pfns(rig: Rig) -> None:
    assert rig.update((A << PAGE_SHIFT | 1, 0x77), (B << PAGE_SHIFT | 1, (1 << 64) - 1)) == (0, 2)
    assert (rig.m2p[A], rig.m2p[B]) == (0x77, INVALID_M2P_ENTRY)
    assert rig.update((POOL << PAGE_SHIFT | 1, 0)) == (-Errno.EINVAL, 0)


def test_references_are_limited(rig: Rig) -> None:
    rig.words[A - BASE] += (MAX_REFS - 1) * ONE_REF
    assert rig.update((slot(L1, 100), to(A, P))) == (0, 1)
    assert rig.update((slot(L1, 101), to(A, P))) == rig.update((slot(L1, 101), to(A))) == (-Errno.EBUSY, 0)
    assert rig.extended((PIN_L1, A, 0)) == (-Errno.EINVAL, 0)
    rig.words[A - BASE] -= (MAX_REFS - 1) * ONE_REF


# -- stores of the guest's own ----------------------------------------------------------------------------------------


def test_emulated_stores(rig: Rig) -> None:
    mmu, where = rig.mmu, slot(L1, 100)
    assert mmu.emulate_write(where, 0, to(A), compare=False)
    assert rig.counts(A) == (1, 1)
    old = rig.entry(L1, 100)
    assert not mmu.emulate_write(where, old ^ ACCESSED, to(B), compare=True)
    assert rig.counts(B) == (0, 0)
    assert mmu.emulate_write(where, old, to(B), compare=True)
    assert [rig.counts(mfn) for mfn in (A, B)] == [(0, 0), (1, 1)]
    assert mmu.emulate_write(where, 0, 0, compare=False)
    for gpa, value, errno in [
        (where, to(L4), Errno.EBUSY),
        (where, to(BASE + PAGES), Errno.EPERM),
        (slot(L2, 1), to(A), Errno.EINVAL),
        (slot(A, 1), 5, Errno.EINVAL),
        (where + 4, 0, Errno.EINVAL),
        (0, 0, Errno.EINVAL),
    ]:
        with pytest.raises(XenError) as caught:
            mmu.emulate_write(gpa, 0, value, compare=False)
        assert caught.value.errno is errno


def test_grant_mappings_hold_references_to_own_frames_only(rig: Rig) -> None:
    mmu, where = rig.mmu, slot(L1, 100)
    foreign = 0x20  # which the guest may not map by itself
    assert rig.update((where, to(A))) == (0, 1)
    assert mmu.replace_foreign(where, to(foreign)) == to(A, PRW | GLOBAL)
    assert rig.counts(A) == (0, 0)
    for mfn in (A, POOL):
        with pytest.raises(XenError):
            mmu.replace_foreign(where, to(B), mfn=mfn)
    assert rig.counts(B) == (0, 0)
    assert mmu.replace_foreign(where, 0, mfn=foreign) == to(foreign, PRW | GLOBAL)
    assert mmu.replace_foreign(where, to(B)) == 0
    assert rig.counts(B) == (1, 1)
    for gpa, value, errno in (
        (where, to(L1), Errno.EBUSY),
        (slot(A, 0), 0, Errno.EINVAL),
        (where + 1, 0, Errno.EINVAL),
    ):
        with pytest.raises(XenError) as caught:
            mmu.replace_foreign(gpa, value)
        assert caught.value.errno is errno
    assert mmu.replace_foreign(where, 0, mfn=B) == to(B, PRW | GLOBAL)


def test_translations_are_dropped_before_a_frame_becomes_a_table(rig: Rig) -> None:
    found: list[tuple[int, int]] = []
    rig.mmu.types.flush = lambda: found.append((rig.kind(A), rig.mmu.frames.word(A) & VALIDATED))
    assert rig.extended((PIN_L1, A, 0)) == (0, 1)
    assert found == [(1, 0)], "when it can be mapped writable no more, and nothing has been looked at yet"
    assert rig.update((slot(L2, 9), to(A))) == (0, 1)
    assert len(found) == 1, "it was one already"
    assert rig.hypercall(2, rig.arguments(B), 8) == 0
    assert len(found) == 2


# -- the word's locking -----------------------------------------------------------------------------------------------


def hold(rig: Rig, mfn: int) -> tuple[Timer, list[int]]:
    """Lock a frame as code in the guest does, for longer; the list is empty when it is about to be unlocked."""
    frames, locked = rig.mmu.frames, [mfn]
    frames.lock(mfn)

    def unlock() -> None:
        locked.clear()
        frames.unlock(mfn)

    timer = Timer(0.02, unlock)
    timer.start()
    return timer, locked


def test_the_lock_bit_is_waited_for(rig: Rig) -> None:
    for table, mfn in ((L1, A), (L2, B)):
        release, locked = hold(rig, table)
        assert rig.update((slot(table, 100), to(mfn))) == (0, 1)
        assert not locked
        release.join()


def test_a_frame_turns_into_a_table_or_back_only_while_unlocked(rig: Rig) -> None:
    for command in (PIN_L1, UNPIN):
        release, locked = hold(rig, A)
        assert rig.extended((command, A, 0)) == (0, 1)
        assert not locked
        release.join()


def test_a_table_that_another_thread_validates_is_waited_for(rig: Rig) -> None:
    """While others have their turn, they find the tables half done: they wait for them, or leave them alone."""
    tree(rig)
    seen: list[tuple[int, int]] = []

    def intrude() -> None:
        word = rig.mmu.frames.word(C)
        if not word & VALIDATED and rig.kind(C) == 3 and not seen:
            seen.append((0, 0))
            seen.append(rig.update((slot(C, 5), 0)))

    rig.on_checkpoint = intrude
    assert rig.extended((PIN_L4, D, 0)) == (0, 1)
    assert seen[1] == (-Errno.EINVAL, 0)


def test_update_va_mapping(rig: Rig) -> None:
    cpu = rig.vcpus[0]
    call = rig.hypercall
    assert call(14, va(FREE), to(A), 0) == 0
    assert rig.entry(L1, FREE - BASE) == to(A, PRW | GLOBAL)
    assert cpu.asked == []
    mask = rig.arguments(0b110, offset=0x800)
    for flags, asked in [
        (1, ("flush",)),
        (2, ("invlpg", va(FREE))),
        (1 | 4, ("flush_on", None, None)),
        (2 | 4, ("flush_on", None, va(FREE))),
        (1 | mask, ("flush_on", [1], None)),
        (2 | mask, ("flush_on", [1], va(FREE))),
    ]:
        cpu.asked.clear()
        assert call(14, va(FREE), to(A), flags) == 0
        assert cpu.asked == [asked]
    assert call(14, va(FREE), to(A), 1 | 0x7000_0000) == -Errno.EFAULT
    for gva in (1 << 30, 1 << 47, 0xFFFF_8080_0000_0000, 0xFFFF_8880_0000_0000):
        assert call(14, gva, to(A), 0) == -Errno.EINVAL
    assert call(14, va(FREE), to(L1), 0) == -Errno.EBUSY
