"""memory_op as a PV guest makes it: frames come and go, and the machine-to-physical table follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mmu_rig import ARGUMENTS, BASE, DOMID, FREE, L1, OTHER_DOMID, PRW, Rig, va

from xenpy.errors import Errno
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.layout import OWNED
from xenpy.pv.mmu.reservation import INVALID_M2P_ENTRY

if TYPE_CHECKING:
    from collections.abc import Iterator

SELF = 0x7FF0
INCREASE, DECREASE, POPULATE, ADD_TO_PHYSMAP, MFN_LIST, EXCHANGE, MAPPING = 0, 1, 6, 7, 5, 11, 12
LIST, OUT = 0x100, 0x800


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.start()
    yield made
    made.close()


def reservation(where: int, count: int, order: int = 0, flags: int = 0, domid: int = SELF) -> tuple[int, ...]:
    return where, count, order | flags << 32, domid


def change(rig: Rig, command: int, numbers: list[int], order: int = 0, flags: int = 0, domid: int = SELF) -> int:
    rig.arguments(*numbers, offset=LIST)
    where = va(ARGUMENTS) + LIST
    return rig.hypercall(12, command, rig.arguments(*reservation(where, len(numbers), order, flags, domid)))


def listed(rig: Rig, count: int, offset: int = LIST) -> list[int]:
    return [rig.argument(offset + index * 8) for index in range(count)]


def owned(rig: Rig, mfn: int) -> bool:
    return bool(rig.mmu.frames.word(mfn) & OWNED)


def test_frames_given_back_are_gone_and_can_be_had_again(rig: Rig) -> None:
    rig.m2p[FREE] = 5
    rig.put(FREE, 7, 0x1234)
    before = rig.memory.ram_pages
    assert change(rig, DECREASE, [FREE, FREE + 1]) == 2
    assert rig.memory.ram_pages == before - 2
    assert rig.m2p[FREE] == INVALID_M2P_ENTRY
    assert not owned(rig, FREE)
    assert rig.update((L1 << PAGE_SHIFT | 8 * 9, FREE << PAGE_SHIFT | PRW)) == (-Errno.EBUSY, 0)
    assert change(rig, POPULATE, [70, 71, 72]) == 2, "the third would be more than the guest may have"
    mfns = listed(rig, 3)
    assert sorted(mfns[:2]) == [FREE, FREE + 1]
    assert mfns[2] == 72
    assert [rig.m2p[mfn] for mfn in mfns[:2]] == [70, 71]
    assert rig.entry(FREE, 7) == 0
    assert all(owned(rig, mfn) for mfn in mfns[:2])
    assert rig.mmu.audit() == []


def test_a_frame_that_is_mapped_goes_with_its_last_mapping(rig: Rig) -> None:
    slot = L1 << PAGE_SHIFT | 8 * 100
    assert rig.update((slot, FREE << PAGE_SHIFT | PRW)) == (0, 1)
    before = rig.memory.ram_pages
    assert change(rig, DECREASE, [FREE]) == 1
    assert rig.memory.ram_pages == before
    assert change(rig, DECREASE, [FREE]) == 0, "it is no longer the guest's to give"
    assert rig.update((slot, 0)) == (0, 1)
    assert rig.memory.ram_pages == before - 1
    assert rig.mmu.audit() == []


def test_giving_back_a_pinned_table_takes_it_apart(rig: Rig) -> None:
    rig.put(FREE, 0, (FREE + 1) << PAGE_SHIFT | PRW)
    assert rig.extended((0, FREE, 0)) == (0, 1)
    assert change(rig, DECREASE, [FREE]) == 1
    assert rig.counts(FREE) == rig.counts(FREE + 1) == (0, 0)
    assert rig.mmu.audit() == []


def test_a_table_comes_back_empty_and_shadow_paging_hears_of_it(rig: Rig) -> None:
    assert rig.extended((0, FREE, 0), (4, FREE, 0)) == (0, 2)
    assert change(rig, DECREASE, [FREE]) == 1
    rig.stored.clear()
    assert change(rig, POPULATE, [1]) == 1
    assert rig.stored == [(FREE * 4096 + slot * 8, 0) for slot in range(512)]


def test_extents_are_contiguous_and_aligned(rig: Rig) -> None:
    given = [FREE + 40, FREE + 43, FREE + 41, FREE + 42, FREE + 45]
    assert change(rig, DECREASE, given) == 5
    assert change(rig, POPULATE, [0x50], order=1) == 1
    (mfn,) = listed(rig, 1)
    assert mfn % 2 == 0
    assert {mfn, mfn + 1} <= set(given)
    assert [rig.m2p[mfn], rig.m2p[mfn + 1]] == [0x50, 0x51]
    assert change(rig, POPULATE, [0x60], order=2) == 0
    assert change(rig, POPULATE, [0x60], order=10) == 0


def test_addresses_are_as_narrow_as_asked(rig: Rig) -> None:
    assert change(rig, DECREASE, [FREE]) == 1
    assert change(rig, POPULATE, [0x50], flags=20) == 0, "all frames are above 1 MiB"
    assert change(rig, POPULATE, [0x50], flags=32) == 1


def test_more_frames_without_a_pfn(rig: Rig) -> None:
    assert change(rig, DECREASE, [FREE, FREE + 1]) == 2
    assert rig.hypercall(12, INCREASE, rig.arguments(*reservation(0, 1))) == 1, "the list may be missing"
    assert change(rig, INCREASE, [0, 0]) == 1
    (mfn,) = listed(rig, 1)
    assert rig.m2p[mfn] == INVALID_M2P_ENTRY
    assert owned(rig, FREE)
    assert owned(rig, FREE + 1)


@pytest.mark.parametrize(("domid", "result"), [(OTHER_DOMID, 0), (99, 0), (DOMID, 1)])
def test_whose_memory(rig: Rig, domid: int, result: int) -> None:
    assert change(rig, DECREASE, [FREE], domid=domid) == result


def test_pages_cannot_be_placed(rig: Rig) -> None:
    assert rig.hypercall(12, ADD_TO_PHYSMAP, rig.arguments(SELF, 0, 5)) == -Errno.EACCES


# -- exchange ---------------------------------------------------------------------------------------------------------


def exchange(
    rig: Rig, mfns: list[int], pfns: list[int], orders: tuple[int, int] = (0, 0), flags: int = 0, done: int = 0
) -> tuple[int, int]:
    """Return (result, nr_exchanged)."""
    rig.arguments(*mfns, offset=LIST)
    rig.arguments(*pfns, offset=OUT)
    given = reservation(va(ARGUMENTS) + LIST, len(mfns), orders[0])
    got = reservation(va(ARGUMENTS) + OUT, len(pfns), orders[1], flags)
    result = rig.hypercall(12, EXCHANGE, rig.arguments(*given, *got, done))
    return result, rig.argument(64)


def test_single_frames_become_an_extent(rig: Rig) -> None:
    first = -(-(FREE + 8) // 4) * 4
    mfns = [first + 3, first + 1, first, first + 2]
    rig.put(first, 0, 1)
    assert exchange(rig, mfns, [0x40], (0, 2)) == (0, 4)
    assert listed(rig, 1, OUT) == [first]
    assert [rig.m2p[first + index] for index in range(4)] == [0x40, 0x41, 0x42, 0x43]
    assert rig.entry(first, 0) == 0
    assert rig.mmu.audit() == []
    assert exchange(rig, [first], [0x50, 0x51, 0x52, 0x53], (2, 0)) == (0, 1)
    assert sorted(listed(rig, 4, OUT)) == [first, first + 1, first + 2, first + 3]


def test_frames_in_use_stay(rig: Rig) -> None:
    rig.put(FREE, 0, 1)
    assert exchange(rig, [FREE, L1], [0x40, 0x41]) == (-Errno.EINVAL, 1)
    assert rig.mmu.audit() == []
    assert exchange(rig, [FREE + 2, FREE + 9], [0x40], (0, 1)) == (-Errno.ENOMEM, 0)
    assert owned(rig, FREE + 2)
    assert owned(rig, FREE + 9)
    assert exchange(rig, [FREE + 2], [0x40], flags=12) == (-Errno.ENOMEM, 0)
    assert exchange(rig, [BASE - 1], [0x40]) == (-Errno.EINVAL, 0)
    assert exchange(rig, [FREE + 2, FREE + 2], [0x40], (0, 1)) == (-Errno.EINVAL, 0)
    assert owned(rig, FREE + 2)


def test_sizes_have_to_match(rig: Rig) -> None:
    assert exchange(rig, [FREE], [0x40], (0, 1))[0] == -Errno.EINVAL
    assert exchange(rig, [FREE], [0x40], (0xFFFFFFFF, 0xFFFFFFFF))[0] == -Errno.EPERM
    assert exchange(rig, [FREE], [0x40], (10, 10))[0] == -Errno.EPERM
    assert exchange(rig, [FREE], [0x40], done=2)[0] == -Errno.EINVAL
    assert exchange(rig, [FREE], [0x40], done=1) == (0, 1), "nothing was left to do"
    assert exchange(rig, [FREE], [0x40], (11, 1))[0] == -Errno.EPERM, "too large comes before unequal"


# -- the machine-to-physical table ------------------------------------------------------------------------------------


def test_where_the_table_is(rig: Rig) -> None:
    assert rig.hypercall(12, MAPPING, rig.arguments(0, 0, 0)) == 0
    assert tuple(listed(rig, 3, 0)) == rig.machphys
    assert rig.hypercall(12, MFN_LIST, rig.arguments(4, va(ARGUMENTS) + LIST, 0)) == 0
    assert rig.argument(LIST) == rig.machphys_mfns[0]
    assert rig.argument(16, 4) == 1
    assert rig.hypercall(12, MFN_LIST, rig.arguments(0, 0, 9)) == 0
    assert rig.argument(16, 4) == 0


def test_the_table_is_for_pv_guests(rig: Rig) -> None:
    rig.is_pv = False
    for command in (MAPPING, MFN_LIST, EXCHANGE):
        assert rig.hypercall(12, command, rig.arguments(*[0] * 9)) == -Errno.ENOSYS
