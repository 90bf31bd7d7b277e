"""A grant table's size, its versions, and what the toolstack puts in it."""

from __future__ import annotations

import contextlib

import pytest
from gnttab_rig import EMPTY_GFN, three_domains

from xenpy.abi.grant_table import GNTST, INVALID_GFN, GTF_accept_transfer, GTF_permit_access, GTF_reading, GTF_readonly
from xenpy.errors import Errno, XenError
from xenpy.framepool import FramePool
from xenpy.pv.gnttab import GrantError, GrantTable

READING_WRITING = 0x18


def test_a_table_starts_with_a_page_and_grows_to_its_limit() -> None:
    with three_domains(max_frames=4) as (one, _, _):
        gnttab = one.gnttab
        assert (gnttab.nr_frames, gnttab.max_frames, gnttab.version) == (1, 4, 1)
        frames = [gnttab.frame(index) for index in (0, 3)]
        assert gnttab.nr_frames == 4
        assert gnttab.frame(0) == frames[0]
        for index in (4, 1 << 31, (1 << 63) - 1):
            with pytest.raises(XenError) as caught:
                gnttab.frame(index)
            assert caught.value.errno is Errno.EINVAL
        with pytest.raises(XenError):
            gnttab.status_frame(0)


def test_status_pages_come_with_version_2_and_grow_along() -> None:
    with three_domains(2, max_frames=20) as (one, _, _):
        gnttab = one.gnttab
        gnttab.status_frame(0)
        assert gnttab.nr_frames == 1
        gnttab.status_frame(1)
        assert gnttab.nr_frames == 9, "a page of 2048 status words serves 8 pages of 256 entries"
        gnttab.frame(16)
        assert len(gnttab.get_status_frames(3)) == 3
        with pytest.raises(XenError) as caught:
            gnttab.status_frame(3)
        assert caught.value.errno is Errno.EINVAL


def test_setup_table_tells_where_the_guest_has_put_the_pages() -> None:
    with three_domains(max_frames=4) as (one, _, _):
        one.memory.place(EMPTY_GFN, one.gnttab.frame(1))
        assert one.gnttab.setup_table(3) == [INVALID_GFN, EMPTY_GFN, INVALID_GFN]
        assert one.gnttab.setup_table(1) == [INVALID_GFN]
        assert one.gnttab.setup_table(0) == []
        with pytest.raises(GrantError) as caught:
            one.gnttab.setup_table(5)
        assert caught.value.status is GNTST.general_error


def test_setup_table_tells_machine_frames_where_there_are_such() -> None:
    with three_domains() as (one, _, _):
        gnttab = GrantTable(5, one.pool, one.memory, lookup=one.lookup, frame_number=lambda frame: frame.offset >> 12)
        gnttab.set_version(2)
        first, second = gnttab.setup_table(2)
        assert second != first
        assert len(set(gnttab.get_status_frames(1)) | {first, second}) == 3
        with pytest.raises(GrantError):
            gnttab.get_status_frames(2)


def test_the_reserved_entries_survive_changes_of_version() -> None:
    with three_domains() as (one, _, _):
        one.gnttab.seed(0, 3, 5)
        one.grant(7, 3, 6, GTF_permit_access | GTF_readonly)
        one.grant(8, 3, 7)
        held = one.gnttab.map_page(3, 0)
        one.gnttab.set_version(2)
        assert bytes(one.entry(0)) == bytes.fromhex("0100 0300 00000000 0500000000000000")
        assert bytes(one.entry(7)[:2]) == bytes.fromhex("0500")
        assert bytes(one.entry(8)) == bytes(16)
        assert (one.in_use(0), one.in_use(7)) == (READING_WRITING, 0)
        one.grant(6, 3, 1 << 32)
        one.grant_part(5, 3, 9, 16, 16)
        one.pass_on(4, 3, 2, 1)
        one.gnttab.set_version(1)
        assert bytes(one.entry(0)) == bytes.fromhex("1900 0300 05000000")
        assert bytes(one.entry(6)) == bytes(8), "version 1 has no room for the frame"
        assert bytes(one.entry(4)) == bytes(8)
        held.close()
        assert bytes(one.entry(0)) == bytes.fromhex("0100 0300 05000000")


def test_the_version_changes_only_while_no_other_grant_is_used() -> None:
    with three_domains() as (one, _, _):
        one.grant(8, 3, 1)
        held = one.gnttab.map_page(3, 8)
        with pytest.raises(XenError) as caught:
            one.gnttab.set_version(2)
        assert caught.value.errno is Errno.EBUSY
        one.gnttab.set_version(1)
        held.close()
        one.gnttab.set_version(2)
        assert one.gnttab.version == 2


@pytest.mark.parametrize("version", [0, 3, (1 << 32) - 1])
def test_there_are_two_versions(version: int) -> None:
    with three_domains() as (one, _, _), pytest.raises(XenError) as caught:
        one.gnttab.set_version(version)
    assert caught.value.errno is Errno.EINVAL


def test_a_domain_may_be_kept_to_version_1() -> None:
    with three_domains(max_version=1) as (one, _, _), pytest.raises(XenError) as caught:
        one.gnttab.set_version(2)
    assert caught.value.errno is Errno.ENOSYS


def test_going_back_to_version_1_takes_the_status_pages_away() -> None:
    with three_domains(2) as (one, _, _):
        one.memory.place(EMPTY_GFN, one.gnttab.status_frame(0))
        one.gnttab.set_version(1)
        assert one.memory.placed(EMPTY_GFN) is None
        assert one.gnttab.get_status_frames(0) == []
        one.gnttab.set_version(2)
        assert one.gnttab.get_status_frames(1) == [INVALID_GFN]


def test_the_pool_running_out_leaves_the_version() -> None:
    with three_domains() as (one, _, _):
        with contextlib.suppress(XenError):
            while True:
                one.pool.allocate()
        one.gnttab.seed(1, 2, 3)
        with pytest.raises(XenError) as caught:
            one.gnttab.set_version(2)
        assert caught.value.errno is Errno.ENOMEM
        assert one.gnttab.version == 1
        assert bytes(one.entry(1)) == bytes.fromhex("0100 0200 03000000")


@pytest.mark.parametrize("version", [1, 2])
def test_swap(version: int) -> None:
    with three_domains(version) as (one, _, _):
        one.grant(10, 2, 4)
        one.grant(200, 3, 5, GTF_accept_transfer)
        ten, other = bytes(one.entry(10)), bytes(one.entry(200))
        one.gnttab.swap(10, 200)
        assert (bytes(one.entry(10)), bytes(one.entry(200))) == (other, ten)
        one.gnttab.swap(200, 200)
        with one.gnttab.map_page(2, 200):
            for pair in ((10, 200), (200, 10)):
                with pytest.raises(GrantError) as caught:
                    one.gnttab.swap(*pair)
                assert caught.value.status is GNTST.eagain
        with pytest.raises(GrantError) as caught:
            one.gnttab.swap(10, 512)
        assert caught.value.status is GNTST.bad_gntref


@pytest.mark.parametrize("version", [1, 2])
def test_a_copy_has_the_entries_and_nobody_using_them(version: int) -> None:
    with three_domains(version) as (one, two, _):
        one.gnttab.frame(2)
        one.grant(300, 3, 4)
        saved = one.gnttab.snapshot()
        pool = FramePool()
        pool.load(one.pool.state())
        fresh = GrantTable(2, pool, two.memory, lookup=two.lookup)
        fresh.restore(saved)
        assert fresh.snapshot() == saved
        assert (fresh.version, fresh.nr_frames) == (version, 3)
        with fresh.map_page(3, 300) as mapping:
            assert bytes(mapping.view[:19]) == two.mark(4)


def test_a_reader_shows_in_the_entry_while_it_reads() -> None:
    with three_domains() as (one, _, _):
        one.grant(9, 0, 3, GTF_permit_access | GTF_readonly)
        with one.gnttab.map_page(0, 9, readonly=True):
            assert one.in_use(9) == GTF_reading
        assert one.in_use(9) == 0
