"""Using grants by backends: mappings, bytes, and what is refused, with which status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gnttab_rig import EMPTY_GFN, RAM_PAGES, Three, refused, three_domains

from xenpy import atomics
from xenpy.abi.grant_table import (
    GNTST,
    GTF_accept_transfer,
    GTF_invalid,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_transitive,
    GTF_writing,
)
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator


READONLY = GTF_permit_access | GTF_readonly


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def three(request: pytest.FixtureRequest) -> Iterator[Three]:
    with three_domains(request.param) as made:
        yield made


# -- backends ---------------------------------------------------------------------------------------------------------


def test_a_mapping_is_the_granters_page(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    with one.gnttab.map_page(0, 9) as mapping:
        assert bytes(mapping.view[:19]) == one.mark(4)
        assert len(mapping.view) == PAGE_SIZE
        assert mapping.hva == one.memory.hva(4 * PAGE_SIZE)
        mapping.view[100] = 7
        one.page(4)[101] = 8
        assert (one.page(4)[100], mapping.view[101]) == (7, 8)
        assert one.in_use(9) == GTF_reading | GTF_writing
    assert one.in_use(9) == 0
    mapping.close()
    with pytest.raises(ValueError, match="released"):
        mapping.view[0]


def test_a_readonly_mapping_cannot_be_written(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4, READONLY)
    with one.gnttab.map_page(0, 9, readonly=True) as mapping:
        assert one.in_use(9) == GTF_reading
        with pytest.raises(TypeError):
            mapping.view[0] = 1
    refused(GNTST.general_error, one.gnttab.map_page, 0, 9)
    assert one.in_use(9) == 0


def test_a_grant_in_use_shows_the_strongest_use(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    reader = one.gnttab.map_page(0, 9, readonly=True)
    writer, other = one.gnttab.map_page(0, 9), one.gnttab.map_page(0, 9)
    writer.close()
    assert one.in_use(9) == GTF_reading | GTF_writing
    other.close()
    assert one.in_use(9) == GTF_reading
    reader.close()
    assert one.in_use(9) == 0


def test_what_was_granted_at_the_first_use_holds_until_the_last(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    first = one.gnttab.map_page(0, 9)
    one.grant(9, 2, 5, GTF_permit_access)
    with one.gnttab.map_page(0, 9) as again:
        assert bytes(again.view[:19]) == one.mark(4)
    refused(GNTST.general_error, one.gnttab.map_page, 2, 9)
    first.close()
    with one.gnttab.map_page(2, 9) as mapping:
        assert bytes(mapping.view[:19]) == one.mark(5)


@pytest.mark.parametrize("flags", [GTF_invalid, GTF_accept_transfer, GTF_transitive])
def test_only_granted_access_can_be_mapped(three: Three, flags: int) -> None:
    one, _, _ = three
    one.grant(9, 0, 4, flags)
    before = bytes(one.entry(9))
    refused(GNTST.general_error, one.gnttab.map_page, 0, 9)
    assert bytes(one.entry(9)) == before


def test_other_refusals(three: Three) -> None:
    one, two, _ = three
    one.grant(9, 2, 4)
    refused(GNTST.general_error, one.gnttab.map_page, 0, 9)
    entries = 512 if one.gnttab.version == 1 else 256
    for gref in (entries, (1 << 32) - 1):
        refused(GNTST.bad_gntref, one.gnttab.map_page, 0, gref)
    for gfn in (RAM_PAGES, EMPTY_GFN, (1 << 32) - 1):
        one.grant(10, 0, gfn)
        refused(GNTST.bad_page, one.gnttab.map_page, 0, 10)
        assert one.in_use(10) == 0
    foreign = two.memory.frame_of(3)
    assert foreign is not None
    one.memory.place(EMPTY_GFN, foreign)
    one.grant(10, 0, EMPTY_GFN)
    refused(GNTST.bad_page, one.gnttab.map_page, 0, 10)


def test_a_ballooned_page_cannot_be_granted(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    one.memory.release(4)
    refused(GNTST.bad_page, one.gnttab.map_page, 0, 9)


def test_a_grant_is_used_so_often_at_most(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    mappings = [one.gnttab.map_page(0, 9) for _ in range(128)]
    refused(GNTST.general_error, one.gnttab.map_page, 0, 9)
    for mapping in mappings:
        mapping.close()
    one.gnttab.map_page(0, 9).close()
    assert one.gnttab.describe() == [f"version {one.gnttab.version}, 1 of 64 pages"]


def test_bytes_are_read_and_written_within_the_page(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    assert one.gnttab.read(0, 9, 5, 2) == b" 4"
    one.gnttab.write(0, 9, PAGE_SIZE - 2, b"ab")
    assert bytes(one.page(4)[-2:]) == b"ab"
    refused(GNTST.general_error, one.gnttab.write, 0, 9, PAGE_SIZE - 2, b"abc")
    refused(GNTST.general_error, one.gnttab.read, 0, 9, PAGE_SIZE, 1)
    assert one.in_use(9) == 0


def test_a_granter_that_changes_its_entry_meanwhile(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    real_cmpxchg, real_set_bit = atomics.cmpxchg32, atomics.set_bit
    races = 0

    def race() -> None:
        nonlocal races
        races -= 1
        if races == 0:
            one.entry(9)[0] |= GTF_readonly
        elif races > 0:
            one.entry(9)[0] = one.entry(9)[0] & 0x1F | races % 8 << 5  # cache attributes, which are the granter's own

    def cmpxchg32(hva: int, expected: int, new: int) -> int:
        race()
        return real_cmpxchg(hva, expected, new)

    def set_bit(hva: int, bit: int) -> bool:
        race()
        return real_set_bit(hva, bit)

    monkeypatch.setattr(atomics, "cmpxchg32", cmpxchg32)
    monkeypatch.setattr(atomics, "set_bit", set_bit)
    races = 1
    refused(GNTST.general_error, one.gnttab.map_page, 0, 9)  # has become read-only
    assert one.in_use(9) == 0
    races = 100
    refused(GNTST.general_error, one.gnttab.map_page, 0, 9, readonly=True)
    assert races > 80, "the number of attempts is bounded"
    races = 0
    one.grant(9, 0, 4)
    with one.gnttab.map_page(0, 9, readonly=True):
        races = 100
        refused(GNTST.general_error, one.gnttab.map_page, 0, 9)
        races = 0
        assert one.in_use(9) == GTF_reading


def test_a_mapping_outlives_its_domain_harmlessly(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 0, 4)
    mapping = one.gnttab.map_page(0, 9)
    one.gnttab.destroy()
    refused(GNTST.bad_gntref, one.gnttab.map_page, 0, 9)
    mapping.close()
