"""The shim's memory: its page tables, the windows, the machine-to-physical map and the frame table."""

from __future__ import annotations

from array import array
from struct import pack, pack_into
from typing import TYPE_CHECKING, Final

from xenpy.errors import ConfigError, HostError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    PTE_USER,
)
from xenpy.shim.code import STUB_SIZE, VECTORS, Code, Guest, assemble
from xenpy.shim.layout import (
    CODE_PAGES,
    DEBUG_STACK_SIZE,
    DIRECT_OFFSET,
    DIRECT_SIZE,
    FRAMES_MAX,
    FRAMES_OFFSET,
    GDT_GUEST_PAGES,
    IO_PORTS,
    M2P_MAX,
    POOL_OFFSET,
    RECORDS_PAGES,
    WINDOW_SIZE,
    WINDOWS_OFFSET,
    Page,
    Selector,
    State,
    slot_base,
)

if TYPE_CHECKING:
    from xenpy.memory import GuestMemory

_HUGE: Final = 2 << 20
_ENTRIES: Final = 512
_TABLE: Final = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED
_LEAF: Final = PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY
_INVALID: Final = b"\xff"
_TSS_SIZE: Final = 104
_TSS_RSP0: Final = 4
_TSS_IST1: Final = 36
_TSS_IO_MAP: Final = 102
_GATE: Final = 0x8E
"""A present interrupt gate. Ref: AMD64 APM volume 2, section 4.8"""
_GATE_DPL_SHIFT: Final = 5
_DESCRIPTORS: Final = {
    Selector.RING0_CS: 0x00AF_9B00_0000_FFFF,
    Selector.RING0_SS: 0x00CF_9300_0000_FFFF,
    Selector.RING3_CS32: 0x00CF_FB00_0000_FFFF,
    Selector.RING3_SS: 0x00CF_F300_0000_FFFF,
    Selector.RING3_CS64: 0x00AF_FB00_0000_FFFF,
}
"""Flat segments, marked accessed. Ref: AMD64 APM volume 2, section 4.8"""


class Window:
    """One vCPU's window: the pages that ring 0 needs, and those by which in-guest code and we talk."""

    def __init__(self, memory: GuestMemory, va: int, pages: dict[int, int]) -> None:
        self.va = va
        self._memory = memory
        self._pages = pages
        self.state = memory.view(pages[Page.STATE], PAGE_SIZE).cast("Q")
        """The words of State."""
        self.stack = memory.view(pages[Page.STACK], PAGE_SIZE).cast("Q")
        self.stack_top = va + (Page.STACK + 1) * PAGE_SIZE
        writes = pages[Page.WRITES]
        self.writes = memory.view(writes, (Page.KERNEL_TABLE - Page.WRITES) * PAGE_SIZE).cast("Q")
        self.records = memory.view(pages[Page.RECORDS], RECORDS_PAGES * PAGE_SIZE)

    def page_va(self, page: int) -> int:
        """Return the address of a page of the window."""
        return self.va + page * PAGE_SIZE

    def gpa(self, page: int) -> int:
        """Return the guest-physical address of a page of the window."""
        return self._pages[page]

    def descriptor_entry(self, page: int, mfn: int) -> int:
        """Return the page table entry by which a window shows a page of descriptors; mfn 0 is none of the guest's."""
        if not mfn:
            return 0 if page >= Page.LDT else self._pages[page] | _LEAF | PTE_RW | PTE_NX
        return mfn << PAGE_SHIFT | _LEAF | PTE_RW | PTE_NX

    def set_gate(self, vector: int, handler: int, dpl: int, *, user: bool, ist: int = 0) -> None:
        """Have a vector enter ring 0 at an address, from the kernel or from user mode; INT n needs a privilege of at least `dpl`.

        `ist` is the number of a stack of its own in the TSS.
        """
        gate = pack(
            "<HHBBHII",
            handler & 0xFFFF,
            Selector.RING0_CS,
            ist,
            _GATE | dpl << _GATE_DPL_SHIFT,
            handler >> 16 & 0xFFFF,
            handler >> 32,
            0,
        )
        self._memory.write(self._pages[Page.USER_IDT if user else Page.IDT] + vector * 16, gate)

    def set_system_descriptor(self, selector: Selector, type_: int, base: int, limit: int) -> None:
        """Write the 16-byte descriptor of a TSS or an LDT; type 0 makes it a null one."""
        offset = selector - GDT_GUEST_PAGES * PAGE_SIZE
        low = limit & 0xFFFF | (base & 0xFF_FFFF) << 16 | type_ << 40 | (base >> 24 & 0xFF) << 56
        low |= (limit >> 16 & 0xF) << 48
        self._memory.write(self._pages[Page.GDT + GDT_GUEST_PAGES] + offset, pack("<QQ", low, base >> 32))


class Shim:
    """The shim of one domain, in RAM of its own at `gpa` of the guest-physical space.

    `slot` is the level-4 slot it takes; `ring3_entry` tells that SYSCALL's target runs in ring 3 on this host. With `adopt` the memory
    holds it already. Raises ConfigError for a guest too large for the slot, HostError for memory that holds another shim.
    """

    def __init__(
        self,
        memory: GuestMemory,
        gpa: int,
        *,
        slot: int,
        ring3_entry: bool,
        base_mfn: int,
        nr_pages: int,
        m2p_entries: int,
        vcpus: int,
        version: int,
        pool: tuple[int, int],
        fast: bool,
        adopt: bool = False,
    ) -> None:
        if nr_pages > min(FRAMES_MAX, DIRECT_SIZE >> PAGE_SHIFT) or m2p_entries > M2P_MAX:
            limit = min(FRAMES_MAX, M2P_MAX - base_mfn) >> (20 - PAGE_SHIFT)
            raise ConfigError(f"a PV guest may have at most {limit} MiB of memory here")
        self._memory = memory
        self.slot = slot
        self.ring3_entry = ring3_entry
        self.base = slot_base(slot)
        self.m2p_va = self.base
        self.direct_va = self.base + DIRECT_OFFSET
        self._base_gpa = base_mfn << PAGE_SHIFT
        m2p_size, frames_size = (-(-count * 8 // _HUGE) * _HUGE for count in (m2p_entries, nr_pages))
        direct_tables = -(-(nr_pages << PAGE_SHIFT) // (1 << 30))
        pages = 5 + direct_tables + CODE_PAGES + 2 + vcpus * Page.END
        tables_size = -(-pages * PAGE_SIZE // _HUGE) * _HUGE
        self.size = m2p_size + frames_size + tables_size
        self._adopt = adopt
        if not adopt:
            memory.add_ram(gpa, self.size)
        self._next = gpa + m2p_size + frames_size
        self.m2p = memory.view(gpa, m2p_size).cast("Q")
        self.frames = memory.view(gpa + m2p_size, frames_size).cast("Q")
        self.frames_hva = memory.hva(gpa + m2p_size)
        if not adopt:
            memory.view(gpa + base_mfn * 8, nr_pages * 8)[:] = _INVALID * (nr_pages * 8)
        self._kernel_l3, self._user_l3 = self._page(), self._page()
        self._pool = pool
        self._map_tables(gpa, m2p_size, frames_size, direct_tables, nr_pages)
        self.pool_va = self.base + POOL_OFFSET
        self._vcpus = vcpus
        first = self.base + WINDOWS_OFFSET
        guest = Guest(
            first, first + Page.STATE * PAGE_SIZE, first + Page.ENTRY * PAGE_SIZE, self.base + FRAMES_OFFSET, self.direct_va,
            base_mfn, nr_pages, self._base_gpa, self._base_gpa + (nr_pages << PAGE_SHIFT), vcpus, version, ring3_entry,
        )  # fmt: skip
        self.code: Code = assemble(guest, fast=fast)
        self.windows = self._make_windows(vcpus)
        for vcpu_id in range(0 if adopt else vcpus):
            self.set_caller(vcpu_id, _NO_BASE)

    @property
    def kernel_slot(self) -> int:
        """The level-4 entry of tables that a kernel runs on."""
        return self._kernel_l3 | _TABLE

    @property
    def user_slot(self) -> int:
        """The level-4 entry of tables that user mode runs on."""
        return self._user_l3 | _TABLE

    @property
    def tss_limit(self) -> int:
        """The limit of the TSS, with its port map."""
        return TSS_LIMIT

    def has(self, gva: int) -> bool:
        """Tell whether an address is in a window, this vCPU's or another's: calls come by the first one's code."""
        return 0 <= gva - self.base - WINDOWS_OFFSET < self._vcpus * WINDOW_SIZE

    def direct(self, gpa: int) -> int:
        """Return where in-guest code finds a page of the guest's RAM."""
        return self.direct_va + gpa - self._base_gpa

    # -- building -----------------------------------------------------------------------------------------------------

    def _page(self) -> int:
        gpa = self._next
        self._next += PAGE_SIZE
        return gpa

    def _set(self, table: int, index: int, entry: int) -> None:
        if not self._adopt:
            self._memory.u64[(table >> 3) + index] = entry

    def _place_code(self, gpa: int, code: bytes) -> None:
        if not self._adopt:
            self._memory.write(gpa, code)
        elif self._memory.read(gpa, len(code)) != code:
            raise HostError("the guest was saved by another version of xenpy: it holds other in-guest code")

    def _map_tables(self, gpa: int, m2p_size: int, frames_size: int, direct_tables: int, nr_pages: int) -> None:
        ring3 = PTE_USER if self.ring3_entry else 0
        maps = self._page()
        self._set(self._kernel_l3, 0, maps | _TABLE)
        for index in range(m2p_size // _HUGE):
            self._set(maps, index, gpa + index * _HUGE | _LEAF | PTE_USER | PTE_PSE | PTE_NX)
        for index in range(self._pool[1] // _HUGE):
            entry = self._pool[0] + index * _HUGE | _LEAF | PTE_RW | ring3 | PTE_PSE | PTE_NX
            self._set(maps, POOL_OFFSET // _HUGE + index, entry)
        first = FRAMES_OFFSET // _HUGE
        for index in range(frames_size // _HUGE):
            entry = gpa + m2p_size + index * _HUGE | _LEAF | PTE_RW | ring3 | PTE_PSE | PTE_NX
            self._set(maps, first + index, entry)
        size = nr_pages << PAGE_SHIFT
        for gigabyte in range(direct_tables):
            table = self._page()
            self._set(self._kernel_l3, (DIRECT_OFFSET >> 30) + gigabyte, table | _TABLE)
            for index in range(min(_ENTRIES, -(-(size - (gigabyte << 30)) // _HUGE))):
                offset = (gigabyte << 30) + index * _HUGE
                self._set(table, index, self._base_gpa + offset | _LEAF | PTE_RW | ring3 | PTE_PSE | PTE_NX)

    def _make_windows(self, vcpus: int) -> list[Window]:
        code = [self._page() for _ in range(CODE_PAGES)]
        for index, gpa in enumerate(code):
            self._place_code(gpa, self.code.ring0[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
        kernel_entry, user_entry = self._page(), self._page()
        self._place_code(kernel_entry, self.code.kernel_entry)
        self._place_code(user_entry, self.code.user_entry)
        tables = self._page(), self._page()
        for l3, l2 in zip((self._kernel_l3, self._user_l3), tables, strict=True):
            self._set(l3, WINDOWS_OFFSET >> 30, l2 | _TABLE)
        return [self._make_window(vcpu_id, tables, code, (kernel_entry, user_entry)) for vcpu_id in range(vcpus)]

    def _make_window(self, vcpu_id: int, tables: tuple[int, int], code: list[int], entry: tuple[int, int]) -> Window:
        own = [*range(Page.ENTRY), *range(Page.WRITES, Page.USER_IDT + 1)]
        own += range(Page.RECORDS, Page.RECORDS + RECORDS_PAGES)
        if not vcpu_id:
            own.append(Page.CALLERS)
        pages = {page: self._page() for page in own}
        kernel_table, user_table = pages[Page.KERNEL_TABLE], pages[Page.USER_TABLE]
        self._set(tables[0], vcpu_id, kernel_table | _TABLE)
        self._set(tables[1], vcpu_id, user_table | _TABLE)
        ring3 = PTE_USER if self.ring3_entry else 0
        for page, gpa in pages.items():
            entry_ = gpa | _LEAF | PTE_RW | PTE_NX
            shared = page in (Page.STACK, Page.STATE, Page.CALLERS) or Page.WRITES <= page < Page.KERNEL_TABLE
            shared = shared or Page.RECORDS <= page < Page.RECORDS + RECORDS_PAGES
            self._set(kernel_table, page, entry_ | ring3 if shared else entry_)
            if page < Page.WRITES:
                self._set(user_table, page, entry_)
        self._set(user_table, Page.IDT, pages[Page.USER_IDT] | _LEAF | PTE_RW | PTE_NX)
        for index, gpa in enumerate(code):
            self._set(kernel_table, Page.CODE + index, gpa | _LEAF | ring3)
            self._set(user_table, Page.CODE + index, gpa | _LEAF)
        self._set(kernel_table, Page.ENTRY, entry[0] | _LEAF | ring3)
        self._set(user_table, Page.ENTRY, entry[1] | _LEAF | ring3)
        window = Window(self._memory, self.base + WINDOWS_OFFSET + vcpu_id * WINDOW_SIZE, pages)
        if not self._adopt:
            self._fill_window(window)
        return window

    def _fill_window(self, window: Window) -> None:
        memory = self._memory
        for selector, descriptor in _DESCRIPTORS.items():
            offset = (selector & ~7) - GDT_GUEST_PAGES * PAGE_SIZE
            memory.write(window.gpa(Page.GDT + GDT_GUEST_PAGES) + offset, pack("<Q", descriptor))
        ports = bytearray(b"\xff" * (IO_PORTS.stop // 8 + 1))
        if self.ring3_entry:
            for port in IO_PORTS:
                ports[port // 8] &= ~(1 << port % 8)
        tss = bytearray(_TSS_SIZE)
        pack_into("<Q", tss, _TSS_RSP0, window.stack_top)
        pack_into("<Q", tss, _TSS_IST1, window.page_va(Page.STACK) + DEBUG_STACK_SIZE)
        pack_into("<H", tss, _TSS_IO_MAP, _TSS_SIZE)
        memory.write(window.gpa(Page.TSS), bytes(tss + ports + b"\xff"))
        window.set_system_descriptor(Selector.TSS, TSS_BUSY, window.page_va(Page.TSS), TSS_LIMIT)
        for vector in range(VECTORS):
            self.set_gates(window, vector, 0)
        fast = self.code.fast
        if fast is None:
            return
        window.state[State.SYSCALL_HANDLER] = 0
        frame = window.va + fast.user_fault, Selector.RING3_CS64, _STUB_RFLAGS, window.stack_top, Selector.RING3_SS
        for index, word in enumerate(frame):
            window.state[State.STUB_FRAME + index] = word
        stack = window.page_va(Page.STATE) + PAGE_SIZE
        for index, (_, there) in enumerate(fast.traps.values()):
            stub = State.TRAP_STUBS + index * len(frame)
            words = window.va + there, Selector.RING3_CS64, _STUB_RFLAGS, stack, Selector.RING3_SS
            window.state[stub : stub + len(frame)] = array("Q", words)

    def set_gates(self, window: Window, vector: int, dpl: int, *, fast: bool = True) -> None:
        """Have a vector come to us, or to in-guest code that deals with it; INT n needs a privilege of at least `dpl`."""
        own, own0 = self.code.fast, self.code.fast0
        ist = int(vector == _DB and not self.ring3_entry)
        for user in (False, True):
            handler = window.va + self.code.exceptions + vector * STUB_SIZE
            if own0 is not None and vector == _PF and fast and window.state[State.FAULT_HANDLER]:
                handler = window.va + (own0.pf_user if user else own0.pf_kernel)
            elif own is not None and vector == _BP:
                handler, dpl = window.va + (own.bp_user if user else own.bp_kernel), 3
            elif own is not None and vector == _PF and user and fast and window.state[State.FAULT_HANDLER]:
                handler = window.va + own.pf_user
            elif own is not None and fast and not user and vector in own.traps:
                handler = window.va + own.traps[vector][0]
            window.set_gate(vector, handler, dpl, user=user, ist=ist)

    def set_caller(self, vcpu_id: int, gs_base: int) -> None:
        """Tell by which GS base a kernel's processor is known."""
        own = self.code.fast
        if own is None or vcpu_id * _CALLER_WORDS >= PAGE_SIZE // 8:
            return
        callers = self._memory.view(self.windows[0].gpa(Page.CALLERS), PAGE_SIZE).cast("Q")
        window = self.windows[vcpu_id]
        first = vcpu_id * _CALLER_WORDS
        callers[first : first + 3] = array("Q", [gs_base, window.va + own.hypercall, window.va + own.iret])


_DB, _BP, _PF = 1, 3, 14
_CALLER_WORDS: Final = 4
_NO_BASE: Final = (1 << 64) - 1
"""What no GS base can be."""
_STUB_RFLAGS: Final = 0x202
TSS_BUSY: Final = 0x8B
TSS_LIMIT: Final = _TSS_SIZE + IO_PORTS.stop // 8 + 1
"""The processor reads two bytes of the port map at once, so that one behind the last must be there."""
