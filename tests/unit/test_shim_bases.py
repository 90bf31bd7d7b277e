"""Two bases that a kernel goes to and fro between: when in-guest code leaves CR3 as it is, and when it must not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from mmu_rig import FREE, L1, L3, L4, PRW
from test_shim_calls import DOMID_SELF, MMUEXT_OP, NEW_BASEPTR, TLB_FLUSH_LOCAL, Native, Ring3, updates, words

from xenpy.memory import PAGE_SHIFT
from xenpy.shim.layout import State

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER, L3_OF_OTHER, L2_OF_OTHER, L1_OF_OTHER = range(FREE, FREE + 4)
SPARE: Final = FREE + 4
"""A frame that is no table."""
SLOT, ENTRY = 5, 7
"""Where the tables of the other base lead to what the first one does not map."""
VALUE: Final = SPARE << PAGE_SHIFT | PRW | 1 << 5 | 1 << 6
TURNS: Final = 40


class Noting(Ring3):
    """Loads of CR3 are counted and noted."""

    def _load_base(self) -> None:
        self._note_load()
        super()._load_base()


class Poked(Native):
    """A kernel that maps a frame in another base, goes there, clears the entry, and comes back."""

    def __init__(self) -> None:
        super().__init__(Noting)
        rig = self.rig
        rig.put(OTHER, 0, L3 << PAGE_SHIFT | PRW)
        rig.put(OTHER, SLOT, L3_OF_OTHER << PAGE_SHIFT | PRW)
        rig.put(L3_OF_OTHER, SLOT, L2_OF_OTHER << PAGE_SHIFT | PRW)
        rig.put(L2_OF_OTHER, SLOT, L1_OF_OTHER << PAGE_SHIFT | PRW)
        rig.mmu.pin(OTHER, 4, rig.checkpoint)
        rig.mmu.types.set_role(OTHER, kernel=True)

    def base(self, mfn: int) -> int:
        """Change to a base; return how often CR3 was loaded for that."""
        before = self.state[State.INVLPG]
        keep, address = words(NEW_BASEPTR, mfn, 0)
        assert self.call(MMUEXT_OP, address, 1, 0, DOMID_SELF) == 0
        del keep
        assert self.state[State.KERNEL_CR3] == mfn << PAGE_SHIFT
        return int(self.state[State.INVLPG] - before)

    def set(self, value: int, table: int = L1_OF_OTHER, slot: int = ENTRY) -> None:
        assert updates(self, ((table << PAGE_SHIFT) + slot * 8, value)) == 0

    def poke(self, value: int = VALUE) -> tuple[int, int]:
        """Do it; return how often CR3 was loaded on the way there, and back."""
        self.set(value)
        there = self.base(OTHER)
        self.set(0)
        return there, self.base(L4)

    def settle(self) -> None:
        """Do it until in-guest code expects it."""
        for _ in range(TURNS):
            last = self.poke()
        assert last == (0, 0)


@pytest.fixture
def poked() -> Iterator[Poked]:
    made = Poked()
    yield made
    made.close()


def test_cr3_is_loaded_until_the_kernel_has_gone_to_and_fro_often_enough(poked: Poked) -> None:
    assert [poked.poke() for _ in range(3)] == [(1, 1)] * 3
    poked.settle()
    assert poked.state[State.LOADED_CR3] == OTHER << PAGE_SHIFT
    assert [poked.poke() for _ in range(3)] == [(0, 0)] * 3


@pytest.mark.parametrize("other", [VALUE + (1 << PAGE_SHIFT), VALUE & ~2, VALUE | 1 << 63])
def test_an_entry_that_has_become_another_is_forgotten(poked: Poked, other: int) -> None:
    poked.settle()
    assert poked.poke(other) == (1, 0)
    assert poked.poke(other) == (0, 0)
    assert poked.poke() == (1, 0)


def test_an_entry_that_is_still_cleared_is_forgotten_when_its_base_comes(poked: Poked) -> None:
    poked.settle()
    assert poked.base(OTHER) == 1
    assert poked.base(L4) == 0


def test_an_entry_that_changes_is_forgotten_at_once(poked: Poked) -> None:
    poked.settle()
    poked.set(VALUE)
    poked.set(VALUE + (1 << PAGE_SHIFT))
    assert poked.base(OTHER) == 1


def test_a_second_entry_that_is_cleared_is_forgotten(poked: Poked) -> None:
    poked.settle()
    poked.set(VALUE, slot=ENTRY + 1)
    poked.set(VALUE)
    assert poked.base(OTHER) == 0
    poked.set(0)
    poked.set(0, slot=ENTRY + 1)
    assert poked.base(L4) == 1


def test_an_entry_that_both_bases_lead_to_is_forgotten_when_the_kernel_goes_back(poked: Poked) -> None:
    """It is for this that the kernel loads the base, as far as we know."""
    poked.set(VALUE, L1, 50)
    poked.settle()
    poked.set(VALUE)
    assert poked.base(OTHER) == 0
    poked.set(0, L1, 50)
    assert poked.base(L4) == 1


def test_an_entry_of_a_table_that_has_another_way_to_it_is_forgotten(poked: Poked) -> None:
    """The other way could be one of the other base's."""
    poked.rig.mmu.update((L2_OF_OTHER << PAGE_SHIFT) + 8 * 9, L1_OF_OTHER << PAGE_SHIFT | PRW, poked.rig.checkpoint)
    for _ in range(TURNS):
        last = poked.poke()
    assert last == (1, 1)
    poked.rig.mmu.update((L2_OF_OTHER << PAGE_SHIFT) + 8 * 9, 0, poked.rig.checkpoint)
    poked.settle()


def test_a_table_that_two_entries_of_the_root_lead_to_is_not_the_loaded_ones_alone(poked: Poked) -> None:
    for table in (OTHER, L4):
        poked.rig.mmu.update((table << PAGE_SHIFT) + 8 * 9, L3_OF_OTHER << PAGE_SHIFT | PRW, poked.rig.checkpoint)
    for _ in range(TURNS):
        last = poked.poke()
    assert last == (1, 1)


def test_what_the_hypervisor_has_changed_is_forgotten(poked: Poked) -> None:
    poked.settle()
    poked.state[State.STALE] = 1
    assert poked.poke() == (1, 0)


def test_a_flush_loads_the_base_that_the_kernel_is_on(poked: Poked) -> None:
    poked.settle()
    keep, address = words(TLB_FLUSH_LOCAL, 0, 0)
    assert poked.call(MMUEXT_OP, address, 1, 0, DOMID_SELF) == 0
    del keep
    assert poked.state[State.LOADED_CR3] == L4 << PAGE_SHIFT
    assert poked.state[State.STALE] == poked.state[State.CLEARED_ENTRY] == 0


def test_a_base_that_maps_what_the_loaded_one_does_not_is_loaded(poked: Poked) -> None:
    poked.settle()
    poked.rig.mmu.update((L4 << PAGE_SHIFT) + 8 * 9, L3_OF_OTHER << PAGE_SHIFT | PRW, poked.rig.checkpoint)
    poked.set(VALUE)
    assert poked.base(OTHER) == 0
    assert poked.base(L4) == 1
