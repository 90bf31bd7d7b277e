"""Where things are when a PV guest starts, in its pseudo-physical pages (pfns) and its virtual space.

From VIRT_BASE on, pfns are mapped in order: kernel, initrd unless the kernel takes an unmapped one, P2M list unless the kernel names
a place for it, start info, xenstore ring, console ring, page tables, stack, padding. The rest of the initrd and P2M follow unmapped.

Ref: xen/include/public/xen.h, "Start-of-day memory layout"; xen/include/public/elfnote.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi.elfnote import FEATURE_NAMES
from xenpy.abi.pv_start import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START
from xenpy.builder.pv_tables import Pages, PageTables
from xenpy.errors import ConfigError
from xenpy.memory import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from xenpy.builder.kernel import KernelImage

_PADDING: Final = 512 << 10
_MAPPED_ALIGN: Final = 4 << 20
_ENTRY_SIZE: Final = 8
"""Bytes of a P2M entry."""
_LOW_HALF_END: Final = 1 << 47
_SPACE_END: Final = 1 << 64

_FOR_GRANTED: Final = 1 << FEATURE_NAMES.index("writable_page_tables") | 1 << FEATURE_NAMES.index("pae_pgdir_above_4gb")
"""Features that kernels require although no Xen tells 64-bit PV guests of them: writes to page tables are emulated instead, and the other
is about 32-bit guests."""


class PvImage(NamedTuple):
    """Where a kernel wants to be, and what it wants to find; addresses are virtual."""

    virt_base: int
    """Where pfn 0 is mapped."""
    paddr_offset: int
    """What to subtract from the ELF file's physical addresses."""
    pages: Pages
    """Those that its segments touch."""
    entry: int
    hypercall_page: int | None
    """A pfn."""
    p2m_base: int | None
    """Where it wants the P2M list, unless that is to be in the initial mapping."""
    maps_ramdisk: bool

    def va(self, pfn: int) -> int:
        """Return where the initial mapping has a page."""
        return self.virt_base + (pfn << PAGE_SHIFT)

    @classmethod
    def of(cls, kernel: KernelImage, features: int) -> PvImage:
        """Return what a kernel's notes and segments say, for a Xen that offers `features` (XENFEAT_* bits).

        Raises ConfigError for what cannot be. PAE_MODE is for 32-bit kernels and L1_MFN_VALID for migration: neither matters here.
        """
        if kernel.pv_refusal is not None:
            raise ConfigError(kernel.pv_refusal)
        _check_features(kernel, features)
        name, notes = kernel.path, kernel.notes
        if notes.hv_start_low is not None and notes.hv_start_low > HYPERVISOR_VIRT_START:
            raise ConfigError(
                f"{name}: XEN_ELFNOTE_HV_START_LOW is {notes.hv_start_low:#x}; "
                f"at most {HYPERVISOR_VIRT_START:#x}, where Xen's area starts, would be right"
            )
        virt_base, offset = notes.virt_base or 0, notes.paddr_offset or 0
        if virt_base & PAGE_MASK:
            raise ConfigError(f"{name}: XEN_ELFNOTE_VIRT_BASE is {virt_base:#x}; a page's address would be right")
        pages = _kernel_pages(kernel, offset)
        start, end = virt_base + (pages.pfn << PAGE_SHIFT), virt_base + (pages.end << PAGE_SHIFT)
        _check_space(
            str(name), f"the kernel (its physical addresses less XEN_ELFNOTE_PADDR_OFFSET {offset:#x})", start, end
        )
        entry = kernel.elf.entry if notes.entry is None else notes.entry
        if not start <= entry < end:
            raise ConfigError(
                f"{name}: its entry point {entry:#x} is not in the kernel; an address in [{start:#x}, {end:#x}) would be right"
            )
        hypercall_page = notes.hypercall_page
        if hypercall_page is not None and (hypercall_page & PAGE_MASK or not start <= hypercall_page < end):
            raise ConfigError(
                f"{name}: XEN_ELFNOTE_HYPERCALL_PAGE is {hypercall_page:#x}; a page in [{start:#x}, {end:#x}) would be right"
            )
        p2m_base = notes.init_p2m
        if p2m_base is not None and (p2m_base & PAGE_MASK or p2m_base >= virt_base):
            p2m_base = None  # Xen's builder takes the list into the initial mapping then
        pfn = None if hypercall_page is None else (hypercall_page - virt_base) >> PAGE_SHIFT
        return cls(virt_base, offset, pages, entry, pfn, p2m_base, not notes.mod_start_pfn)


class PvLayout(NamedTuple):
    """Where the builder puts things, by pfn."""

    ramdisk: Pages
    """Empty if there is none."""
    p2m: Pages
    """The list itself."""
    p2m_tables: Pages
    """The page tables that map the list alone, right behind it; empty if it is in the initial mapping."""
    start_info: int
    store: int
    console: int
    tables: Pages
    """Those of the initial mapping."""
    stack: int
    mapped: int
    """How many pages the initial mapping has; it starts with pfn 0."""
    total: int
    """How many pages the guest needs at least."""
    page_tables: PageTables

    @classmethod
    def of(cls, name: str, image: PvImage, ramdisk_pages: int, nr_pages: int) -> PvLayout:
        """Return the layout of a guest of `nr_pages` pages, which may be fewer than its `total`.

        Raises ConfigError, naming the kernel, if its virtual space has no room.
        """
        none = Pages(0, 0)
        p2m_pages = -(-nr_pages * _ENTRY_SIZE // PAGE_SIZE)
        page_tables = PageTables()
        ramdisk = Pages(image.pages.end, ramdisk_pages if image.maps_ramdisk else 0)
        p2m = Pages(ramdisk.end, p2m_pages if image.p2m_base is None else 0)
        start_info = p2m.end
        store, console, tables_pfn = start_info + 1, start_info + 2, start_info + 3
        tables, mapped = _place_tables(name, image.virt_base, page_tables, tables_pfn)
        total = mapped
        if not image.maps_ramdisk and ramdisk_pages:
            ramdisk = Pages(total, ramdisk_pages)
            total = ramdisk.end
        p2m_tables = none
        if image.p2m_base is not None:
            p2m = Pages(total, p2m_pages)
            end = image.p2m_base + (p2m_pages << PAGE_SHIFT)
            _check_space(name, "the P2M list at XEN_ELFNOTE_INIT_P2M", image.p2m_base, end)
            if end > image.virt_base:
                raise ConfigError(
                    f"{name}: the P2M list [{image.p2m_base:#x}, {end:#x}) reaches into the kernel's mapping at "
                    f"{image.virt_base:#x}; an XEN_ELFNOTE_INIT_P2M further away would be right"
                )
            keys = page_tables.missing(image.p2m_base, end)
            page_tables.place(keys, p2m.end)
            p2m_tables = Pages(p2m.end, len(keys))
            total = p2m_tables.end
        return cls(
            ramdisk if ramdisk_pages else none,
            p2m, p2m_tables, start_info, store, console, tables, tables.end, mapped, total, page_tables,
        )  # fmt: skip


def _place_tables(name: str, virt_base: int, page_tables: PageTables, pfn: int) -> tuple[Pages, int]:
    """Place the initial mapping's tables, which map themselves, and return them and how many pages are mapped."""
    count = 0
    while True:
        stack_end = virt_base + ((pfn + count + 1) << PAGE_SHIFT)
        end = -(-(stack_end + _PADDING) // _MAPPED_ALIGN) * _MAPPED_ALIGN
        _check_space(name, "the initial mapping (kernel, initrd, start-up tables)", virt_base, end)
        keys = page_tables.missing(virt_base, end)
        if len(keys) == count:
            page_tables.place(keys, pfn)
            return Pages(pfn, count), (end - virt_base) >> PAGE_SHIFT
        count = len(keys)


def _check_space(name: str, what: str, start: int, end: int) -> None:
    if end <= _LOW_HALF_END or HYPERVISOR_VIRT_END <= start < end <= _SPACE_END:
        return
    raise ConfigError(
        f"{name}: {what} would be at [{start:#x}, {end:#x}); an address range within [0, {_LOW_HALF_END:#x}) or "
        f"[{HYPERVISOR_VIRT_END:#x}, {_SPACE_END:#x}) would be right"
    )


def _kernel_pages(kernel: KernelImage, offset: int) -> Pages:
    segments = kernel.elf.loadable
    if not segments:
        raise ConfigError(f"{kernel.path}: no segment to load; an ELF executable with PT_LOAD segments would be right")
    for segment in segments:
        if segment.paddr < offset:
            raise ConfigError(
                f"{kernel.path}: {segment} is below XEN_ELFNOTE_PADDR_OFFSET {offset:#x}; not below would be right"
            )
    start = min(segment.paddr for segment in segments) - offset
    end = max(segment.paddr + segment.memsz for segment in segments) - offset
    return Pages(start >> PAGE_SHIFT, -(-end >> PAGE_SHIFT) - (start >> PAGE_SHIFT))


def _check_features(kernel: KernelImage, offered: int) -> None:
    lacking = kernel.notes.required_features & ~(offered | _FOR_GRANTED)
    names = [name for bit, name in enumerate(FEATURE_NAMES) if lacking >> bit & 1]
    if names:
        right = "a PV kernel that does without" if kernel.notes.phys32_entry is None else 'type="pvh"'
        raise ConfigError(
            f"{kernel.path}: requires {', '.join(names)}, which PV guests do not have; {right} would be right"
        )
