"""memory_op: what maps where, and how much there is."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from fakes import DOMID, OTHER_DOMID, RAM_PAGES, UNMAPPED, FakeDomain, fake_domain

from xenpy.abi import memory as abi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno
from xenpy.hypercalls import dispatch
from xenpy.hypercalls.domids import DOM0
from xenpy.memory import ADDRESS_BITS, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.abi.op import Op

MEMORY_OP = 12
ARG = 0x8000
LIST = 0x10000
HOLE = 0x1000  # a gfn where nothing is
NOBODY = 99
SPACE = abi.XENMAPSPACE


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


def op(domain: FakeDomain, command: abi.Op, *, wide: bool = True) -> int:
    return domain.hypercall(MEMORY_OP, command.number, ARG, wide=wide)


def add(domain: FakeDomain, space: int, idx: int, gfn: int, *, domid: int = DOMID_SELF, size: int = 0) -> int:
    domain.put(ARG, (domid, 2), (size, 2), (space, 4), (idx, 8), (gfn, 8))
    return op(domain, abi.XENMEM_add_to_physmap)


def reserve(
    domain: FakeDomain, command: abi.Op, gfns: list[int], *, order: int = 0, wide: bool = True, domid: int = DOMID_SELF
) -> int:
    word = 8 if wide else 4
    domain.put(LIST, *((gfn, word) for gfn in gfns))
    domain.put(ARG, (LIST, word), (len(gfns), word), (order, 4), (0, 4), (domid, 2))
    return op(domain, command, wide=wide)


def test_other_domains_are_not_the_callers(domain: FakeDomain) -> None:
    for domid, result in [(NOBODY, -Errno.ESRCH), (OTHER_DOMID, -Errno.EPERM), (DOM0, -Errno.EPERM)]:
        assert add(domain, SPACE.shared_info, 0, HOLE, domid=domid) == result
        for command in (abi.XENMEM_current_reservation, abi.XENMEM_maximum_reservation, abi.XENMEM_maximum_gpfn):
            domain.put(ARG, (domid, 2))
            assert op(domain, command) == result
        assert reserve(domain, abi.XENMEM_populate_physmap, [1], domid=domid) == 0, "none was, and there is no errno"
    assert add(domain, SPACE.shared_info, 0, HOLE, domid=DOMID) == 0


def test_shared_info_moves(domain: FakeDomain) -> None:
    assert add(domain, SPACE.shared_info, 0, HOLE) == 0
    domain.memory.write(HOLE << PAGE_SHIFT, b"seen")
    assert bytes(domain.shared_info.view[:4]) == b"seen"
    assert add(domain, SPACE.shared_info, 0, 5) == 0
    assert domain.memory.read(5 << PAGE_SHIFT, 4) == b"seen"
    assert domain.memory.placed(HOLE) is None
    assert domain.asked == [("shared_info", HOLE), ("shared_info", 5)]


def test_shared_info_has_one_page(domain: FakeDomain) -> None:
    assert add(domain, SPACE.shared_info, 1, HOLE) == -Errno.EINVAL


def test_a_page_mapped_where_it_is_stays(domain: FakeDomain) -> None:
    for _ in range(2):
        assert add(domain, SPACE.shared_info, 0, HOLE) == 0
    assert domain.memory.placed(HOLE) == domain.shared_info.frame


@pytest.mark.parametrize("idx", [0, 1, 3])
def test_grant_table_pages(domain: FakeDomain, idx: int) -> None:
    assert add(domain, SPACE.grant_table, idx, HOLE + idx) == 0
    assert domain.memory.placed(HOLE + idx) == domain.gnttab.frame(idx)


@pytest.mark.parametrize("idx", [4, 1 << 20, (1 << 31) - 1, (1 << 63) - 1, (1 << 64) - 1, 1 << 31, (1 << 31) + 4])
def test_grant_table_pages_beyond_the_limit(domain: FakeDomain, idx: int) -> None:
    assert add(domain, SPACE.grant_table, idx, HOLE) == -Errno.EINVAL
    assert domain.memory.placed(HOLE) is None


@pytest.mark.parametrize("gfn", [1 << (ADDRESS_BITS - PAGE_SHIFT), 1 << 52, (1 << 64) - 1])
def test_frames_beyond_the_address_space(domain: FakeDomain, gfn: int) -> None:
    assert add(domain, SPACE.shared_info, 0, 6) == 0
    assert add(domain, SPACE.shared_info, 0, gfn) == -Errno.EINVAL
    assert domain.memory.placed(6) == domain.shared_info.frame, "a refused move leaves the page where it was"


@pytest.mark.parametrize(
    ("space", "result"), [(SPACE.gmfn_foreign, -38), (SPACE.dev_mmio, -22), (6, -38), ((1 << 32) - 1, -38)]
)
def test_spaces_that_are_not_the_guests(domain: FakeDomain, space: int, result: int) -> None:
    assert add(domain, space, 0, HOLE) == result


def test_a_placed_page_moves_by_its_gfn(domain: FakeDomain) -> None:
    assert add(domain, SPACE.shared_info, 0, HOLE) == 0
    assert add(domain, SPACE.gmfn, HOLE, HOLE + 9) == 0
    assert domain.memory.placed(HOLE) is None
    assert domain.memory.placed(HOLE + 9) == domain.shared_info.frame
    assert add(domain, SPACE.gmfn, HOLE, 3) == -Errno.EINVAL


def test_ram_does_not_move(domain: FakeDomain) -> None:
    assert add(domain, SPACE.gmfn, 3, 4) == -Errno.EOPNOTSUPP
    assert domain.memory.is_ram(3)
    assert domain.memory.is_ram(4)


def test_a_range_moves(domain: FakeDomain) -> None:
    for idx in (0, 1):
        add(domain, SPACE.grant_table, idx, HOLE + idx)
    assert add(domain, SPACE.gmfn_range, HOLE, 0x2000, size=2) == 0
    assert [domain.memory.placed(0x2000 + idx) for idx in (0, 1)] == [domain.gnttab.frame(idx) for idx in (0, 1)]
    assert add(domain, SPACE.gmfn_range, HOLE, 0x3000, size=2) == -Errno.EINVAL
    assert add(domain, SPACE.gmfn_range, (1 << 64) - 1, (1 << 64) - 1, size=0xFFFF) == -Errno.EINVAL


def test_a_range_that_would_wrap_around_is_refused(domain: FakeDomain) -> None:
    assert add(domain, SPACE.gmfn_range, 5, 5, size=2) == 0  # each already is where it should go
    top = (1 << 64) - 1
    assert add(domain, SPACE.gmfn_range, top, top, size=2) == -Errno.EINVAL


@pytest.mark.parametrize("wide", [False, True])
def test_a_batch_tells_of_each_page(domain: FakeDomain, wide: bool) -> None:
    word = 8 if wide else 4
    indices, gfns = (0, 9, 1), (HOLE, HOLE + 1, HOLE + 2)
    domain.put(LIST, *((idx, word) for idx in indices))
    domain.put(LIST + 0x100, *((gfn, word) for gfn in gfns))
    pointers = ((LIST, word), (LIST + 0x100, word), (LIST + 0x200, word))
    domain.put(ARG, (DOMID_SELF, 2), (SPACE.grant_table, 2), (3, 2), (0, 2), *pointers)
    assert op(domain, abi.XENMEM_add_to_physmap_batch, wide=wide) == 0
    assert struct.unpack("<3i", domain.memory.read(LIST + 0x200, 12)) == (0, -Errno.EINVAL, 0)
    assert domain.memory.placed(HOLE + 2) == domain.gnttab.frame(1)


def test_batches_of_foreign_pages_and_bad_pointers(domain: FakeDomain) -> None:
    def batch(space: int, foreign: int, pointer: int = LIST) -> int:
        domain.put(ARG, (DOMID_SELF, 2), (space, 2), (1, 2), (foreign, 2), *[(pointer, 8)] * 3)
        return op(domain, abi.XENMEM_add_to_physmap_batch)

    assert batch(SPACE.gmfn_foreign, OTHER_DOMID) == -Errno.EPERM
    assert batch(SPACE.gmfn_foreign, NOBODY) == -Errno.ESRCH
    assert batch(SPACE.grant_table, 1) == -Errno.EINVAL
    assert batch(SPACE.grant_table, 0, UNMAPPED) == -Errno.EFAULT


@pytest.mark.parametrize("command", [abi.XENMEM_add_to_physmap, abi.XENMEM_add_to_physmap_batch])
def test_long_placements_let_others_in(domain: FakeDomain, command: abi.Op) -> None:
    if command is abi.XENMEM_add_to_physmap:
        domain.put(ARG, (DOMID_SELF, 2), (200, 2), (SPACE.gmfn_range, 4), (5, 8), (5, 8))
    else:
        domain.put(ARG, (DOMID_SELF, 2), (SPACE.gmfn, 2), (200, 2), (0, 2), *[(LIST, 8)] * 3)
    visits = []
    call = domain.call(MEMORY_OP, command.number, ARG, checkpoint=lambda: visits.append(1))
    assert dispatch.dispatch(call) == 0
    assert visits


def test_removal(domain: FakeDomain) -> None:
    def remove(gfn: int) -> int:
        domain.put(ARG, (DOMID_SELF, 8), (gfn, 8))
        return op(domain, abi.XENMEM_remove_from_physmap)

    add(domain, SPACE.shared_info, 0, HOLE)
    assert remove(HOLE) == 0
    assert remove(HOLE) == -Errno.ENOENT
    assert remove(7) == 0
    assert remove(7) == -Errno.ENOENT
    assert domain.memory.ram_pages == RAM_PAGES - 1
    for gfn in (1 << 40, (1 << 64) - 1):
        assert remove(gfn) == -Errno.ENOENT


def test_sizes(domain: FakeDomain) -> None:
    domain.put(ARG, (DOMID_SELF, 2))
    assert op(domain, abi.XENMEM_current_reservation) == RAM_PAGES
    assert op(domain, abi.XENMEM_maximum_reservation) == domain.max_pages
    assert op(domain, abi.XENMEM_maximum_gpfn) == RAM_PAGES - 1
    assert op(domain, abi.XENMEM_maximum_ram_page) == RAM_PAGES
    add(domain, SPACE.shared_info, 0, HOLE)
    domain.put(ARG, (DOMID_SELF, 2))
    assert op(domain, abi.XENMEM_maximum_gpfn) == HOLE


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("room", "told"), [(0, 0), (1, 1), (2, 2), (128, 2), ((1 << 32) - 1, 2)])
def test_the_memory_map_fits_the_buffer(domain: FakeDomain, wide: bool, room: int, told: int) -> None:
    word = 8 if wide else 4
    domain.memory.write(LIST, b"\xaa" * 64)
    domain.put(ARG, (room, word), (LIST, word))
    assert op(domain, abi.XENMEM_memory_map, wide=wide) == 0
    assert domain.number(ARG, 4) == told
    expected = b"".join(struct.pack("<QQI", *entry) for entry in domain.e820[:told])
    assert domain.memory.read(LIST, 64) == expected.ljust(64, b"\xaa")


def test_a_memory_map_with_no_place_to_go(domain: FakeDomain) -> None:
    domain.put(ARG, (2, 8), (UNMAPPED, 8))
    assert op(domain, abi.XENMEM_memory_map) == -Errno.EFAULT


def test_what_is_for_others(domain: FakeDomain) -> None:
    assert op(domain, abi.XENMEM_machine_memory_map) == -Errno.ENOSYS
    with fake_domain(is_pv=True) as pv_domain:
        assert op(pv_domain, abi.XENMEM_machine_memory_map) == -Errno.EPERM
    for domid, result in [(NOBODY, -Errno.ESRCH), (OTHER_DOMID, -Errno.EPERM), (DOM0, -Errno.EPERM)]:
        domain.put(ARG, (domid, 8), (0, 8), (LIST, 8))
        assert op(domain, abi.XENMEM_set_memory_map) == result


@pytest.mark.parametrize("wide", [False, True])
def test_a_kernel_may_set_its_own_memory_map(domain: FakeDomain, wide: bool) -> None:
    word = 8 if wide else 4
    domain.put(LIST, (0, 8), (0x5000, 8), (1, 4), (0x5000, 8), (0x3000, 8), (2, 4))
    domain.put(ARG, (DOMID_SELF, word), (2, word), (LIST, word))
    assert op(domain, abi.XENMEM_set_memory_map, wide=wide) == 0
    assert tuple(domain.e820) == ((0, 0x5000, 1), (0x5000, 0x3000, 2))
    domain.put(ARG + word, (1025, word))
    assert op(domain, abi.XENMEM_set_memory_map, wide=wide) == -Errno.EINVAL
    domain.put(ARG + word, (2, word), (0xF000_0000, word))
    assert op(domain, abi.XENMEM_set_memory_map, wide=wide) == -Errno.EFAULT
    assert len(domain.e820) == 2


@pytest.mark.parametrize("wide", [False, True])
def test_ballooning_out_and_in(domain: FakeDomain, wide: bool) -> None:
    gfns = [20, 21, 40]
    domain.memory.write(20 << PAGE_SHIFT, b"old")
    assert reserve(domain, abi.XENMEM_decrease_reservation, gfns, wide=wide) == 3
    assert domain.memory.ram_pages == RAM_PAGES - 3
    assert reserve(domain, abi.XENMEM_decrease_reservation, [*gfns, 50], wide=wide) == 0
    assert reserve(domain, abi.XENMEM_populate_physmap, gfns, wide=wide) == 3
    assert domain.memory.ram_pages == RAM_PAGES
    assert domain.memory.read(20 << PAGE_SHIFT, 3) == bytes(3)


def test_ballooning_stops_at_the_first_extent_that_cannot(domain: FakeDomain) -> None:
    assert reserve(domain, abi.XENMEM_decrease_reservation, [20, 21, HOLE, 22]) == 2
    assert domain.memory.is_ram(22)
    assert reserve(domain, abi.XENMEM_populate_physmap, [20, HOLE, 21]) == 1
    assert not domain.memory.is_ram(21)
    assert reserve(domain, abi.XENMEM_decrease_reservation, [(1 << 64) - 1]) == 0
    assert reserve(domain, abi.XENMEM_populate_physmap, [(1 << 64) - 1]) == 0


def test_extents_of_many_pages(domain: FakeDomain) -> None:
    assert reserve(domain, abi.XENMEM_decrease_reservation, [64], order=4) == 1
    assert domain.memory.ram_pages == RAM_PAGES - 16
    assert reserve(domain, abi.XENMEM_populate_physmap, [64], order=4) == 1
    assert domain.memory.ram_pages == RAM_PAGES
    for command in (abi.XENMEM_decrease_reservation, abi.XENMEM_populate_physmap, abi.XENMEM_increase_reservation):
        assert reserve(domain, command, [64], order=10) == 0
        assert reserve(domain, command, [64], order=(1 << 32) - 1) == 0


def test_a_domain_does_not_grow_beyond_its_maximum(domain: FakeDomain) -> None:
    reserve(domain, abi.XENMEM_decrease_reservation, [20, 21])
    domain.max_pages = RAM_PAGES - 1
    assert reserve(domain, abi.XENMEM_populate_physmap, [20, 21]) == 1


def test_populating_what_is_there_changes_nothing(domain: FakeDomain) -> None:
    domain.memory.write(20 << PAGE_SHIFT, b"kept")
    assert reserve(domain, abi.XENMEM_populate_physmap, [20, 21]) == 2
    assert domain.memory.ram_pages == RAM_PAGES
    assert domain.memory.read(20 << PAGE_SHIFT, 4) == b"kept"


def test_frames_without_a_gfn_are_not_given(domain: FakeDomain) -> None:
    assert reserve(domain, abi.XENMEM_increase_reservation, [1]) == 0


def test_a_reservation_list_that_leaves_memory_ends_there(domain: FakeDomain) -> None:
    first = RAM_PAGES * PAGE_SIZE - 16
    domain.put(first, (30, 8), (31, 8))
    domain.put(ARG, (first, 8), ((1 << 26) - 1, 8), (0, 4), (0, 4), (DOMID_SELF, 2))
    assert op(domain, abi.XENMEM_decrease_reservation) == 2
    domain.put(ARG, (first, 8), (1 << 26, 8))
    assert op(domain, abi.XENMEM_decrease_reservation) == 0, "more than can be counted"


def test_a_command_tells_how_many_extents_are_done(domain: FakeDomain) -> None:
    def goes_on(command: Op, start: int) -> int:
        return domain.hypercall(MEMORY_OP, command.number | start << 6, ARG)

    domain.put(LIST, (30, 8), (31, 8), (32, 8))
    domain.put(ARG, (LIST, 8), (3, 8), (0, 4), (0, 4), (DOMID_SELF, 2))
    assert goes_on(abi.XENMEM_decrease_reservation, 1) == 3
    assert [domain.memory.is_ram(gfn) for gfn in (30, 31, 32)] == [True, False, False]
    assert goes_on(abi.XENMEM_populate_physmap, 3) == 3, "there is nothing to go on with"
    assert domain.hypercall(MEMORY_OP, abi.XENMEM_populate_physmap.number | 7 << 6, UNMAPPED) == 7
    domain.put(ARG, (DOMID_SELF, 2))
    assert goes_on(abi.XENMEM_current_reservation, 0) == RAM_PAGES - 2
    assert goes_on(abi.XENMEM_current_reservation, 1) == -Errno.EINVAL


def test_a_long_reservation_lets_others_in(domain: FakeDomain) -> None:
    domain.memory.write(LIST, b"".join(struct.pack("<Q", 30) for _ in range(2000)))
    domain.put(ARG, (LIST, 8), (2000, 8), (0, 4), (0, 4), (DOMID_SELF, 2))
    visits = []
    call = domain.call(MEMORY_OP, abi.XENMEM_populate_physmap.number, ARG, checkpoint=lambda: visits.append(1))
    assert dispatch.dispatch(call) == 2000
    assert len(visits) >= 3
