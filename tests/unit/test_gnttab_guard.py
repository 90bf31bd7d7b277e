"""Grants of a PV guest: a page that must not be written, as a page table must not, is not written by others either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gnttab_rig import three_domains

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.grant_table import GNTST, GTF_permit_access
from xenpy.pv.gnttab import CopyEnd, GrantError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnttab_rig import Domain

GREF, GFN, TABLE_GFN = 10, 3, 4


class Guard:
    """Counts the writers of each gfn; one gfn is a page table."""

    def __init__(self) -> None:
        self.writers: dict[int, int] = {}

    def take(self, gfn: int) -> bool:
        """Count a gfn that may be written."""
        if gfn == TABLE_GFN:
            return False
        self.writers[gfn] = self.writers.get(gfn, 0) + 1
        return True

    def give(self, gfn: int) -> None:
        """Count it down."""
        self.writers[gfn] -= 1


@pytest.fixture
def granter() -> Iterator[tuple[Domain, Guard]]:
    with three_domains(1) as (domain, _, _):
        guard = Guard()
        domain.gnttab.guard_writes(guard.take, guard.give)
        yield domain, guard


def test_writers_hold_a_page_once(granter: tuple[Domain, Guard]) -> None:
    domain, guard = granter
    domain.grant(GREF, 0, GFN)
    reader = domain.gnttab.map_page(0, GREF, readonly=True)
    assert guard.writers == {}
    first, second = domain.gnttab.map_page(0, GREF), domain.gnttab.map_page(0, GREF)
    assert guard.writers == {GFN: 1}
    first.close()
    assert guard.writers == {GFN: 1}
    second.close()
    assert guard.writers == {GFN: 0}
    reader.close()
    assert guard.writers == {GFN: 0}


def test_a_page_table_may_be_read_only(granter: tuple[Domain, Guard]) -> None:
    domain, guard = granter
    domain.grant(GREF, 0, TABLE_GFN, GTF_permit_access)
    with pytest.raises(GrantError) as caught:
        domain.gnttab.map_page(0, GREF)
    assert caught.value.status is GNTST.general_error
    assert domain.in_use(GREF) == 0
    with domain.gnttab.map_page(0, GREF, readonly=True) as mapping:
        assert len(mapping.view)
    assert guard.writers == {}


def test_nor_are_page_tables_copied_to(granter: tuple[Domain, Guard]) -> None:
    domain, guard = granter
    source, table = CopyEnd(DOMID_SELF, 0, gfn=GFN), CopyEnd(DOMID_SELF, 0, gfn=TABLE_GFN)
    before = domain.page(TABLE_GFN)
    with pytest.raises(GrantError) as caught:
        domain.gnttab.copy(source, table, 8)
    assert caught.value.status is GNTST.general_error
    assert domain.page(TABLE_GFN) == before
    domain.gnttab.copy(table, source, 8)
    assert domain.page(GFN)[:8] == before[:8]
    assert guard.writers == {GFN: 0}
