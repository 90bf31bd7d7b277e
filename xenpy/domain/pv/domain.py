"""A PV domain.

Ref: xen/include/public/xen.h, "Start-of-day memory layout"
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy.builder.pv import build_pv, fill_m2p, set_event_channels
from xenpy.builder.pv_patch import make_patches
from xenpy.builder.pv_stubs import pv_hypercall_page
from xenpy.domain.domain import Domain
from xenpy.domain.ending import End, Ending
from xenpy.domain.inguest import InGuest
from xenpy.domain.pv.cpuid import CpuidTable, policy, xcr0
from xenpy.domain.pv.granted import GrantedPages
from xenpy.domain.pv.processor import set_up_processor
from xenpy.domain.pv.vcpu import PvVcpu
from xenpy.errors import Errno, XenError
from xenpy.kvm.constants import Cap
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.emulate import MACH2PHYS, Ports
from xenpy.pv.mmu.entries import XEN_SLOTS
from xenpy.pv.mmu.layout import OWNED, FrameType, refs_of, type_name, type_of
from xenpy.pv.mmu.mmu import Mmu
from xenpy.pv.mmu.protocols import Mappable
from xenpy.pv.shared_info import LEGACY_MAX_VCPUS, VCPU_INFO_SIZE
from xenpy.shim.layout import State
from xenpy.shim.memory import Shim

if TYPE_CHECKING:
    from xenpy.builder.kernel import KernelImage
    from xenpy.builder.pv import PvStart
    from xenpy.domain.pv.tables import Tables

BASE_MFN: Final = 1 << 20
"""The first of the guest's frames: above 4 GiB, out of the way of all that is special below."""
POOL_GPA: Final = 0x2000_0000
"""Where the hypervisor's own pages are that a guest may map."""
SHIM_GPA: Final = 0x4000_0000
_E820_RAM: Final = 1
_FIRST_TAKEN: Final = 40 << 20
"""How much memory behind the initial mapping a Linux takes until init, in bytes."""
_NOTED_FRACTION: Final = 32
"""What part of RAM at its end: struct page, twice as much as that is, for the page tables and hash tables beside it."""


class PvDomain(Domain):
    """A PV domain."""

    is_pv = True
    shim_patch = True
    """Whether the kernel's hypercalls may be made calls of in-guest code."""
    shim_fast = True
    """Whether in-guest code may carry out hypercalls by itself; to be set before the domain is built."""

    def _build(self) -> None:
        config = self.config
        self.pv_vcpus: list[PvVcpu] = []
        self.writer: Tables | None = None
        """The vCPU whose hypercall or fault is being dealt with."""
        self._make_vm(Cap.VCPU_EVENTS)
        self._make_state(lambda frame: self.frame_mfn(frame.offset))
        self.memory.add_frames(POOL_GPA, self.frames)
        self._fill_memory()
        state = self.shim.windows[0].state
        self.ports = Ports(self.clock.now, state[State.PCI_ADDRESS : State.PCI_ADDRESS + 1])
        host_leaves = self.host.kvm.supported_cpuid()
        for vcpu_id in range(config.maxvcpus):
            vcpu = PvVcpu(self, vcpu_id)
            entries = policy(host_leaves, self.version, self.domid, vcpu_id, vcpu.kvm.tsc_khz())
            vcpu.kvm.set_cpuid(entries)
            if not vcpu_id:
                self.cpuid_table = CpuidTable(entries)
                has_xsave = self.cpuid_table.ask(1, 0)[2] >> 26 & 1
                self.xcr0 = xcr0(host_leaves) if has_xsave else 0
            if self.xcr0:
                vcpu.kvm.set_xcr0(self.xcr0)
            set_up_processor(vcpu.kvm, self.shim, vcpu.window, xsave=bool(self.xcr0))
            self._vcpus.append(vcpu)
            self.pv_vcpus.append(vcpu)
        if self.shim.code.fast or self.shim.code.fast0:
            self.in_guest = InGuest(self, self.shim.windows)
        self._begin()
        self.mmu.types.flush = self.flush_all
        self.gnttab.use_mapper(partial(GrantedPages, self))
        for writer in (self.gnttab, self.evtchn):
            writer.guard_writes(self.mmu.hold_writable, self.mmu.release_writable)
        self.shared_info_placed(self.shared_info_mfn)

    def _fill_memory(self) -> None:
        """Have in memory what the guest starts with."""
        for info in self.shared_info.vcpu_info:
            info.upcall_mask = True
        self._load_kernel()
        self._set_max_pages()
        self.write_wallclock()

    def _begin(self) -> None:
        """Have the vCPUs stand where the guest starts."""
        self.pv_vcpus[0].start_first(self._start)

    def _load_kernel(self) -> None:
        from xenpy.builder.kernel import load_kernel

        config, memory = self.config, self.memory
        size = config.maxmem_mib << 20
        pages = size >> PAGE_SHIFT
        self._make_shim(pages)
        with load_kernel(config.kernel) as kernel:
            start = build_pv(
                memory, kernel, base_mfn=BASE_MFN, size=size, shared_info_mfn=self.shared_info_mfn,
                nr_pages=(config.memory_mib << 20) >> PAGE_SHIFT, cmdline=config.cmdline, ramdisk=config.ramdisk,
            )  # fmt: skip
            self._patch(kernel)
        if start.hypercall_page_gpa is not None:
            memory.write(start.hypercall_page_gpa, pv_hypercall_page())
        self._start = start
        if self.touches:
            self._prefault(start)
        self._make_mmu(pages)
        fill_m2p(self.m2p[: BASE_MFN + pages], BASE_MFN, start.nr_pages)
        self.mmu.adopt(start.tables, start.pt_base_mfn, start.nr_pages)
        self.store_gfn, self.console_gfn = start.store_mfn, start.console_mfn
        for mfn in (self.store_gfn, self.console_gfn):
            self.mmu.hold_writable(mfn)  # we write to them, so they must not become page tables
        self.e820 = [(0, size, _E820_RAM)]

    def _prefault(self, start: PvStart) -> None:
        """Have the host's memory behind what a Linux touches until init: a sixth of a boot's processor time where KVM shadows page tables.

        There each page that the guest touches is a fault for the host to deal with, unless it finds the memory of eight in a row at once.
        Linux takes memory from the end of the initial mapping on, and keeps what it notes of each frame at the end of RAM.
        """
        size = start.nr_pages << PAGE_SHIFT
        mapped = min(start.mapped_end - start.virt_base, size)
        notes = size // _NOTED_FRACTION & -PAGE_SIZE
        for first, end in ((mapped, min(mapped + _FIRST_TAKEN, size)), (size - notes, size)):
            if first < end:
                self.memory.prefault((BASE_MFN << PAGE_SHIFT) + first, end - first)

    def _make_shim(self, pages: int, *, adopt: bool = False) -> None:
        """Make the shim of a domain of so many pages; with `adopt`, find it in memory."""
        self.shared_info_mfn = self.frame_mfn(self.shared_info.frame.offset)
        traits = self.host.pv_traits()
        self.touches = traits.shadow
        """Whether KVM must be told which entries of page tables we have written."""
        self.shim = Shim(
            self.memory, SHIM_GPA, slot=traits.slot, ring3_entry=traits.ring3_entry, base_mfn=BASE_MFN, nr_pages=pages,
            m2p_entries=BASE_MFN + pages, vcpus=self.config.maxvcpus, version=self.version.number,
            pool=(POOL_GPA, self.frames.size), fast=self.shim_fast, adopt=adopt,
        )  # fmt: skip

    def _make_mmu(self, pages: int) -> None:
        """Make what works on the frame table and the machine-to-physical map of the shim."""
        self.m2p = self.shim.m2p
        first = SHIM_GPA >> PAGE_SHIFT
        self.machphys_mfns = range(first, first + (self.m2p.nbytes >> PAGE_SHIFT), 512)
        self.machphys = (self.shim.m2p_va, self.shim.m2p_va + (BASE_MFN + pages) * 8, BASE_MFN + pages - 1)
        self.mmu = Mmu(
            self.memory, self.shim.frames[:pages], BASE_MFN, self.m2p, store=self._store, mappable=self._mappable,
            fill_hypervisor_slots=self._fill_slots,
        )  # fmt: skip
        self.mmu.frames.on_stuck = self._stuck
        self.shared_info.hold = self._hold_own
        self.ram = range(BASE_MFN << PAGE_SHIFT, BASE_MFN + pages << PAGE_SHIFT)
        """The guest's RAM in the guest-physical space. Its page tables may name what they like, where its kernel can write to them."""

    def _stuck(self, mfn: int) -> None:
        self.end(Ending(End.CRASH, f"it keeps the word of mfn {mfn:#x} in the frame table locked"))

    def _hold_own(self, mfn: int) -> bool:
        """Have a frame of the guest's stay writable memory; tell whether it is that."""
        return mfn << PAGE_SHIFT in self.ram and self.mmu.hold_writable(mfn)

    def _patch(self, kernel: KernelImage) -> None:
        """Have the kernel call in-guest code without SYSCALL, where that can be, and not fault in vain."""
        fast = self.shim.code.fast
        if not (fast or self.shim.code.fast0) or not self.shim_patch:
            return
        offset = (BASE_MFN << PAGE_SHIFT) - (kernel.notes.paddr_offset or 0)
        window = self.shim.windows[0].va
        ways = (window + fast.from_call, window + fast.from_iret) if fast else None
        for patch in make_patches(kernel, ways):
            self.memory.write(patch.paddr + offset, patch.data)

    def frame_mfn(self, offset: int) -> int:
        """Return the mfn by which the guest knows a page of the hypervisor's own."""
        return POOL_GPA + offset >> PAGE_SHIFT

    def set_ports(self, store: int, console: int) -> None:
        """Tell the guest the event channels of its xenstore and console rings."""
        set_event_channels(self.memory, self._start, store, console)

    # -- page tables --------------------------------------------------------------------------------------------------

    def _store(self, gpa: int, value: int) -> None:
        """Write a page table entry: in memory at once, and a touch of it in the guest, which shadow page tables notice."""
        words, index = self.memory.u64, gpa >> 3
        if words[index] == value:
            return
        words[index] = value
        if self.writer is not None:
            self.writer.queue_touch(self.shim.direct(gpa))

    def flush_all(self) -> None:
        """Have no vCPU run on with translations from before."""
        if self.writer is not None:
            self.writer.flush_on(None, None)

    def _mappable(self, mfn: int) -> Mappable:
        """Tell whether the guest may map a frame that is none of its RAM: shared_info and the grant table."""
        first = POOL_GPA >> PAGE_SHIFT
        return Mappable.YES if first <= mfn < first + (self.frames.size >> PAGE_SHIFT) else Mappable.NO

    def _fill_slots(self, mfn: int, kernel: bool) -> None:
        table = mfn << PAGE_SHIFT
        for slot in XEN_SLOTS:
            entry = 0
            if slot == self.shim.slot:
                entry = self.shim.kernel_slot if kernel else self.shim.user_slot
            self._store(table + slot * 8, entry)

    def look_up(self, gva: int, size: int) -> int | None:
        """Return what the machine-to-physical map has for an address that is right where Xen has it; None outside it."""
        index, offset = divmod(gva - MACH2PHYS, 8)
        if not 0 <= index < len(self.m2p) or offset + size > 8:
            return None
        return self.m2p[index] >> 8 * offset & (1 << 8 * size) - 1

    # -- what the base class asks -------------------------------------------------------------------------------------

    def describe_pfn(self, pfn: int) -> str:
        """Say what is behind a frame of the guest's own counting: its machine frame, by the map that Xen keeps, and the use of that."""
        for mfn in range(BASE_MFN, len(self.m2p)):
            if self.m2p[mfn] == pfn:
                word = self.mmu.frames.word(mfn)
                return f"pfn {pfn:#x}: mfn {mfn:#x}, used as {type_name(word)}, {refs_of(word)} references"
        return f"pfn {pfn:#x}: no frame"

    def check_room(self, gfn: int) -> None:
        """Raise XenError(ENOMEM) if a page that another domain gives away cannot be had, as that of a pfn."""
        if self.memory.ram_pages >= self.max_pages or not self.mmu.reservation.has_free:
            raise XenError(Errno.ENOMEM, f"pfn {gfn:#x}: the domain has all the memory that it may have")

    def accept_page(self, gfn: int, data: bytes) -> int:
        """Have such a page where there is room; return its mfn."""
        mfn = self.mmu.reservation.allocate(0)
        assert mfn is not None, "there was to be room"
        self.mmu.write_page(mfn, data)
        self.m2p[mfn] = gfn
        return mfn

    def check_writable(self, gpa: int) -> None:
        """Raise XenError(EPERM) for a page table or a page of descriptors: what is in there is counted."""
        if type_of(self.mmu.frames.word(gpa >> PAGE_SHIFT)) not in (FrameType.NONE, FrameType.WRITABLE):
            raise XenError(Errno.EPERM, f"gpa {gpa:#x} holds a page table or descriptors")

    def is_plain(self, gpa: int) -> bool:
        """Tell whether there is memory of the guest's that is neither a page table nor descriptors."""
        word = self.mmu.frames.word(gpa >> PAGE_SHIFT)
        return bool(word & OWNED) and type_of(word) in (FrameType.NONE, FrameType.WRITABLE)

    def unsupported_hint(self) -> str:
        """Return what to add to the report of an instruction KVM cannot emulate."""
        return ""

    def shared_info_placed(self, gfn: int) -> None:
        """Take note of where shared_info is."""
        self.shared_info_gfn = gfn
        for vcpu in self._vcpus:
            self._show_vcpu_info(vcpu.vcpu_id)
            self.timekeeper.place(vcpu)

    def vcpu_info_placed(self, vcpu_id: int) -> None:
        """Take note that the guest has placed a vCPU's vcpu_info."""
        self._show_vcpu_info(vcpu_id)
        self.timekeeper.place(self._vcpus[vcpu_id])

    def _show_vcpu_info(self, vcpu_id: int) -> None:
        """Tell in-guest code where a vCPU's vcpu_info is."""
        info = self.shared_info.vcpu_info[vcpu_id]
        if info.gpa is not None:
            gva = self.shim.direct(info.gpa)
        elif vcpu_id < LEGACY_MAX_VCPUS:
            gva = self.shim.pool_va + self.shared_info.frame.offset + vcpu_id * VCPU_INFO_SIZE
        else:
            gva = 0
        self.shim.windows[vcpu_id].state[State.VCPU_INFO] = gva

    def callback_changed(self) -> None:
        """Do nothing: HVM_PARAM_CALLBACK_IRQ is for HVM guests."""
