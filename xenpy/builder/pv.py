"""The 64-bit PV domain builder: kernel, initrd, P2M list, start info and page tables in fresh guest memory.

A guest's machine frames (mfns) are frames of its KVM guest-physical space. Its RAM is one run of them, so that pfn p is at mfn
base_mfn + p; a guest that takes a pfn for an mfn then finds nothing there, as on a real host.

Ref: xen/include/public/xen.h, "Start-of-day memory layout" and struct start_info
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xenpy.abi._xen64 import ffi
from xenpy.abi.pv_start import INVALID_ENTRY, MAX_GUEST_CMDLINE, SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS, START_MAGIC
from xenpy.builder.layout import page_up
from xenpy.builder.pv_layout import PvImage, PvLayout
from xenpy.builder.pv_ramdisk import Ramdisk
from xenpy.builder.pv_tables import READ_ONLY, WRITABLE, Pages, fill_ascending
from xenpy.errors import ConfigError
from xenpy.memory import ADDRESS_BITS, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, GuestMemory
from xenpy.pv.version import PV_FEATURES

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.builder.kernel import KernelImage

_BASE_ALIGN: Final = 512
"""Frames in 2 MiB, so that large pages can back the RAM."""
_MIB_PAGES: Final = (1 << 20) >> PAGE_SHIFT
_WORDS: Final = PAGE_SIZE // 8
"""64-bit words in a page."""
_MAX_PAGES: Final = 1 << (ADDRESS_BITS - PAGE_SHIFT)


class PvStart(NamedTuple):
    """What the first vCPU starts with, and where the builder put things."""

    entry: int
    """RIP."""
    start_info: int
    """RSI: the start info's virtual address."""
    start_info_gpa: int
    stack: int
    """RSP, and the kernel stack of the first vCPU: the top of a page."""
    pt_base: int
    """The level-4 table's virtual address."""
    pt_base_mfn: int
    """CR3's frame: the level-4 table, with nothing in Xen's slots."""
    tables: dict[int, int]
    """Level of every page table by its mfn."""
    nr_pt_frames: int
    """How many of the tables map the initial mapping; they follow on `pt_base_mfn`."""
    store_mfn: int
    console_mfn: int
    virt_base: int
    """Where pfn 0 is mapped."""
    mapped_end: int
    """The address where the initial mapping ends."""
    hypercall_page_gpa: int | None
    """Of the page that `pv_stubs` is for, if the kernel has one."""
    ramdisk: Pages
    p2m: Pages
    """The P2M list; like all Pages in pfns, of which 0 is at `base_mfn`."""
    p2m_va: int
    base_mfn: int
    nr_pages: int


def build_pv(
    memory: GuestMemory,
    kernel: KernelImage,
    *,
    base_mfn: int,
    size: int,
    shared_info_mfn: int,
    nr_pages: int | None = None,
    cmdline: str = "",
    ramdisk: Path | bytes | None = None,
    store_evtchn: int = 0,
    console_evtchn: int = 0,
    features: int = PV_FEATURES,
) -> PvStart:
    """Add `size` bytes of RAM at `base_mfn`, a multiple of 512, to a guest-physical space, with a kernel ready to start.

    The guest starts with `nr_pages` pages, by default all; the rest is released, to be populated later. `features` are the XENFEAT_*
    bits that it will be told of. The event channels may follow with `set_event_channels`. Raises ConfigError, which names the file and what
    would be right, if the kernel is no 64-bit PV kernel, if something does not fit, or if the initrd cannot be read.

    Ref: xen/include/public/xen.h
    """
    size_pages, nr_pages = _checked_sizes(base_mfn, size, nr_pages)
    image = PvImage.of(kernel, features)
    command = _encode_cmdline(kernel, cmdline)
    with Ramdisk(ramdisk) as initrd:
        limit = _MAX_PAGES - base_mfn
        layout = _fitting_layout(str(kernel.path), image, initrd, nr_pages, limit)
        memory.add_ram(base_mfn << PAGE_SHIFT, size)
        _copy_kernel(memory, kernel, image, base_mfn)
        initrd.copy(memory.view((base_mfn + layout.ramdisk.pfn) << PAGE_SHIFT, initrd.size))
    start = _start(image, layout, base_mfn, nr_pages)
    _write_tables(memory, image, layout, start)
    p2m = (base_mfn + layout.p2m.pfn) * _WORDS
    _fill_map(memory.u64[p2m : p2m + layout.p2m.length * _WORDS], base_mfn, nr_pages)
    info = _start_info(image, layout, start, shared_info_mfn << PAGE_SHIFT, command, initrd.size)
    memory.write(start.start_info_gpa, info)
    set_event_channels(memory, start, store_evtchn, console_evtchn)
    for mfn in range(base_mfn + nr_pages, base_mfn + size_pages):
        memory.release(mfn)
    return start


def set_event_channels(memory: GuestMemory, start: PvStart, store_evtchn: int, console_evtchn: int) -> None:
    """Write the guest's ports for xenstore and console to its start info."""
    for field, port in ((("store_evtchn",), store_evtchn), (("console", "domU", "evtchn"), console_evtchn)):
        gpa = start.start_info_gpa + ffi.offsetof("struct start_info", *field)
        memory.write(gpa, port.to_bytes(4, "little"))


def fill_m2p(m2p: memoryview, base_mfn: int, nr_pages: int) -> None:
    """Write the pfns of a guest just built to a view of 64-bit words indexed by mfn; whatever is above them becomes invalid."""
    _fill_map(m2p[base_mfn:], 0, nr_pages)


# -- sizes ------------------------------------------------------------------------------------------------------------


def _checked_sizes(base_mfn: int, size: int, nr_pages: int | None) -> tuple[int, int]:
    """Return the size and nr_pages, both in pages."""
    if base_mfn % _BASE_ALIGN:
        raise ValueError(f"base_mfn {base_mfn:#x} is no multiple of {_BASE_ALIGN:#x}")
    limit = _MAX_PAGES - base_mfn
    if size <= 0 or size & PAGE_MASK or size >> PAGE_SHIFT > limit:
        raise ConfigError(f"memory of {size} bytes: whole pages up to {limit // _MIB_PAGES} MiB would be right")
    size_pages = size >> PAGE_SHIFT
    if nr_pages is None:
        return size_pages, size_pages
    if not 0 < nr_pages <= size_pages:
        raise ConfigError(f"{nr_pages} pages to start with: 1 to {size_pages}, which is all, would be right")
    return size_pages, nr_pages


def _fitting_layout(name: str, image: PvImage, initrd: Ramdisk, nr_pages: int, limit: int) -> PvLayout:
    """Return a layout within `nr_pages`. Raises ConfigError that tells how many MiB would do."""
    ramdisk_pages = page_up(initrd.size) >> PAGE_SHIFT
    least = image.pages.end + ramdisk_pages
    if least <= limit:
        layout = PvLayout.of(name, image, ramdisk_pages, nr_pages)
        if layout.total <= nr_pages:
            return layout
        # More memory needs a longer P2M list, which is a 512th of it: this ends after a few rounds.
        need = 0
        while layout.total > need:
            need = -(-layout.total // _MIB_PAGES) * _MIB_PAGES
            layout = PvLayout.of(name, image, ramdisk_pages, need)
        least = need
    what = f"{name} and {initrd.name}" if ramdisk_pages else name
    right = f"memory={least // _MIB_PAGES} or more" if least <= limit else f"pages below {limit:#x}"
    raise ConfigError(
        f"{what}: does not fit: needs pages up to {least:#x} of a guest that starts with {nr_pages:#x}; {right} would be right"
    )


def _encode_cmdline(kernel: KernelImage, cmdline: str) -> bytes:
    encoded = cmdline.encode("utf-8", "surrogateescape")
    if b"\0" in encoded:
        raise ConfigError("the kernel command line contains a NUL; text without one would be right")
    most = min(MAX_GUEST_CMDLINE - 1, kernel.cmdline_max or MAX_GUEST_CMDLINE)
    if len(encoded) > most:
        raise ConfigError(
            f"{kernel.path}: the command line has {len(encoded)} bytes; at most {most} would be right for a PV guest"
        )
    return encoded


# -- contents ---------------------------------------------------------------------------------------------------------


def _copy_kernel(memory: GuestMemory, kernel: KernelImage, image: PvImage, base_mfn: int) -> None:
    base = (base_mfn << PAGE_SHIFT) - image.paddr_offset
    for segment in kernel.elf.loadable:
        if segment.filesz:
            kernel.copy(memory, base + segment.paddr, segment.offset, segment.filesz)


def _start(image: PvImage, layout: PvLayout, base_mfn: int, nr_pages: int) -> PvStart:
    hypercall_page = image.hypercall_page
    return PvStart(
        entry=image.entry,
        start_info=image.va(layout.start_info),
        start_info_gpa=(base_mfn + layout.start_info) << PAGE_SHIFT,
        stack=image.va(layout.stack + 1),
        pt_base=image.va(layout.tables.pfn),
        pt_base_mfn=base_mfn + layout.tables.pfn,
        tables=layout.page_tables.levels(base_mfn),
        nr_pt_frames=layout.tables.length,
        store_mfn=base_mfn + layout.store,
        console_mfn=base_mfn + layout.console,
        virt_base=image.virt_base,
        mapped_end=image.va(layout.mapped),
        hypercall_page_gpa=None if hypercall_page is None else (base_mfn + hypercall_page) << PAGE_SHIFT,
        ramdisk=layout.ramdisk,
        p2m=layout.p2m,
        p2m_va=image.va(layout.p2m.pfn) if image.p2m_base is None else image.p2m_base,
        base_mfn=base_mfn,
        nr_pages=nr_pages,
    )


def _write_tables(memory: GuestMemory, image: PvImage, layout: PvLayout, start: PvStart) -> None:
    """Map pfns from 0 on at VIRT_BASE, the tables there read-only, and the P2M list if it is elsewhere."""
    tables, words, base_mfn = layout.page_tables, memory.u64, start.base_mfn
    tables.link(words, base_mfn)
    after = layout.tables.end
    for pages, flags in (
        (Pages(0, layout.tables.pfn), WRITABLE),
        (layout.tables, READ_ONLY),
        (Pages(after, layout.mapped - after), WRITABLE),
    ):
        tables.map(words, base_mfn, image.va(pages.pfn), pages, flags)
    if image.p2m_base is not None:
        tables.map(words, base_mfn, image.p2m_base, layout.p2m, WRITABLE)


def _fill_map(words: memoryview, first: int, count: int) -> None:
    """Write first, first + 1, ..., `count` of them, and the invalid frame up to the end."""
    fill_ascending(words[:count], first)
    words[count:] = memoryview(array("Q", [INVALID_ENTRY]) * (len(words) - count))


def _start_info(
    image: PvImage, layout: PvLayout, start: PvStart, shared_info: int, cmdline: bytes, ramdisk_size: int
) -> bytes:
    """Return struct start_info but for the event channels; `shared_info` is a machine address."""
    values: dict[str, Any] = {
        "magic": START_MAGIC,
        "nr_pages": start.nr_pages,
        "shared_info": shared_info,
        # Whoever saves or dumps a guest of ours follows arch_shared_info.p2m_vaddr: the guest need keep no tree for us.
        "flags": SIF_VIRT_P2M_4TOOLS,
        "store_mfn": start.store_mfn,
        "console": {"domU": {"mfn": start.console_mfn}},
        "pt_base": start.pt_base,
        "nr_pt_frames": start.nr_pt_frames,
        "mfn_list": start.p2m_va,
    }
    if ramdisk_size:
        values["mod_len"] = ramdisk_size
        if image.maps_ramdisk:
            values["mod_start"] = image.va(layout.ramdisk.pfn)
        else:
            values["mod_start"] = layout.ramdisk.pfn
            values["flags"] |= SIF_MOD_START_PFN
    if image.p2m_base is not None:
        values["first_p2m_pfn"] = layout.p2m.pfn
        values["nr_p2m_frames"] = layout.p2m.length + layout.p2m_tables.length
    info = ffi.new("struct start_info *", values)
    ffi.memmove(info.cmd_line, cmdline, len(cmdline))
    return bytes(ffi.buffer(info))
