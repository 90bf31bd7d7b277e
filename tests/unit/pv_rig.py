"""Small PV kernels, and a reader of what the builder made for them: it walks the tables entry by entry, as the hardware would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from builder_images import CODE, Load, elf, note

from xenpy.abi._xen64 import ffi
from xenpy.abi.elfnote import XEN_ELFNOTE
from xenpy.builder.kernel import KernelImage
from xenpy.builder.pv import PvStart, build_pv
from xenpy.memory import PAGE_SIZE, GuestMemory

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BASE_MFN = 0x100000
SHARED_INFO_MFN = 0x4321
VIRT_BASE = 0xFFFFFFFF80000000
P2M_BASE = 0x8000000000
KERNEL_AT = 0x200000
KERNEL_MEMSZ = len(CODE) + 0x3000
PRESENT, RW, USER, ACCESSED, DIRTY, GLOBAL, KERNEL_ONLY = 1, 2, 4, 0x20, 0x40, 0x100, 1 << 52


def pv_notes(**notes: bytes | int | None) -> bytes:
    """Return the notes that a PV kernel must have and those named; None leaves one out."""
    values: dict[str, bytes | int | None] = {
        "XEN_VERSION": b"xen-3.0\0",
        "LOADER": b"generic\0",
        "VIRT_BASE": VIRT_BASE,
        "ENTRY": VIRT_BASE + KERNEL_AT + 0x10,
    }
    values.update(notes)
    return b"".join(note(XEN_ELFNOTE[name], desc) for name, desc in values.items() if desc is not None)


def pv_elf(at: int = KERNEL_AT, **notes: bytes | int | None) -> bytes:
    return elf([Load(at, CODE, memsz=KERNEL_MEMSZ, vaddr=VIRT_BASE + KERNEL_AT)], pv_notes(**notes))


def build(memory: GuestMemory, path: Path, data: bytes, size: int = 32 * MIB, **options: Any) -> PvStart:
    """Build a guest from a kernel that is said to be at `path`."""
    options = {"base_mfn": BASE_MFN, "shared_info_mfn": SHARED_INFO_MFN} | options
    with KernelImage(path, data) as kernel:
        return build_pv(memory, kernel, size=size, **options)


@dataclass
class Walk:
    """All that page tables say: the entry of each mapped page by address, and the tables' levels and entries' flags."""

    leaves: dict[int, int] = field(default_factory=dict)
    tables: dict[int, int] = field(default_factory=dict)
    upper_flags: set[int] = field(default_factory=set)
    top: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, memory: GuestMemory, l4_mfn: int) -> Walk:
        walk = cls()
        walk.top = entries(memory, l4_mfn)
        walk._table(memory, l4_mfn, 4, 0)
        return walk

    def _table(self, memory: GuestMemory, mfn: int, level: int, va: int) -> None:
        assert self.tables.setdefault(mfn, level) == level
        for index, entry in enumerate(entries(memory, mfn)):
            if not entry & PRESENT:
                assert entry == 0
                continue
            at = va | index << 12 + 9 * (level - 1)
            at |= 0xFFFF_0000_0000_0000 * (at >> 47 & 1)
            if level == 1:
                self.leaves[at] = entry
            else:
                self.upper_flags.add(entry & ~frame_bits(entry))
                self._table(memory, frame_bits(entry) >> 12, level - 1, at)

    def frames(self, start: int, end: int) -> list[int]:
        """Return the mfns mapped at consecutive pages."""
        return [frame_bits(self.leaves[va]) >> 12 for va in range(start, end, PAGE_SIZE)]


def frame_bits(entry: int) -> int:
    return entry & 0x000F_FFFF_FFFF_F000


def entries(memory: GuestMemory, mfn: int) -> list[int]:
    return memory.view(mfn << 12, PAGE_SIZE).cast("Q").tolist()


def start_info(memory: GuestMemory, start: PvStart) -> Any:
    """Return a copy of the start info as the guest has it."""
    info = ffi.new("struct start_info *")
    ffi.memmove(info, memory.read(start.start_info_gpa, ffi.sizeof("struct start_info")), ffi.sizeof(info[0]))
    return info


def p2m(memory: GuestMemory, start: PvStart) -> list[int]:
    """Return every word of the P2M list's pages."""
    gpa = (start.base_mfn + start.p2m.pfn) << 12
    return memory.view(gpa, start.p2m.length * PAGE_SIZE).cast("Q").tolist()


def check(memory: GuestMemory, start: PvStart) -> Walk:
    """Check all that holds for every guest, whatever its kernel's notes, and return the walk through its tables."""
    walk = Walk.of(memory, start.pt_base_mfn)
    info = start_info(memory, start)
    mapped = range(start.virt_base, start.mapped_end, PAGE_SIZE)
    assert start.mapped_end % (4 * MIB) == 0
    assert start.mapped_end - start.stack >= 512 << 10
    assert walk.frames(mapped.start, mapped.stop) == list(range(start.base_mfn, start.base_mfn + len(mapped)))
    listed = (
        set() if start.p2m_va in mapped else set(range(start.p2m_va, start.p2m_va + (start.p2m.length << 12), 4096))
    )
    assert set(walk.leaves) == set(mapped) | listed
    frames = walk.frames(start.p2m_va, start.p2m_va + (start.p2m.length << 12))
    assert frames == [start.base_mfn + start.p2m.pfn + index for index in range(start.p2m.length)]

    assert walk.tables == start.tables
    assert walk.top[256:272] == [0] * 16, "Xen's slots are not the builder's"
    assert walk.upper_flags == {PRESENT | RW | USER | ACCESSED | DIRTY}
    for entry in walk.leaves.values():
        writable = 0 if frame_bits(entry) >> 12 in start.tables else RW
        assert entry & ~frame_bits(entry) == PRESENT | USER | ACCESSED | KERNEL_ONLY | writable

    first = list(range(start.pt_base_mfn, start.pt_base_mfn + start.nr_pt_frames))
    levels = [start.tables[mfn] for mfn in first]
    assert levels == sorted(levels, reverse=True), "the top level first"
    l1_addresses = [frame_bits(walk.leaves[va]) for va in mapped if frame_bits(walk.leaves[va]) >> 12 in start.tables]
    assert l1_addresses == [mfn << 12 for mfn in first], "the tables of the initial mapping are in it, once"

    assert bytes(ffi.buffer(info.magic)).rstrip(b"\0") == b"xen-3.0-x86_64"
    assert (info.nr_pages, info.shared_info) == (start.nr_pages, SHARED_INFO_MFN << 12)
    assert (info.store_mfn, info.console.domU.mfn) == (start.store_mfn, start.console_mfn)
    assert (info.pt_base, info.nr_pt_frames, info.mfn_list) == (start.pt_base, start.nr_pt_frames, start.p2m_va)
    order = [start.start_info_gpa >> 12, start.store_mfn, start.console_mfn, start.pt_base_mfn]
    order.append(start.pt_base_mfn + start.nr_pt_frames)  # the stack's page
    addresses = [start.virt_base + ((mfn - start.base_mfn) << 12) for mfn in order]
    assert order[:4] == list(range(order[0], order[0] + 4)), "packed together"
    assert [addresses[0], addresses[3], addresses[4] + PAGE_SIZE] == [start.start_info, start.pt_base, start.stack]
    for mfn in (start.store_mfn, start.console_mfn, order[4]):
        assert memory.read(mfn << 12, PAGE_SIZE) == bytes(PAGE_SIZE)

    words = p2m(memory, start)
    assert len(words) - start.nr_pages < 512
    assert words[: start.nr_pages] == list(range(start.base_mfn, start.base_mfn + start.nr_pages))
    assert set(words[start.nr_pages :]) <= {(1 << 64) - 1}
    return walk
