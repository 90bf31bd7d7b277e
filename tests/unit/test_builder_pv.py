from __future__ import annotations

import mmap
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from builder_images import CODE, SHT_PROGBITS, Load, Section, elf
from hypothesis import given, settings
from hypothesis import strategies as st
from pv_rig import (
    BASE_MFN,
    KERNEL_AT,
    KERNEL_MEMSZ,
    MIB,
    P2M_BASE,
    VIRT_BASE,
    build,
    check,
    p2m,
    pv_elf,
    pv_notes,
    start_info,
)

from xenpy.abi._xen64 import ffi
from xenpy.builder.kernel import load_kernel
from xenpy.builder.pv import PvStart, build_pv, fill_m2p, set_event_channels
from xenpy.cache import cache_directory
from xenpy.errors import Errno, XenError
from xenpy.guests import GUESTS, provide
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv.mmu import Mmu
from xenpy.pv.paging import CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME, translate

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = PAGE_SIZE
KERNEL = Path("kernel")


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory()
    yield memory
    memory.close()


def reach(memory: GuestMemory, start: PvStart, va: int, *, write: bool = False) -> int:
    cr0, efer = CR0_PE | CR0_PG | CR0_WP, EFER_LMA | EFER_LME
    return translate(memory, cr0, start.pt_base_mfn << 12, CR4_PAE, efer, va, write=write)


def test_a_kernel_of_few_notes(memory: GuestMemory) -> None:
    start = build(memory, KERNEL, pv_elf())
    check(memory, start)
    assert (start.entry, start.virt_base) == (VIRT_BASE + KERNEL_AT + 0x10, VIRT_BASE)
    assert memory.read((BASE_MFN << 12) + KERNEL_AT, KERNEL_MEMSZ) == CODE.ljust(KERNEL_MEMSZ, b"\0")
    after_kernel = -(-(KERNEL_AT + KERNEL_MEMSZ) // PAGE)
    assert start.p2m == (after_kernel, 32 * MIB // PAGE * 8 // PAGE)
    assert start.p2m_va == VIRT_BASE + after_kernel * PAGE
    assert start.start_info == VIRT_BASE + (after_kernel + start.p2m.length) * PAGE
    info = start_info(memory, start)
    assert (info.flags, info.mod_start, info.mod_len) == (16, 0, 0)
    assert (info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0)
    assert (info.store_evtchn, info.console.domU.evtchn) == (0, 0)
    assert start.hypercall_page_gpa is None
    assert not start.ramdisk.length


def test_addresses_reach_what_is_there(memory: GuestMemory) -> None:
    start = build(memory, KERNEL, pv_elf(INIT_P2M=P2M_BASE))
    gpa = BASE_MFN << 12
    assert reach(memory, start, start.entry) == gpa + KERNEL_AT + 0x10
    assert reach(memory, start, start.start_info, write=True) == start.start_info_gpa
    assert reach(memory, start, start.stack - 8, write=True) == (start.pt_base_mfn + start.nr_pt_frames + 1 << 12) - 8
    assert reach(memory, start, P2M_BASE + 8, write=True) == gpa + start.p2m.pfn * PAGE + 8
    assert reach(memory, start, start.pt_base) == start.pt_base_mfn << 12
    for va, write in ((start.pt_base, True), (start.mapped_end, False), (VIRT_BASE - PAGE, False), (1 << 47, False)):
        with pytest.raises(XenError) as caught:
            reach(memory, start, va, write=write)
        assert caught.value.errno is Errno.EFAULT


def test_a_p2m_list_where_the_kernel_wants_it(memory: GuestMemory) -> None:
    start = build(memory, KERNEL, pv_elf(INIT_P2M=P2M_BASE))
    check(memory, start)
    info = start_info(memory, start)
    mapped = (start.mapped_end - VIRT_BASE) // PAGE
    assert start.p2m_va == P2M_BASE
    assert info.first_p2m_pfn == start.p2m.pfn == mapped, "right behind the initial mapping, unmapped there"
    tables = set(start.tables) - set(range(start.pt_base_mfn, start.pt_base_mfn + start.nr_pt_frames))
    assert sorted(start.tables[mfn] for mfn in tables) == [1, 2, 3]
    frames = range(BASE_MFN + info.first_p2m_pfn, BASE_MFN + info.first_p2m_pfn + info.nr_p2m_frames)
    assert tables == set(frames[start.p2m.length :]), "the frames told are the list and then its tables"


@pytest.mark.parametrize("p2m_base", [VIRT_BASE, VIRT_BASE + 64 * MIB, P2M_BASE + 8])
def test_a_p2m_list_where_it_cannot_be_is_in_the_initial_mapping(memory: GuestMemory, p2m_base: int) -> None:
    start = build(memory, KERNEL, pv_elf(INIT_P2M=p2m_base))
    check(memory, start)
    assert VIRT_BASE < start.p2m_va < start.mapped_end
    assert start_info(memory, start).nr_p2m_frames == 0


def test_a_p2m_list_that_shares_tables_with_the_initial_mapping(memory: GuestMemory) -> None:
    """All of both is in one level-3 table, and in one level-2 table."""
    start = build(memory, KERNEL, pv_elf(VIRT_BASE=1 << 29, ENTRY=(1 << 29) + KERNEL_AT, INIT_P2M=1 << 28))
    walk = check(memory, start)
    assert sorted(walk.tables.values())[1:] == [1] * (len(walk.tables) - 4) + [2, 3, 4]


@pytest.mark.parametrize("by_note", [True, False])
@pytest.mark.parametrize("as_file", [True, False])
def test_initrd(memory: GuestMemory, tmp_path: Path, by_note: bool, as_file: bool) -> None:
    content = bytes(range(251)) * 9001
    path = tmp_path / "initrd"
    path.write_bytes(content)
    notes = {"MOD_START_PFN": 1} if by_note else {}
    start = build(memory, KERNEL, pv_elf(**notes), ramdisk=path if as_file else content)
    check(memory, start)
    info = start_info(memory, start)
    assert info.mod_len == len(content)
    assert memory.read((BASE_MFN + start.ramdisk.pfn) << 12, len(content)) == content
    if by_note:
        assert (info.flags, info.mod_start) == (16 | 8, start.ramdisk.pfn)
        assert info.mod_start * PAGE == start.mapped_end - VIRT_BASE
    else:
        assert (info.flags, info.mod_start) == (16, VIRT_BASE + start.ramdisk.pfn * PAGE)
        assert reach(memory, start, info.mod_start) == (BASE_MFN + start.ramdisk.pfn) << 12
        assert KERNEL_AT < start.ramdisk.pfn * PAGE < start.p2m.pfn * PAGE


@pytest.mark.parametrize("cmdline", ["", "console=hvc0 name=é", "x" * 1023])
def test_command_line_and_event_channels(memory: GuestMemory, cmdline: str) -> None:
    start = build(memory, KERNEL, pv_elf(), cmdline=cmdline, store_evtchn=3, console_evtchn=4)
    check(memory, start)
    info = start_info(memory, start)
    assert bytes(ffi.buffer(info.cmd_line)) == cmdline.encode().ljust(1024, b"\0")
    assert (info.store_evtchn, info.console.domU.evtchn) == (3, 4)
    before = memory.read(start.start_info_gpa, PAGE)
    set_event_channels(memory, start, 1 << 31, 7)
    info = start_info(memory, start)
    assert (info.store_evtchn, info.console.domU.evtchn) == (1 << 31, 7)
    set_event_channels(memory, start, 3, 4)
    assert memory.read(start.start_info_gpa, PAGE) == before, "nothing else was written"


def test_hypercall_page_and_physical_offset(memory: GuestMemory) -> None:
    data = pv_elf(
        at=VIRT_BASE + KERNEL_AT, PADDR_OFFSET=VIRT_BASE, HYPERCALL_PAGE=VIRT_BASE + KERNEL_AT + PAGE, ENTRY=None
    )
    start = build(memory, KERNEL, data)
    check(memory, start)
    assert start.hypercall_page_gpa == (BASE_MFN << 12) + KERNEL_AT + PAGE
    assert start.entry == VIRT_BASE + KERNEL_AT, "the ELF header's entry, for want of a note"
    assert memory.read((BASE_MFN << 12) + KERNEL_AT, len(CODE)) == CODE


def test_a_kernel_with_a_legacy_section(memory: GuestMemory) -> None:
    text = f"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE={VIRT_BASE:#x},HYPERCALL_PAGE=0x201,VIRT_ENTRY={VIRT_BASE + KERNEL_AT:#x}"
    sections = [Section("__xen_guest", SHT_PROGBITS, text.encode() + b"\0")]
    data = elf([Load(VIRT_BASE + KERNEL_AT, CODE, memsz=KERNEL_MEMSZ)], sections=sections)
    start = build(memory, KERNEL, data)
    check(memory, start)
    assert start.entry == VIRT_BASE + KERNEL_AT
    assert start.hypercall_page_gpa == (BASE_MFN << 12) + KERNEL_AT + PAGE
    assert memory.read((BASE_MFN << 12) + KERNEL_AT, len(CODE)) == CODE


def test_a_kernel_in_the_low_half(memory: GuestMemory) -> None:
    start = build(memory, KERNEL, pv_elf(VIRT_BASE=None, ENTRY=KERNEL_AT))
    walk = check(memory, start)
    assert start.virt_base == 0
    assert [index for index, entry in enumerate(walk.top) if entry] == [0]


def test_an_initial_mapping_up_to_the_end_of_the_address_space(memory: GuestMemory) -> None:
    start = build(memory, KERNEL, pv_elf(VIRT_BASE=(1 << 64) - 3 * MIB, ENTRY=(1 << 64) - MIB))
    check(memory, start)
    assert start.mapped_end == 1 << 64


def test_segments_and_the_gaps_between_them(memory: GuestMemory) -> None:
    loads = [Load(0x600000, b"later"), Load(0x400800, b"first", memsz=0x2000), Load(0, b"", memsz=0)]
    start = build(memory, KERNEL, elf(loads, pv_notes(ENTRY=VIRT_BASE + 0x600000)))
    check(memory, start)
    base = BASE_MFN << 12
    assert (memory.read(base + 0x400800, 6), memory.read(base + 0x600000, 6)) == (b"first\0", b"later\0")
    assert start.p2m.pfn == 0x601


@pytest.mark.parametrize("notes", [{}, {"INIT_P2M": P2M_BASE}])
def test_tables_are_what_the_hypervisor_accepts(memory: GuestMemory, notes: dict[str, Any]) -> None:
    start = build(memory, KERNEL, pv_elf(**notes), nr_pages=8000)
    stores: list[tuple[int, int]] = []
    slots: list[tuple[int, bool]] = []
    mmu = Mmu(
        memory,
        memoryview(array("Q", [0]) * (32 * MIB // PAGE)),
        BASE_MFN,
        memoryview(array("Q")),
        store=lambda gpa, value: stores.append((gpa, value)),
        mappable=lambda _: 0,
        fill_hypervisor_slots=lambda mfn, kernel: slots.append((mfn, kernel)),
    )
    mmu.adopt(start.tables, start.pt_base_mfn, start.nr_pages)
    assert mmu.audit() == []
    assert stores == [], "nothing was left for it to adjust"
    assert {mfn for mfn, _ in slots} == {start.pt_base_mfn}


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128 * MIB, 1 << 30, 4 << 30, 8 << 30])
@pytest.mark.parametrize("notes", [{}, {"INIT_P2M": P2M_BASE, "MOD_START_PFN": 1}])
def test_sizes_of_memory(memory: GuestMemory, size: int, notes: dict[str, Any]) -> None:
    start = build(memory, KERNEL, pv_elf(**notes), size=size, ramdisk=b"x" * 5000)
    check(memory, start)
    assert memory.ram_pages == start.nr_pages == size // PAGE
    assert memory.is_ram(BASE_MFN + size // PAGE - 1)
    assert not memory.is_ram(BASE_MFN - 1)
    assert not memory.is_ram(BASE_MFN + size // PAGE)


def test_less_memory_than_its_maximum(memory: GuestMemory) -> None:
    start = build(memory, KERNEL, pv_elf(), size=32 * MIB, nr_pages=5000)
    check(memory, start)
    assert (memory.ram_pages, start.nr_pages, start_info(memory, start).nr_pages) == (5000, 5000, 5000)
    assert memory.is_ram(BASE_MFN + 4999)
    assert not memory.is_ram(BASE_MFN + 5000)
    assert memory.populate(BASE_MFN + 5000), "it can grow up to the maximum"


@settings(max_examples=40)
@given(
    kernel_mib=st.integers(0, 60),
    memory_mib=st.integers(80, 600),
    spare=st.integers(0, 2000),
    ramdisk=st.integers(0, 9 * MIB),
    with_p2m=st.booleans(),
    with_pfn=st.booleans(),
    base=st.sampled_from([0x200, 0x100000, 0x3FFFE00, 0x8000000]),
)
def test_any_size(
    kernel_mib: int, memory_mib: int, spare: int, ramdisk: int, with_p2m: bool, with_pfn: bool, base: int
) -> None:
    memory = GuestMemory()
    notes: dict[str, int] = {"ENTRY": VIRT_BASE + kernel_mib * MIB}
    if with_p2m:
        notes["INIT_P2M"] = P2M_BASE
    if with_pfn:
        notes["MOD_START_PFN"] = 1
    size = memory_mib * MIB
    options: dict[str, Any] = {"ramdisk": b"r" * ramdisk} if ramdisk else {}
    data = pv_elf(at=kernel_mib * MIB, **notes)
    start = build(memory, KERNEL, data, size=size, nr_pages=size // PAGE - spare, base_mfn=base, **options)
    check(memory, start)
    end = max(start.ramdisk.end, start.p2m.end, *(mfn - base + 1 for mfn in start.tables))
    assert end <= start.nr_pages
    assert memory.read((base + start.ramdisk.pfn) << 12, ramdisk) == b"r" * ramdisk
    memory.close()


@pytest.mark.parametrize("nr_pages", [1, 4095, 1 << 20])
def test_machine_to_physical(nr_pages: int) -> None:
    base, spare = 0x200, 700
    with mmap.mmap(-1, (base + nr_pages + spare) * 8) as area:
        m2p = memoryview(area).cast("Q")
        fill_m2p(m2p, base, nr_pages)
        assert m2p[:base].tolist() == [0] * base
        assert m2p[base : base + nr_pages].tolist() == list(range(nr_pages))
        assert set(m2p[base + nr_pages :]) == {(1 << 64) - 1}
        m2p.release()


# -- distributions' kernels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GUESTS)
def test_distribution_kernels(memory: GuestMemory, name: str) -> None:
    if not (cache_directory("guests") / name).exists():
        pytest.skip(f"kernel {name} is not in the cache (tools/guests.py fetches it)")
    content = b"\xaa" * (20 * MIB)
    with load_kernel(provide(name).kernel) as kernel:
        start = build_pv(
            memory, kernel, base_mfn=BASE_MFN, size=256 * MIB, shared_info_mfn=0x4321, ramdisk=content, cmdline="quiet"
        )
        check(memory, start)
        info = start_info(memory, start)
        assert start.entry == kernel.notes.entry
        for segment in kernel.elf.loadable:
            gpa = (
                reach(memory, start, segment.vaddr) if segment.vaddr >= VIRT_BASE else (BASE_MFN << 12) + segment.paddr
            )
            assert memory.read(gpa, segment.filesz) == kernel.data[segment.offset : segment.offset + segment.filesz]
    assert (info.flags, info.mod_start, start.p2m_va) == (16 | 8, start.ramdisk.pfn, P2M_BASE)
    assert (info.first_p2m_pfn, info.nr_p2m_frames) == (start.ramdisk.end, start.p2m.length + 3)
    assert len(p2m(memory, start)) == 256 * MIB // PAGE
