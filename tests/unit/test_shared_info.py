"""shared_info in both layouts, and vcpu_info on the move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from xenpy.abi._xen64 import ffi
from xenpy.errors import Errno, XenError
from xenpy.framepool import FramePool
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv.shared_info import LAYOUT_32, LAYOUT_64, TIME_OFFSET, VCPU_INFO_SIZE, Layout, SharedInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

RAM_PAGES = 8
VCPUS = 34  # two more than shared_info has room for
GFN = 3
Rig = tuple[SharedInfo, GuestMemory]


@pytest.fixture
def rig() -> Iterator[Rig]:
    memory, pool = GuestMemory(), FramePool(4)
    memory.add_ram(0, RAM_PAGES * PAGE_SIZE)
    shared_info = SharedInfo(pool, memory, VCPUS)
    yield shared_info, memory
    for info in shared_info.vcpu_info:
        info.view.release()
    shared_info.view.release()
    shared_info._parking_view.release()
    memory.close()
    pool.close()


def test_the_64_bit_layout_is_that_of_the_structure() -> None:
    def offset(tag: str, *path: str) -> int:
        return ffi.offsetof(f"struct {tag}", *path)

    assert (
        Layout(
            word_bits=64,
            evtchn_pending=offset("shared_info", "evtchn_pending"),
            evtchn_mask=offset("shared_info", "evtchn_mask"),
            wc_version=offset("shared_info", "wc_version"),
            wc_sec_hi=offset("shared_info", "wc_sec_hi"),
            arch=offset("shared_info", "arch"),
            pending_sel=offset("vcpu_info", "evtchn_pending_sel"),
            cr2=offset("vcpu_info", "arch", "cr2"),
        )
        == LAYOUT_64
    )
    assert offset("vcpu_info", "time") == TIME_OFFSET
    assert ffi.sizeof("struct vcpu_info") == VCPU_INFO_SIZE


@pytest.mark.parametrize(("bits", "layout", "ports"), [(32, LAYOUT_32, 1024), (64, LAYOUT_64, 4096)])
def test_pending_and_mask_bits(rig: Rig, bits: int, layout: Layout, ports: int) -> None:
    shared_info, _ = rig
    shared_info.set_word_size(bits)
    assert shared_info.layout is layout
    assert layout.evtchn_ports == ports
    for port in (0, 1, 31, 32, 63, 64, ports - 1):
        assert not shared_info.is_pending(port)
        assert not shared_info.mark_pending(port)
        assert shared_info.mark_pending(port)
        assert shared_info.is_pending(port)
        assert shared_info.view[layout.evtchn_pending + port // 8] & 1 << port % 8
        assert not shared_info.is_masked(port)
        shared_info.set_mask(port)
        assert shared_info.is_masked(port)
        assert shared_info.view[layout.evtchn_mask + port // 8] & 1 << port % 8
        assert shared_info.clear_mask(port)
        assert not shared_info.clear_mask(port)
        assert shared_info.clear_pending(port)
        assert not shared_info.clear_pending(port)
    assert bytes(shared_info.view) == bytes(PAGE_SIZE)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("vcpu_id", [0, 1, 31, 33])
def test_selectors_and_upcalls(rig: Rig, bits: int, vcpu_id: int) -> None:
    shared_info, _ = rig
    shared_info.set_word_size(bits)
    info = shared_info.vcpu_info[vcpu_id]
    for word in (0, 1, bits - 1):
        assert not info.set_selector(word)
        assert info.set_selector(word)
        start = info.layout.pending_sel
        assert info.view[start + word // 8] & 1 << word % 8
    assert int.from_bytes(info.view, "little") == (3 | 1 << bits - 1) << 8 * info.layout.pending_sel
    info.set_all_selectors()
    assert int.from_bytes(info.view, "little") == ((1 << bits) - 1) << 8 * info.layout.pending_sel
    assert not info.upcall_pending
    assert not info.set_upcall_pending()
    assert info.set_upcall_pending()
    assert info.upcall_pending
    info.upcall_mask = True
    assert info.upcall_mask
    assert info.view[:2] == b"\x01\x01"


def test_cr2_has_all_64_bits(rig: Rig) -> None:
    info = rig[0].vcpu_info[0]
    info.cr2 = 0xFFFF_8880_0000_1234
    assert info.cr2 == 0xFFFF_8880_0000_1234
    assert bytes(info.view[16:24]) == (0xFFFF_8880_0000_1234).to_bytes(8, "little")


def test_the_first_32_vcpus_have_a_place_each(rig: Rig) -> None:
    infos = rig[0].vcpu_info
    assert [info.hva - rig[0].hva for info in infos[:32]] == list(range(0, 32 * 64, 64))
    assert infos[32].hva == infos[33].hva
    assert {info.gpa for info in infos} == {None}


@pytest.mark.parametrize("vcpu_id", [0, 33])
def test_vcpu_info_moves_with_what_it_holds(rig: Rig, vcpu_id: int) -> None:
    shared_info, memory = rig
    old = shared_info.vcpu_info[vcpu_id]
    old.view[TIME_OFFSET] = 0x77
    old.upcall_mask = True
    memory.write(GFN * PAGE_SIZE, b"\xee" * PAGE_SIZE)
    shared_info.register_vcpu_info(vcpu_id, GFN, 0x40)
    new = shared_info.vcpu_info[vcpu_id]
    assert new.gpa == GFN * PAGE_SIZE + 0x40
    data = memory.read(new.gpa, VCPU_INFO_SIZE)
    parked = vcpu_id == 33  # the page that all such vCPUs share holds nothing of this one's
    assert data[TIME_OFFSET] == (0 if parked else 0x77)
    assert data[1] == 1, "such vCPUs begin with upcalls masked"
    assert data[0] == 1, "it must look once, for an event may have come meanwhile"
    assert data[8:16] == b"\xff" * 8
    assert memory.read(new.gpa - 1, 1) + memory.read(new.gpa + 64, 1) == b"\xee\xee"
    new.set_selector(3)
    assert memory.view(new.gpa, 1)[0] == 1


def test_a_second_move_is_refused(rig: Rig) -> None:
    shared_info, _ = rig
    shared_info.register_vcpu_info(0, GFN, 0)
    refused(shared_info, 0, GFN, 64)
    shared_info.register_vcpu_info(1, GFN, 64)


def refused(shared_info: SharedInfo, vcpu_id: int, gfn: int, offset: int, errno: Errno = Errno.EINVAL) -> None:
    before = shared_info.vcpu_info[vcpu_id]
    with pytest.raises(XenError) as caught:
        shared_info.register_vcpu_info(vcpu_id, gfn, offset)
    assert caught.value.errno is errno
    assert shared_info.vcpu_info[vcpu_id] is before


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("gfn", "offset"),
    [
        (GFN, 4033),
        (GFN, 4096),
        (GFN, 2),
        (GFN, (1 << 32) - 64),
        (RAM_PAGES, 0),
        (1 << 28, 0),
        (1 << 52, 0),
        ((1 << 64) - 1, 0),
    ],
)
def test_places_that_will_not_do(rig: Rig, bits: int, gfn: int, offset: int) -> None:
    rig[0].set_word_size(bits)
    refused(rig[0], 0, gfn, offset, Errno.ENXIO if offset else Errno.EINVAL)


def test_a_32_bit_guest_needs_4_byte_alignment_only(rig: Rig) -> None:
    shared_info, memory = rig
    refused(shared_info, 0, GFN, 4, Errno.ENXIO)
    shared_info.set_word_size(32)
    shared_info.register_vcpu_info(0, GFN, 4)
    info = shared_info.vcpu_info[0]
    memory.write(info.gpa or 0, bytes(64))
    for word in (0, 5, 31):
        assert not info.set_selector(word)
    assert memory.read(GFN * PAGE_SIZE, 16) == bytes(8) + (1 | 1 << 5 | 1 << 31).to_bytes(4, "little") + bytes(4)
