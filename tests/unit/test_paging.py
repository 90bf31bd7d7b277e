"""Walks of page tables of each kind, built here bit by bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv import paging
from xenpy.pv.paging import translate

if TYPE_CHECKING:
    from collections.abc import Iterator

RAM = 64 * PAGE_SIZE
CR0 = paging.CR0_PE | paging.CR0_PG | paging.CR0_WP
CR4 = paging.CR4_PAE | paging.CR4_PSE
EFER = paging.EFER_LME | paging.EFER_LMA
PRESENT, RW, LARGE = paging.PTE_PRESENT, paging.PTE_RW, paging.PTE_PSE
NX = 1 << 63
CR3 = 0x1000


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory()
    made.add_ram(0, RAM)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _clean(memory: GuestMemory) -> None:
    memory.write(0, bytes(RAM))


def entry(memory: GuestMemory, table: int, index: int, value: int, *, size: int = 8) -> None:
    memory.write(table + index * size, value.to_bytes(size, "little"))


def map_long(memory: GuestMemory, gva: int, frame: int, flags: int = PRESENT | RW, *, levels: int = 4) -> None:
    """Map a page of 2^(12 + 9 * (4 - levels)) bytes, its tables at CR3 and the pages that follow."""
    for level in range(levels):
        index = gva >> 39 - 9 * level & 0x1FF
        last = level == levels - 1
        value = (
            (frame | flags | (LARGE if levels < 4 else 0)) if last else (CR3 + (level + 1) * PAGE_SIZE | PRESENT | RW)
        )
        entry(memory, CR3 + level * PAGE_SIZE, index, value)


def faults(
    memory: GuestMemory, gva: int, *, cr0: int = CR0, cr3: int = CR3, cr4: int = CR4, efer: int = EFER, **more: bool
) -> None:
    with pytest.raises(XenError) as caught:
        translate(memory, cr0, cr3, cr4, efer, gva, **more)
    assert caught.value.errno is Errno.EFAULT


def test_without_paging_addresses_are_physical(memory: GuestMemory) -> None:
    assert translate(memory, paging.CR0_PE, 0, 0, 0, 0x1234) == 0x1234
    assert translate(memory, 0, 0, 0, 0, 0x1_0000_1234) == 0x1234, "and have 32 bits"


@pytest.mark.parametrize(
    "gva", [0, 0x1000, 0x7FFF_FFFF_F000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_F000, 0xFFFF_8880_1234_5000]
)
def test_4_kib_pages(memory: GuestMemory, gva: int) -> None:
    map_long(memory, gva, 0x1_2345_6000, PRESENT | RW | NX)
    assert translate(memory, CR0, CR3, CR4, EFER, gva + 0xABC) == 0x1_2345_6ABC
    assert translate(memory, CR0, CR3 | 0xFFF, CR4, EFER, gva, write=True) == 0x1_2345_6000, (
        "flags in CR3 do not matter"
    )
    faults(memory, gva ^ 0x1000)


@pytest.mark.parametrize(("levels", "size"), [(3, 2 << 20), (2, 1 << 30)])
def test_large_pages(memory: GuestMemory, levels: int, size: int) -> None:
    gva, frame = 0xFFFF_8880_0000_0000 + 3 * size, 0x40_0000_0000
    map_long(memory, gva, frame | 1 << 12, levels=levels)  # bit 12 is PAT in a large entry, not address
    for offset in (0, 0x1234, size - 1):
        assert translate(memory, CR0, CR3, CR4, EFER, gva + offset) == frame + offset
    faults(memory, gva + size)


def test_the_page_size_bit_means_nothing_at_the_top(memory: GuestMemory) -> None:
    map_long(memory, 0x5000, 0x9000)
    entry(memory, CR3, 0, CR3 + PAGE_SIZE | PRESENT | RW | LARGE)
    assert translate(memory, CR0, CR3, CR4, EFER, 0x5000) == 0x9000


@pytest.mark.parametrize("gva", [1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63, 1 << 64, -1, (1 << 64) + 0x5000])
def test_addresses_that_are_not_canonical(memory: GuestMemory, gva: int) -> None:
    map_long(memory, gva & 0xFFFF_FFFF_F000, 0x9000)
    faults(memory, gva)


@pytest.mark.parametrize("level", range(4))
def test_writing_needs_every_level_writable_and_wp(memory: GuestMemory, level: int) -> None:
    map_long(memory, 0x5000, 0x9000)
    value = memory.read_u64(CR3 + level * PAGE_SIZE + (8 * 5 if level == 3 else 0))
    entry(memory, CR3 + level * PAGE_SIZE, 5 if level == 3 else 0, value & ~RW)
    assert translate(memory, CR0, CR3, CR4, EFER, 0x5000) == 0x9000
    faults(memory, 0x5000, write=True)
    assert translate(memory, CR0 & ~paging.CR0_WP, CR3, CR4, EFER, 0x5000, write=True) == 0x9000


@pytest.mark.parametrize("level", range(4))
def test_an_entry_that_is_not_present_faults(memory: GuestMemory, level: int) -> None:
    map_long(memory, 0, 0x9000)
    value = memory.read_u64(CR3 + level * PAGE_SIZE)
    entry(memory, CR3 + level * PAGE_SIZE, 0, value & ~PRESENT)
    faults(memory, 0)


@pytest.mark.parametrize("level", range(4))
def test_tables_out_of_memory_fault(memory: GuestMemory, level: int) -> None:
    map_long(memory, 0, 0x9000)
    if level == 3:
        faults(memory, 0, cr3=0x000F_FFFF_FFFF_F000)
        return
    entry(memory, CR3 + level * PAGE_SIZE, 0, 0x000F_FFFF_FFFF_F000 | PRESENT | RW)
    faults(memory, 0)


def test_walks_leave_the_tables_alone(memory: GuestMemory) -> None:
    map_long(memory, 0x5000, 0x9000)
    before = memory.read(0, RAM)
    translate(memory, CR0, CR3, CR4, EFER, 0x5000, write=True)
    assert memory.read(0, RAM) == before


# -- PAE --------------------------------------------------------------------------------------------------------------


def map_pae(memory: GuestMemory, gva: int, frame: int, *, large: bool, rw: bool = True) -> int:
    """Map a page and return CR3, which PAE aligns to 32 bytes only."""
    cr3 = 0x1FE0
    entry(memory, cr3, gva >> 30, 0x3000 | PRESENT)  # the first level has no RW bit
    flags = PRESENT | (RW if rw else 0)
    entry(memory, 0x3000, gva >> 21 & 0x1FF, (frame | flags | LARGE) if large else 0x4000 | PRESENT | RW)
    if not large:
        entry(memory, 0x4000, gva >> 12 & 0x1FF, frame | flags)
    return cr3


@pytest.mark.parametrize("gva", [0, 0x4000_0000, 0xC012_3000, 0xFFFF_F000])
def test_pae_4_kib_pages(memory: GuestMemory, gva: int) -> None:
    cr3 = map_pae(memory, gva, 0x1_2345_6000, large=False)
    assert translate(memory, CR0, cr3, CR4, 0, gva + 0xABC, write=True) == 0x1_2345_6ABC
    assert translate(memory, CR0, cr3, CR4, paging.EFER_LME, gva) == 0x1_2345_6000, (
        "long mode that is not active is none"
    )
    assert translate(memory, CR0, cr3, CR4, 0, gva + (5 << 32)) == 0x1_2345_6000, "addresses have 32 bits"
    faults(memory, gva ^ 0x1000, cr3=cr3, efer=0)
    faults(memory, gva ^ 0x8000_0000, cr3=cr3, efer=0)


def test_pae_2_mib_pages(memory: GuestMemory) -> None:
    cr3 = map_pae(memory, 0xC060_0000, 0x2_4000_0000, large=True, rw=False)
    assert translate(memory, CR0, cr3, CR4, 0, 0xC060_0000 + 0x1FFFFF) == 0x2_401F_FFFF
    faults(memory, 0xC060_0000, cr3=cr3, efer=0, write=True)


# -- two-level --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gva", [0, 0xC012_3000, 0xFFFF_F000])
def test_two_level_4_kib_pages(memory: GuestMemory, gva: int) -> None:
    entry(memory, CR3, gva >> 22, 0x2000 | PRESENT | RW, size=4)
    entry(memory, 0x2000, gva >> 12 & 0x3FF, 0xFEDC_B000 | PRESENT, size=4)
    assert translate(memory, CR0, CR3 | 0x18, 0, 0, gva + 0xABC) == 0xFEDC_BABC
    faults(memory, gva, cr4=0, efer=0, write=True)
    faults(memory, gva ^ 0x1000, cr4=0, efer=0)
    faults(memory, gva ^ 0x8000_0000, cr4=0, efer=0)


def test_two_level_4_mib_pages(memory: GuestMemory) -> None:
    entry(memory, CR3, 0xC0000000 >> 22, 0x0140_0000 | 0x3 << 13 | PRESENT | RW | LARGE, size=4)
    gva = 0xC000_0000 + 0x3F_FFFF
    assert translate(memory, CR0, CR3, paging.CR4_PSE, 0, gva) == 0x3_017F_FFFF, "PSE-36 has the high bits in 20:13"
    faults(memory, gva, cr4=0, efer=0)


# -- anything ---------------------------------------------------------------------------------------------------------

WORD = st.integers(0, (1 << 64) - 1)
TABLE = st.integers(0, 63).map(lambda page: page * PAGE_SIZE | PRESENT | RW)


@settings(max_examples=200)
@given(
    entries=st.lists(st.tuples(st.integers(0, RAM // 8 - 1), st.one_of(TABLE, WORD)), max_size=40),
    cr0=WORD,
    cr3=st.one_of(TABLE, WORD),
    cr4=WORD,
    efer=WORD,
    gva=st.one_of(st.integers(0, 1 << 21), WORD),
    write=st.booleans(),
)
def test_arbitrary_tables_end_in_an_address_or_a_fault(
    memory: GuestMemory, entries: list[tuple[int, int]], cr0: int, cr3: int, cr4: int, efer: int, gva: int, write: bool
) -> None:
    memory.write(0, (0x3000 | PRESENT | RW).to_bytes(8, "little") * (RAM // 8))  # every table leads to another
    for index, value in entries:
        entry(memory, 0, index, value)
    try:
        gpa = translate(memory, cr0, cr3, cr4, efer, gva, write=write)
    except XenError as error:
        gpa = -error.errno
    assert gpa == -Errno.EFAULT or 0 <= gpa < 1 << 52
