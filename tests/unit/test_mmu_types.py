"""Page types: what may become a page table, what may be mapped, and what is counted."""

from __future__ import annotations

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
    PCD,
    PIN_L1,
    PIN_L2,
    PIN_L3,
    PIN_L4,
    POOL,
    PRESENT,
    PRW,
    PSE,
    PWT,
    READ_ONLY,
    RW,
    UNPIN,
    USER,
    XEN_ENTRY,
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
)

from xenpy.errors import Errno
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.layout import OWNED, PINNED, VALIDATED, WAS_TABLE, FrameType

if TYPE_CHECKING:
    from collections.abc import Iterator

GUEST_KERNEL = 1 << 52


@pytest.fixture
def rig() -> Iterator[Rig]:
    with audited_rig() as made:
        yield made


# -- the start --------------------------------------------------------------------------------------------------------


def test_the_builders_tables(rig: Rig) -> None:
    assert [rig.kind(mfn) for mfn in (L4, L3, L2, L1, ARGUMENTS, FREE)] == [4, 3, 2, 1, FrameType.WRITABLE, 0]
    assert rig.counts(L4) == (3, 2), "mapped read-only, pinned, and the vCPU's"
    assert rig.counts(L1) == (2, 1)
    assert rig.counts(ARGUMENTS) == (1, 1)
    assert rig.mmu.frames.word(L4) & PINNED
    assert rig.filled == [(L4, False), (L4, True)]
    assert rig.stored == [], "what never was a table is not shadowed"


def test_a_builder_that_lists_other_tables_than_it_built() -> None:
    rig = Rig()
    with pytest.raises(ValueError, match="0x401 was built as L3"):
        rig.mmu.adopt({L4: 4, L3: 3}, L4, PAGES)
    rig.close()


def test_frames_beyond_those_owned_are_free() -> None:
    rig = Rig()
    rig.mmu.adopt({}, L4, PAGES - 1)
    last = BASE + PAGES - 1
    assert not rig.mmu.frames.word(last) & OWNED
    assert rig.mmu.reservation.allocate(0) == last
    assert rig.mmu.reservation.allocate(0) is None
    rig.close()


# -- pinning ----------------------------------------------------------------------------------------------------------


def test_pinning_validates_the_whole_tree_and_unpinning_takes_it_apart(rig: Rig) -> None:
    tree(rig)
    rig.put(A, 5, to(FREE + 9))
    rig.put(A, 6, to(A, P))
    assert rig.extended((PIN_L4, D, 0)) == (0, 1)
    assert [rig.kind(mfn) for mfn in (A, B, C, D)] == [1, 2, 3, 4]
    assert [rig.counts(mfn) for mfn in (A, B, C, D, FREE + 9)] == [(2, 1), (1, 1), (1, 1), (1, 1), (1, 1)]
    assert rig.mmu.frames.word(D) & (PINNED | VALIDATED) == PINNED | VALIDATED
    assert rig.entry(D, 257) == XEN_ENTRY
    assert rig.checkpoints >= 3, "others get a turn between tables"
    assert rig.extended((UNPIN, D, 0)) == (0, 1)
    assert [rig.counts(mfn) for mfn in (A, B, C, D, FREE + 9)] == [(0, 0)] * 5
    assert rig.mmu.frames.word(A) == OWNED | WAS_TABLE
    assert rig.mmu.frames.word(FREE + 9) == OWNED


def test_pinning_twice_and_unpinning_what_is_not_pinned(rig: Rig) -> None:
    assert rig.extended((PIN_L1, A, 0), (PIN_L1, A, 0)) == (-Errno.EINVAL, 1)
    assert rig.counts(A) == (1, 1)
    assert rig.extended((UNPIN, A, 0), (UNPIN, A, 0)) == (-Errno.EINVAL, 1)
    assert rig.extended((UNPIN, B, 0)) == (-Errno.EINVAL, 0)


@pytest.mark.parametrize("mfn", [0, BASE - 1, BASE + PAGES, POOL, (1 << 40) - 1, (1 << 64) - 1])
def test_frames_that_are_not_the_guests(rig: Rig, mfn: int) -> None:
    for command in (PIN_L1, PIN_L4, UNPIN, 5, 15 if mfn else 5, 16):
        assert rig.extended((command, mfn, 0)) == (-Errno.EINVAL, 0)
    assert rig.extended((17, A, mfn)) == (-Errno.EINVAL, 0)
    assert rig.update((mfn << PAGE_SHIFT, 0))[0] == -Errno.EINVAL


def test_a_frame_has_one_type_at_a_time(rig: Rig) -> None:
    assert rig.extended((PIN_L1, A, 0)) == (0, 1)
    for command in (PIN_L2, PIN_L3, PIN_L4):
        assert rig.extended((command, A, 0)) == (-Errno.EINVAL, 0)
    assert rig.update((slot(L1, 100), to(A))) == (-Errno.EBUSY, 0), "a table is not mapped writable"
    assert rig.update((slot(L1, 100), to(A, P))) == (0, 1)
    assert rig.extended((UNPIN, A, 0)) == (0, 1)
    assert rig.update((slot(L1, 101), to(A))) == (0, 1)
    assert rig.extended((PIN_L1, A, 0)) == (-Errno.EINVAL, 0), "what is mapped writable is no table"
    assert rig.update((slot(L1, 101), to(A, P))) == (0, 1), "made read-only"
    assert rig.extended((PIN_L2, A, 0)) == (0, 1)
    assert rig.counts(A) == (3, 1)


@pytest.mark.parametrize(
    ("entry", "errno"),
    [
        (to(A), Errno.EBUSY),  # itself, writable
        (to(L1), Errno.EBUSY),
        (to(BASE + PAGES), Errno.EPERM),
        (to((1 << 40) - 1), Errno.EINVAL),
        (to(READ_ONLY), Errno.EBUSY),
        (to(B, PRW | PWT), Errno.EINVAL),
        (to(B, PRW | PCD), Errno.EINVAL),
        (to(B, PRW | PSE), Errno.EINVAL),  # the PAT bit of an L1 entry
    ],
)
def test_an_l1_with_a_bad_entry(rig: Rig, entry: int, errno: Errno) -> None:
    rig.put(A, 0, to(B))
    rig.put(A, 1, to(C, P))
    rig.put(A, 511, entry)
    before = [rig.entry(A, index) for index in range(512)]
    assert rig.extended((PIN_L1, A, 0)) == (-errno, 0)
    assert [rig.counts(mfn) for mfn in (A, B, C)] == [(0, 0)] * 3
    assert [rig.entry(A, index) for index in range(512)] == before
    assert rig.update((slot(L1, 99), entry)) == (-errno, 0) or entry == to(A)


def test_frames_of_the_hypervisors_may_be_mapped_as_it_allows(rig: Rig) -> None:
    for entry in (to(POOL), to(POOL, P), to(READ_ONLY, P)):
        assert rig.update((slot(L1, 99), entry)) == (0, 1)
    assert rig.update((slot(L1, 99), 0)) == (0, 1)


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("flags", [PRW | PSE, PRW | GLOBAL, PRW | PWT, PRW | PCD])
def test_flags_of_upper_entries(rig: Rig, level: int, flags: int) -> None:
    tree(rig)
    rig.put((B, C, D)[level - 2], 7, to((A, B, C)[level - 2], flags))
    assert rig.extended((PIN_L4, D, 0)) == (-Errno.EINVAL, 0)
    assert [rig.counts(mfn) for mfn in (A, B, C, D)] == [(0, 0)] * 4
    assert rig.update((slot((L2, L3, L4)[level - 2], 7), to(A, flags))) == (-Errno.EINVAL, 0)


def test_an_error_deep_down_undoes_everything(rig: Rig) -> None:
    tree(rig)
    rig.put(C, 1, to(FREE + 5))
    rig.put(FREE + 5, 0, to(FREE + 6))
    rig.put(FREE + 6, 0, to(L4))
    assert rig.extended((PIN_L4, D, 0)) == (-Errno.EBUSY, 0)
    assert [rig.counts(mfn) for mfn in (A, B, C, D, FREE + 5, FREE + 6)] == [(0, 0)] * 6


# -- what the hypervisor adds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "stored"),
    [
        (PRESENT, PRESENT | USER | GUEST_KERNEL),
        (PRESENT | GLOBAL, PRESENT | USER | GUEST_KERNEL | GLOBAL),
        (PRESENT | USER, PRESENT | USER | GLOBAL),
        (PRESENT | USER | GUEST_KERNEL, PRESENT | USER | GUEST_KERNEL),
        (
            PRESENT | RW | NX | ACCESSED | DIRTY | 0xE00,
            PRESENT | RW | USER | GUEST_KERNEL | NX | ACCESSED | DIRTY | 0xE00,
        ),
        (RW, RW),
    ],
)
def test_bits_of_l1_entries(rig: Rig, flags: int, stored: int) -> None:
    rig.put(A, 3, to(B, flags))
    assert rig.extended((PIN_L1, A, 0)) == (0, 1)
    assert rig.entry(A, 3) == to(B, stored)
    assert rig.update((slot(A, 4), to(C, flags))) == (0, 1)
    assert rig.entry(A, 4) == to(C, stored)
    assert rig.stored == [(slot(A, 4), to(C, stored))]


def test_bits_of_upper_entries(rig: Rig) -> None:
    tree(rig)
    for table, child in ((D, C), (C, B), (B, A)):
        rig.put(table, 0, to(child, PRESENT))
    assert rig.extended((PIN_L4, D, 0)) == (0, 1)
    assert rig.entry(D, 0) == to(C, PRESENT | USER | ACCESSED)
    assert rig.entry(C, 0) == to(B, PRESENT | USER)
    assert rig.update((slot(B, 1), to(A, PRESENT | RW))) == (0, 1)
    assert rig.entry(B, 1) == to(A, PRW)


def test_a_frame_that_was_a_table_is_changed_in_the_guest(rig: Rig) -> None:
    assert rig.extended((PIN_L1, A, 0), (UNPIN, A, 0)) == (0, 2)
    rig.put(A, 3, to(B, PRESENT))
    assert rig.extended((PIN_L1, A, 0)) == (0, 1)
    assert rig.stored == [(slot(A, 3), to(B, PRESENT | USER | GUEST_KERNEL))]


# -- linear page tables -----------------------------------------------------------------------------------------------


def test_a_table_may_show_itself_read_only(rig: Rig) -> None:
    assert rig.update((slot(L4, 300), to(L4, P))) == (0, 1)
    assert rig.counts(L4) == (3, 2)
    assert rig.update((slot(L4, 301), to(L4))) == (-Errno.EINVAL, 0)
    assert rig.update((slot(L4, 300), 0)) == (0, 1)


def test_a_table_may_show_another_of_its_level(rig: Rig) -> None:
    tree(rig)
    assert rig.extended((PIN_L4, D, 0)) == (0, 1)
    assert rig.update((slot(L4, 300), to(D, P)), (slot(L4, 301), to(D, P))) == (0, 2)
    assert rig.counts(D) == (3, 3)
    assert rig.update((slot(D, 300), to(L4, P))) == (-Errno.EINVAL, 0), "one that is shown shows no other"
    assert rig.extended((UNPIN, D, 0)) == (0, 1)
    assert rig.kind(D) == 4
    assert rig.update((slot(L4, 300), 0), (slot(L4, 301), 0)) == (0, 2)
    assert [rig.counts(mfn) for mfn in (A, B, C, D)] == [(0, 0)] * 4
    assert rig.extended((PIN_L4, D, 0)) == (0, 1)
    assert rig.update((slot(D, 300), to(L4, P))) == (0, 1), "and the other way round"
    assert rig.extended((UNPIN, D, 0)) == (0, 1)
    assert rig.counts(L4) == (3, 2)
