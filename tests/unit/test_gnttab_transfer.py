"""GNTTABOP_transfer of PV guests: a page that changes hands, and what becomes of one that nobody takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fakes import DOMID, OTHER_DOMID, FakeDomain

from xenpy.abi import grant_table as abi
from xenpy.abi._xen64 import ffi
from xenpy.domain.domain import Domain
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE, GuestMemory
from xenpy.pv.mmu.layout import OWNED

if TYPE_CHECKING:
    from collections.abc import Iterator

GRANT_TABLE_OP = 20
ARGUMENT = 0x3000
MFN, PFN, GREF = 77, 55, 9
COMPLETED = abi.GTF_accept_transfer | abi.GTF_transfer_committed | abi.GTF_transfer_completed


@pytest.fixture
def giver() -> Iterator[FakeDomain]:
    made, other = FakeDomain(is_pv=True), FakeDomain(OTHER_DOMID, is_pv=True)
    made.peers[OTHER_DOMID] = other
    made.memory.write(MFN << PAGE_SHIFT, b"\xa5" * PAGE_SIZE)
    other.gnttab._shared.write(GREF, abi.GTF_accept_transfer, DOMID, PFN)
    yield made
    for domain in (made, other):
        domain.close()


def transfer(giver: FakeDomain, *, mfn: int = MFN, domid: int = OTHER_DOMID, ref: int = GREF) -> int:
    op: Any = ffi.new("struct gnttab_transfer *", {"mfn": mfn, "domid": domid, "ref": ref})
    giver.memory.write(ARGUMENT, bytes(ffi.buffer(op)))
    assert giver.hypercall(GRANT_TABLE_OP, abi.GNTTABOP_transfer.number, ARGUMENT, 1) == 0
    ffi.buffer(op)[:] = giver.memory.read(ARGUMENT, ffi.sizeof("struct gnttab_transfer"))
    return int(op.status)


def has(domain: FakeDomain, mfn: int) -> bool:
    return bool(domain.mmu.frames.word(mfn) & OWNED)


@pytest.mark.parametrize("version", [1, 2])
def test_a_page_goes_where_it_is_accepted(giver: FakeDomain, version: int) -> None:
    other = giver.peers[OTHER_DOMID]
    other.gnttab.set_version(version)
    other.gnttab._shared.write(GREF, abi.GTF_accept_transfer, DOMID, PFN)
    assert transfer(giver) == abi.GNTST.okay
    assert other.asked[-1] == ("page", PFN, b"\xa5" * PAGE_SIZE)
    entry = other.gnttab._shared.read(GREF)
    assert (entry.flags, entry.gfn) == (COMPLETED, PFN + 1)
    assert not has(giver, MFN)
    assert ("flush_on", None, None) in giver.vcpus[0].asked
    assert transfer(giver) == abi.GNTST.bad_page, "it is gone"
    assert transfer(giver, mfn=MFN + 1) == abi.GNTST.general_error, "an entry takes one page"


def test_a_page_in_use_stays(giver: FakeDomain) -> None:
    assert giver.mmu.frames.get(MFN)
    assert transfer(giver) == abi.GNTST.bad_page
    assert has(giver, MFN)
    assert transfer(giver, mfn=1 << 30) == abi.GNTST.bad_page
    assert giver.peers[OTHER_DOMID].gnttab._shared.read(GREF).flags == abi.GTF_accept_transfer


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"domid": 99}, abi.GNTST.bad_domain),
        ({"domid": 0x7FF0}, abi.GNTST.bad_domain),
        ({"domid": 0}, abi.GNTST.general_error),
        ({"ref": GREF + 1}, abi.GNTST.general_error),
        ({"ref": 1 << 20}, abi.GNTST.general_error),
    ],
)
def test_a_page_that_nobody_takes_is_lost(giver: FakeDomain, wrong: dict[str, int], status: int) -> None:
    assert transfer(giver, **wrong) == status
    assert not has(giver, MFN)


def test_a_domain_without_room(giver: FakeDomain) -> None:
    other = giver.peers[OTHER_DOMID]
    other.gnttab._shared.write(GREF, abi.GTF_accept_transfer, DOMID, 0)
    assert transfer(giver) == abi.GNTST.general_error
    assert other.gnttab._shared.read(GREF).flags == abi.GTF_accept_transfer, "whoever is committed to is waited for"
    assert not any(asked[0] == "page" for asked in other.asked)


def test_hvm_guests_are_not_offered_it() -> None:
    domain = FakeDomain()
    assert domain.hypercall(GRANT_TABLE_OP, abi.GNTTABOP_transfer.number, ARGUMENT, 1) == -Errno.ENOSYS
    domain.close()


def test_room_is_a_hole_where_memory_was_and_a_page_still_allowed() -> None:
    memory = GuestMemory()
    memory.add_ram(0, 4 * PAGE_SIZE)
    memory.release(2)
    domain: Any = SimpleNamespace(memory=memory, max_pages=4)
    Domain.check_room(domain, 2)
    for gfn, max_pages in (1, 4), (9, 4), (2, 3):
        domain.max_pages = max_pages
        with pytest.raises(XenError) as error:
            Domain.check_room(domain, gfn)
        assert error.value.errno == Errno.ENOMEM
    domain.max_pages = 4
    assert Domain.accept_page(domain, 2, b"\xa5" * PAGE_SIZE) == 2
    assert memory.read(2 * PAGE_SIZE, PAGE_SIZE) == b"\xa5" * PAGE_SIZE
    memory.close()
