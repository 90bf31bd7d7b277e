"""Using grants by other guests: what they map where, and copies; and what is refused, with which status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from gnttab_rig import EMPTY_GFN, RAM_PAGES, Three, refused, three_domains

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.grant_table import (
    GNTST,
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_writing,
)
from xenpy.memory import PAGE_SIZE
from xenpy.pv.gnttab import CopyEnd, GrantError, GrantTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.memory import Frame

READONLY = GTF_permit_access | GTF_readonly
ADDRESS = EMPTY_GFN * PAGE_SIZE


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def three(request: pytest.FixtureRequest) -> Iterator[Three]:
    with three_domains(request.param) as made:
        yield made


@pytest.fixture
def three_v2() -> Iterator[Three]:
    with three_domains(2) as made:
        yield made


# -- other guests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [GNTMAP_host_map, GNTMAP_host_map | GNTMAP_readonly])
def test_a_guest_maps_anothers_page_where_it_wants(three: Three, flags: int) -> None:
    one, two, _ = three
    one.grant(9, 2, 4)
    handle, dev_bus_addr = two.gnttab.map_grant_ref(ADDRESS, flags, 1, 9)
    assert dev_bus_addr == 0
    assert two.memory.read(ADDRESS, 19) == one.mark(4)
    one.page(4)[0] = 0x55
    assert two.memory.read(ADDRESS, 1) == b"\x55"
    assert one.in_use(9) == (GTF_reading if flags & GNTMAP_readonly else GTF_reading | GTF_writing)
    two.gnttab.unmap_grant_ref(ADDRESS, 0, handle)
    assert one.in_use(9) == 0
    assert two.memory.placed(EMPTY_GFN) is None
    refused(GNTST.bad_handle, two.gnttab.unmap_grant_ref, ADDRESS, 0, handle)
    assert two.gnttab.map_grant_ref(ADDRESS, flags, 1, 9)[0] == handle


def test_writes_through_a_readonly_mapping_never_reach_the_granter(three: Three) -> None:
    one, two, _ = three
    one.grant(9, 2, 4, READONLY)
    handle, _ = two.gnttab.map_grant_ref(ADDRESS, GNTMAP_host_map | GNTMAP_readonly, 1, 9)
    one.page(4)[:3] = b"new"
    assert two.memory.read(ADDRESS, 3) == b"new"
    two.memory.write(ADDRESS, b"x")  # as a hypercall does whose result the guest wants there
    assert bytes(one.page(4)[:3]) == b"new"
    two.gnttab.unmap_grant_ref(ADDRESS, 0, handle)


def test_a_guest_may_map_its_own_grants(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 1, 4)
    handle, _ = one.gnttab.map_grant_ref(ADDRESS, GNTMAP_host_map, 1, 9)
    one.memory.write(ADDRESS, b"x")
    assert one.page(4)[0] == ord("x")
    one.gnttab.unmap_grant_ref(ADDRESS, 0, handle)


def test_refused_maps_leave_nothing_behind(three: Three) -> None:
    one, two, _ = three
    one.grant(9, 2, 4)
    map_ = two.gnttab.map_grant_ref
    refused(GNTST.bad_gntref, map_, ADDRESS, GNTMAP_readonly, 1, 9)
    for flag in (GNTMAP_device_map, GNTMAP_application_map, GNTMAP_contains_pte, 1 << 16):
        refused(GNTST.general_error, map_, ADDRESS, GNTMAP_host_map | flag, 1, 9)
    refused(GNTST.bad_domain, map_, ADDRESS, GNTMAP_host_map, 8, 9)
    refused(GNTST.bad_domain, map_, ADDRESS, GNTMAP_host_map, DOMID_SELF, 9)
    refused(GNTST.general_error, map_, ADDRESS, GNTMAP_host_map, 1, 10)
    refused(GNTST.general_error, map_, 1 << 50, GNTMAP_host_map, 1, 9)
    refused(GNTST.general_error, map_, (1 << 64) - PAGE_SIZE, GNTMAP_host_map, 1, 9)
    assert one.in_use(9) == 0
    assert map_(ADDRESS, GNTMAP_host_map, 1, 9)[0] == 0, "no handle was used up"


def test_refused_unmaps_leave_the_mapping(three: Three) -> None:
    one, two, three_ = three
    one.grant(9, 2, 4)
    handle, _ = two.gnttab.map_grant_ref(ADDRESS, GNTMAP_host_map, 1, 9)
    refused(GNTST.general_error, two.gnttab.unmap_grant_ref, ADDRESS + PAGE_SIZE, 0, handle)
    refused(GNTST.general_error, two.gnttab.unmap_grant_ref, ADDRESS, 0, handle, 1)
    refused(GNTST.bad_handle, two.gnttab.unmap_grant_ref, ADDRESS, 0, handle + 1)
    refused(GNTST.bad_handle, three_.gnttab.unmap_grant_ref, ADDRESS, 0, handle)
    two.gnttab.unmap_grant_ref(0, 0, handle)
    assert two.memory.read(ADDRESS, 19) == one.mark(4)
    two.memory.place(EMPTY_GFN, two.pool.allocate())
    refused(GNTST.general_error, two.gnttab.unmap_grant_ref, ADDRESS, 0, handle)
    assert one.in_use(9)


def test_handles_run_out() -> None:
    with three_domains(max_maptrack_frames=1) as (one, two, _):
        for gref in range(9, 12):
            one.grant(gref, 2, gref)
        for index in range(256):
            two.gnttab.map_grant_ref(ADDRESS + index * PAGE_SIZE, GNTMAP_host_map, 1, 9 + index % 3)
        refused(GNTST.no_space, two.gnttab.map_grant_ref, 0x2000000, GNTMAP_host_map, 1, 9)
        two.gnttab.unmap_grant_ref(ADDRESS + 7 * PAGE_SIZE, 0, 7)
        assert two.gnttab.map_grant_ref(ADDRESS, GNTMAP_host_map, 1, 9)[0] == 7


def test_a_dead_domain_gives_back_what_it_has_mapped(three: Three) -> None:
    one, two, _ = three
    one.grant(9, 2, 4)
    two.gnttab.map_grant_ref(ADDRESS, GNTMAP_host_map, 1, 9)
    assert one.in_use(9)
    two.gnttab.destroy()
    assert one.in_use(9) == 0


def test_a_dead_granters_page_stays_mapped_until_unmapped(three: Three) -> None:
    one, two, _ = three
    one.grant(9, 2, 4)
    handle, _ = two.gnttab.map_grant_ref(ADDRESS, GNTMAP_host_map, 1, 9)
    one.gnttab.destroy()
    del one.domains[1]
    assert two.memory.read(ADDRESS, 19) == one.mark(4)
    two.gnttab.unmap_grant_ref(ADDRESS, 0, handle)
    refused(GNTST.bad_domain, two.gnttab.map_grant_ref, ADDRESS, GNTMAP_host_map, 1, 9)


class _PvMapper:
    """Stands in for page tables: notes what is mapped where."""

    def __init__(self) -> None:
        self.mapped: dict[int, Frame] = {}
        self.released: list[Frame] = []
        self.flags = 0

    def check(self, flags: int) -> None:
        self.flags = flags

    def map(self, host_addr: int, flags: int, frame: Frame) -> int:
        if host_addr == 0xBAD:
            raise GrantError(GNTST.bad_virt_addr, "no page table there")
        assert flags == self.flags
        self.mapped[host_addr] = frame
        return 0x1000

    def unmap(self, host_addr: int, flags: int, frame: Frame, new_addr: int = 0) -> None:
        assert (flags, self.mapped.pop(host_addr)) == (self.flags, frame)
        if new_addr:
            self.mapped[new_addr] = frame

    def release(self, flags: int, frame: Frame) -> None:
        assert flags == self.flags
        self.released.append(frame)


def test_another_kind_of_guest_maps_by_a_mapper_of_its_own() -> None:
    with three_domains() as (one, two, _):
        mapper = _PvMapper()
        two.gnttab = gnttab = GrantTable(2, two.pool, two.memory, lookup=two.lookup, mapper=mapper)
        one.grant(9, 2, 4)
        both = GNTMAP_device_map | GNTMAP_host_map | GNTMAP_contains_pte
        refused(GNTST.bad_virt_addr, gnttab.map_grant_ref, 0xBAD, both, 1, 9)
        assert one.in_use(9) == 0
        handle, dev_bus_addr = gnttab.map_grant_ref(0x700, both, 1, 9)
        assert (mapper.mapped, dev_bus_addr) == ({0x700: one.memory.frame_of(4)}, 0x1000)
        refused(GNTST.bad_dev_addr, gnttab.unmap_grant_ref, 0, 0x2000, handle)
        gnttab.unmap_grant_ref(0x700, 0, handle, 0x800)
        assert list(mapper.mapped) == [0x800]
        assert one.in_use(9), "devices may still use it"
        assert mapper.released == []
        gnttab.unmap_grant_ref(0, dev_bus_addr, handle)
        assert mapper.released == [one.memory.frame_of(4)]
        assert one.in_use(9) == 0


# -- copies -----------------------------------------------------------------------------------------------------------


def own(gfn: int, offset: int = 0) -> CopyEnd:
    return CopyEnd(DOMID_SELF, offset, gfn=gfn)


def test_copy_from_and_to_grants(three: Three) -> None:
    one, two, three_ = three
    one.grant(9, 3, 4, READONLY)
    two.grant(10, 3, 5)
    three_.gnttab.copy(CopyEnd(1, 5, gref=9), CopyEnd(2, PAGE_SIZE - 4, gref=10), 4)
    assert bytes(two.page(5)[-4:]) == one.mark(4)[5:9]
    three_.gnttab.copy(CopyEnd(1, 0, gref=9), own(6), PAGE_SIZE)
    assert three_.page(6) == one.page(4)
    three_.gnttab.copy(own(7), CopyEnd(2, 0, gref=10), 19)
    assert bytes(two.page(5)[:19]) == three_.mark(7)
    three_.gnttab.copy(own(8), own(8, 5), 19)
    assert bytes(three_.page(8)[:24]) == three_.mark(8)[:5] + three_.mark(8), "overlapping"
    assert (one.in_use(9), two.in_use(10)) == (0, 0)


def test_copy_of_grants_to_oneself(three: Three) -> None:
    one, _, _ = three
    one.grant(9, 1, 4)
    one.gnttab.copy(CopyEnd(DOMID_SELF, 0, gref=9), own(5), 19)
    one.gnttab.copy(CopyEnd(1, 0, gref=9), CopyEnd(1, 64, gref=9), 19)
    assert bytes(one.page(5)[:19]) == bytes(one.page(4)[64:83]) == one.mark(4)
    assert one.in_use(9) == 0


@pytest.mark.parametrize(
    ("source", "dest", "length", "status"),
    [
        (CopyEnd(1, 0, gfn=4), own(6), 1, GNTST.permission_denied),
        (own(6), CopyEnd(1, 0, gfn=4), 1, GNTST.permission_denied),
        (CopyEnd(8, 0, gref=9), own(6), 1, GNTST.bad_domain),
        (own(6), CopyEnd(8, 0, gref=9), 1, GNTST.bad_domain),
        (CopyEnd(1, 0, gref=1 << 20), own(6), 1, GNTST.bad_gntref),
        (CopyEnd(1, 0, gref=10), own(6), 1, GNTST.general_error),
        (own(6), CopyEnd(1, 0, gref=9), 1, GNTST.general_error),
        (CopyEnd(1, 0, gref=9), own(RAM_PAGES), 1, GNTST.bad_page),
        (own((1 << 64) - 1), own(6), 1, GNTST.bad_page),
        (CopyEnd(1, 1, gref=9), own(6), PAGE_SIZE, GNTST.bad_copy_arg),
        (CopyEnd(1, 0, gref=9), own(6, 1), PAGE_SIZE, GNTST.bad_copy_arg),
        (CopyEnd(1, 0xFFFF, gref=9), own(6), 0xFFFF, GNTST.bad_copy_arg),
    ],
)
def test_refused_copies(three: Three, source: CopyEnd, dest: CopyEnd, length: int, status: GNTST) -> None:
    one, _, three_ = three
    one.grant(9, 3, 4, READONLY)
    before = bytes(three_.page(6))
    refused(status, three_.gnttab.copy, source, dest, length)
    assert bytes(three_.page(6)) == before
    assert one.in_use(9) == 0


def test_a_copy_to_a_page_mapped_from_elsewhere_is_refused(three: Three) -> None:
    one, two, _ = three
    one.grant(9, 2, 4)
    two.gnttab.map_grant_ref(ADDRESS, GNTMAP_host_map | GNTMAP_readonly, 1, 9)
    refused(GNTST.bad_page, two.gnttab.copy, own(3), own(EMPTY_GFN), 8)


def test_part_of_a_page_is_copied_but_not_mapped(three_v2: Three) -> None:
    one, two, _ = three_v2
    one.grant_part(9, 2, 4, 5, 8)
    two.gnttab.copy(CopyEnd(1, 5, gref=9), own(6), 8)
    two.gnttab.copy(CopyEnd(1, 12, gref=9), own(6), 1)
    refused(GNTST.general_error, two.gnttab.copy, CopyEnd(1, 4, gref=9), own(6), 1)
    refused(GNTST.general_error, two.gnttab.copy, CopyEnd(1, 12, gref=9), own(6), 2)
    refused(GNTST.general_error, two.gnttab.copy, own(6), CopyEnd(1, 13, gref=9), 1)
    refused(GNTST.general_error, two.gnttab.map_grant_ref, ADDRESS, GNTMAP_host_map, 1, 9)
    assert one.gnttab.read(2, 9, 5, 2) == b" 4"
    one.grant_part(10, 2, 4, 4000, 60000)
    refused(GNTST.general_error, one.gnttab.read, 2, 10, 4000, 97)
    assert len(one.gnttab.read(2, 10, 4000, 96)) == 96


def test_a_transitive_grant_passes_on_anothers(three_v2: Three) -> None:
    one, two, three_ = three_v2
    one.grant(9, 2, 4)
    two.pass_on(11, 3, 1, 9)
    three_.gnttab.copy(CopyEnd(2, 0, gref=11), own(6), 19)
    assert bytes(three_.page(6)[:19]) == one.mark(4)
    three_.gnttab.copy(own(7), CopyEnd(2, 0, gref=11), 19)
    assert bytes(one.page(4)[:19]) == three_.mark(7)
    three_.gnttab.copy(CopyEnd(2, 0, gref=11), CopyEnd(2, 32, gref=11), 19)
    assert bytes(one.page(4)[32:51]) == three_.mark(7)
    assert (one.in_use(9), two.in_use(11)) == (0, 0)
    refused(GNTST.general_error, three_.gnttab.map_grant_ref, ADDRESS, GNTMAP_host_map, 2, 11)


def test_a_transitive_grant_passes_on_no_more_than_there_is(three_v2: Three) -> None:
    one, two, three_ = three_v2
    one.grant(9, 2, 4, READONLY)
    two.pass_on(11, 3, 1, 9)
    refused(GNTST.general_error, three_.gnttab.copy, own(6), CopyEnd(2, 0, gref=11), 1)
    two.pass_on(12, 3, 1, 10)  # not granted
    two.grant(16, 2, 4)
    two.pass_on(13, 3, 2, 16)  # its own
    two.pass_on(14, 3, 8, 9)  # of no domain
    three_.grant(16, 1, 4)
    one.pass_on(15, 2, 3, 16)
    two.pass_on(15, 3, 1, 15)  # transitive itself
    for gref in (12, 13, 14, 15):
        refused(GNTST.general_error, three_.gnttab.copy, CopyEnd(2, 0, gref=gref), own(6), 1)
        assert two.in_use(gref) == 0
    assert (one.in_use(9), one.in_use(15)) == (0, 0)
