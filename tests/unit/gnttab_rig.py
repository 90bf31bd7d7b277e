"""Domains with grant tables, and a guest's way of granting."""

from __future__ import annotations

from contextlib import contextmanager
from struct import pack_into
from typing import TYPE_CHECKING

import pytest

from xenpy.abi.grant_table import GNTST, GTF_permit_access, GTF_sub_page, GTF_transitive
from xenpy.errors import Errno, XenError
from xenpy.framepool import FramePool
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv.gnttab import GrantError, GrantTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RAM_PAGES = 32
EMPTY_GFN = 0x1000  # where guests map what others grant


class Domain:
    """A domain with RAM, each page of which begins with its domid and gfn."""

    def __init__(self, domid: int, domains: dict[int, Domain], **kwargs: int) -> None:
        self.domid = domid
        self.memory = GuestMemory()
        self.memory.add_ram(0, RAM_PAGES * PAGE_SIZE)
        for gfn in range(RAM_PAGES):
            self.memory.write(gfn * PAGE_SIZE, self.mark(gfn))
        self.pool = FramePool(32)
        self.domains = domains
        self.gnttab = GrantTable(domid, self.pool, self.memory, lookup=self.lookup, **kwargs)
        domains[domid] = self

    def lookup(self, domid: int) -> GrantTable:
        if domid not in self.domains:
            raise XenError(Errno.ESRCH)
        return self.domains[domid].gnttab

    def mark(self, gfn: int) -> bytes:
        return f"page {gfn:2} of domain {self.domid}".encode()

    def page(self, gfn: int) -> memoryview:
        return self.memory.view(gfn * PAGE_SIZE, PAGE_SIZE)

    # -- what a guest does
    # ------------------------------------------------------------------------------------------------

    def entry(self, gref: int) -> memoryview:
        """Return the live entry of a grant."""
        size = 8 if self.gnttab.version == 1 else 16
        page, index = divmod(gref, PAGE_SIZE // size)
        return self.pool.view(self.gnttab.frame(page))[index * size : (index + 1) * size]

    def grant(self, gref: int, domid: int, gfn: int, flags: int = GTF_permit_access) -> None:
        if self.gnttab.version == 1:
            pack_into("<HHI", self.entry(gref), 0, flags, domid, gfn)
        else:
            pack_into("<HHIQ", self.entry(gref), 0, flags, domid, 0, gfn)

    def grant_part(self, gref: int, domid: int, gfn: int, offset: int, length: int, flags: int = 0) -> None:
        flags |= GTF_permit_access | GTF_sub_page
        pack_into("<HHHHQ", self.entry(gref), 0, flags, domid, offset, length, gfn)

    def pass_on(self, gref: int, domid: int, trans_domid: int, trans_gref: int, flags: int = 0) -> None:
        pack_into("<HHHHII", self.entry(gref), 0, flags | GTF_transitive, domid, trans_domid, 0, trans_gref, 0)

    def revoke(self, gref: int) -> None:
        self.entry(gref)[:2] = bytes(2)

    def in_use(self, gref: int) -> int:
        """Return the GTF_reading and GTF_writing bits the guest sees."""
        if self.gnttab.version == 1:
            return self.entry(gref)[0] & 0x18
        return self.pool.view(self.gnttab.status_frame(gref // 2048))[gref % 2048 * 2] & 0x18

    def close(self) -> None:
        self.gnttab.destroy()
        self.memory.close()
        self.pool.close()


Three = tuple[Domain, Domain, Domain]


@contextmanager
def three_domains(version: int = 1, **kwargs: int) -> Iterator[Three]:
    """Make domains 1, 2 and 3, all with tables of a version."""
    domains: dict[int, Domain] = {}
    made = Domain(1, domains, **kwargs), Domain(2, domains, **kwargs), Domain(3, domains, **kwargs)
    for domain in made:
        domain.gnttab.set_version(version)
    try:
        yield made
    finally:
        for domain in made:
            domain.close()


def refused(status: GNTST, function: Callable[..., object], *args: object, **kwargs: object) -> None:
    """See a use of a grant refused with a status."""
    with pytest.raises(GrantError) as caught:
        function(*args, **kwargs)
    assert caught.value.status is status, str(caught.value)
