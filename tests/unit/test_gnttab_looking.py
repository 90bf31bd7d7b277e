"""Grants that are looked up and not marked: what is found, what is left to the table, and what keeps pages from being written to."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from gnttab_rig import RAM_PAGES, three_domains

from xenpy.abi.grant_table import (
    GTF_invalid,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
)
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnttab_rig import Domain

GREF, OTHER, GFN = 10, 600, 3


@pytest.fixture
def granter() -> Iterator[Domain]:
    with three_domains(1) as (domain, _, _):
        domain.gnttab.setup_table(2)
        yield domain


def test_pages_are_found_without_a_mark(granter: Domain) -> None:
    granter.grant(GREF, 0, GFN)
    granter.grant(OTHER, 0, GFN + 1, GTF_permit_access | GTF_readonly | GTF_reading)
    looking = granter.gnttab.looking()
    assert looking is not None
    before = bytes(granter.entry(GREF))
    assert looking.offsets([GREF, OTHER], readonly=True) == [GFN * PAGE_SIZE, (GFN + 1) * PAGE_SIZE]
    assert looking.offsets([GREF], readonly=False) == [GFN * PAGE_SIZE]
    assert bytes(granter.entry(GREF)) == before
    assert granter.gnttab.describe()[1:] == []


@pytest.mark.parametrize(
    ("domid", "gfn", "flags", "readonly"),
    [
        (1, GFN, GTF_permit_access, True),
        (0, RAM_PAGES, GTF_permit_access, True),
        (0, GFN, GTF_invalid, True),
        (0, GFN, GTF_transitive, True),
        (0, GFN, GTF_permit_access | GTF_sub_page, True),
        (0, GFN, GTF_permit_access | GTF_readonly, False),
    ],
)
def test_what_is_not_plainly_granted_is_left_to_the_table(
    granter: Domain, domid: int, gfn: int, flags: int, readonly: bool
) -> None:
    granter.grant(OTHER, 0, GFN)
    granter.grant(GREF, domid, gfn, flags)
    looking = granter.gnttab.looking()
    assert looking is not None
    assert looking.offsets([OTHER, GREF], readonly=readonly) is None
    assert looking.offsets([OTHER, 1 << 31], readonly=readonly) is None


def test_version_2_is_left_to_the_table(granter: Domain) -> None:
    granter.gnttab.set_version(2)
    assert granter.gnttab.looking() is None


def test_guarded_pages_are_all_writable_or_none_is(granter: Domain) -> None:
    held: list[int] = []
    granter.gnttab.guard_writes(lambda gfn: gfn != GFN and not held.append(gfn), held.remove)
    granter.grant(GREF, 0, GFN)
    looking = granter.gnttab.looking()
    assert looking is not None
    assert looking.offsets([GREF], readonly=False) is None, "only who guards it may write to it"
    assert looking.gfns([GREF], readonly=False) == [GFN]
    assert not granter.gnttab.guard([1, 2, GFN, 4])
    assert held == []
    assert granter.gnttab.guard([1, 2])
    assert held == [1, 2]
    granter.gnttab.unguard([1, 2])
    assert held == []


def test_whoever_stands_before_the_table_is_noticed(granter: Domain) -> None:
    table = granter.gnttab
    seen: list[bool] = []
    forget = table.watch_uses(lambda: seen.append(table.is_plain))
    plain = table.make_use
    table.make_use = partial(plain)
    del table.make_use
    assert seen == [False, True]
    forget()
    table.make_use = plain
    assert seen == [False, True]
