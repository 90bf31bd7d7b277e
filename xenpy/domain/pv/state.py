"""The state of a PV vCPU that is Xen's to keep, and what its hypercalls set of it."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xenpy.domain.areas import Area, pages
from xenpy.domain.pv.tables import Tables
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.callback import CALLBACKTYPE, CALLBACKF_mask_events
from xenpy.kvm.constants import Sync
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.entries import is_guest_address
from xenpy.pv.paging import is_canonical
from xenpy.shim.layout import ANY_SUBLEAF, CPUID_LEAVES, GDT_GUEST_PAGES, LDT_PAGES, Page, Selector, State

if TYPE_CHECKING:
    from xenpy.domain.pv.domain import PvDomain

CR0_TS: Final = 1 << 3
_HYPERVISOR_START: Final = 0xFFFF_8000_0000_0000
_HYPERVISOR_END: Final = 0xFFFF_8800_0000_0000
_DR6_DEFAULT: Final = 0xFFFF_0FF0
_DR6_ZERO: Final = 1 << 12
_DR7_DEFAULT: Final = 1 << 10
_DR7_RESERVED: Final = 0xFFFF_FFFF_0000_D800
_DR7_GENERAL_DETECT: Final = 1 << 13
_DB_LAST: Final = 3
_CALLBACKS: Final = frozenset(CALLBACKTYPE) - {CALLBACKTYPE.sysenter_deprecated}
"""Those of 64-bit kernels."""
_PF: Final = 14
_LDT_TYPE: Final = 0x82
_ENTRIES_PER_PAGE: Final = 512
_SELECTOR: Final = 0xFFFF
_CODE64: Final = 1 << 53


class Trap(NamedTuple):
    """A vector's handler."""

    flags: int
    cs: int
    gva: int

    @property
    def dpl(self) -> int:
        """The lowest privilege that may raise the vector by INT."""
        return self.flags & 3

    @property
    def masks_events(self) -> bool:
        """Whether the handler starts with events masked."""
        return bool(self.flags & 4)


class Callback(NamedTuple):
    """An entry point of the kernel."""

    gva: int
    masks_events: bool


def flat(segment: Any, selector: int, type_: int, dpl: int, *, long: bool) -> None:
    """Set a segment register of KVM's to a flat segment: code (of 64 bits if `long`) or data."""
    segment.base, segment.limit, segment.selector = 0, 0xFFFF_FFFF, selector
    segment.type, segment.present, segment.dpl, segment.s = type_, 1, dpl, 1
    segment.l, segment.db, segment.g = int(long), int(not long), 1
    segment.unusable = 0


class PvState(Tables):
    """A PV vCPU, as far as hypercalls set it."""

    def __init__(self, domain: PvDomain, vcpu_id: int, kvm_id: int, sync: Sync) -> None:
        super().__init__(domain, vcpu_id, kvm_id, sync)
        self._words[State.CPUID_COUNT] = self._words[State.NO_LEAF_COUNT] = 0
        self.forget_selectors()
        self.cs: int = Selector.RING3_CS64
        self.ss: int = Selector.RING3_SS
        self.traps: list[Trap | None] = [None] * 256
        self.callbacks: dict[int, Callback] = {}
        self.nmi_pending = False
        self.nmi_masked = False
        self.dr7 = _DR7_DEFAULT
        self.dr6 = _DR6_DEFAULT
        self.tsc_aux = 0

    # -- what in-guest code shares ------------------------------------------------------------------------------------

    def note_cpuid(self, leaf: int, subleaf: int, answer: tuple[int, int, int, int]) -> None:
        """Have in-guest code know an answer of CPUID, while it has room."""
        count = self._words[State.CPUID_COUNT]
        table = self.domain.cpuid_table
        if not count:
            gap = table.hypervisor_gap()
            self._words[State.NO_LEAF], self._words[State.NO_LEAF_COUNT] = gap.start, len(gap)
        if not table.has_subleaves(leaf):
            subleaf = ANY_SUBLEAF
        elif subleaf == ANY_SUBLEAF:
            return
        key = leaf | subleaf << 32
        known = self._words[State.CPUID : State.CPUID + 3 * min(count, CPUID_LEAVES) : 3]
        if count < CPUID_LEAVES and key not in known:
            eax, ebx, ecx, edx = answer
            first = State.CPUID + 3 * count
            self._words[first : first + 3] = array("Q", [key, eax | ebx << 32, ecx | edx << 32])
            self._words[State.CPUID_COUNT] = count + 1

    @property
    def kernel_sp(self) -> int:
        """The stack on which the kernel is entered from user mode."""
        return self._words[State.KERNEL_SP]

    @property
    def other_gs(self) -> int:
        """The GS base of the mode that does not run."""
        return self._words[State.OTHER_GS]

    @other_gs.setter
    def other_gs(self, gva: int) -> None:
        self._words[State.OTHER_GS] = gva
        if not self.in_kernel:
            self.domain.shim.set_caller(self.vcpu_id, gva)

    @property
    def is_up(self) -> bool:
        """Tell whether the vCPU is online."""
        return self._up

    # -- traps and callbacks ------------------------------------------------------------------------------------------

    def clear_traps(self) -> None:
        """Forget all handlers."""
        gone = [vector for vector, trap in enumerate(self.traps) if trap is not None]
        self.traps = [None] * 256
        self._words[State.FAULT_HANDLER] = 0
        for vector in gone:
            self.domain.shim.set_gates(self.window, vector, 0)

    def set_trap(self, vector: int, flags: int, cs: int, gva: int) -> None:
        """Set a vector's handler."""
        trap = Trap(flags, cs, gva)
        self.traps[vector] = trap
        if vector == _PF:
            # Ring 0's SYSRETQ must not meet an address that is none.
            self._words[State.FAULT_HANDLER] = gva if is_canonical(gva) else 0
            self._words[State.FAULT_MASKS] = int(trap.masks_events)
        self.domain.shim.set_gates(self.window, vector, trap.dpl)

    def register_callback(self, type_: int, flags: int, gva: int) -> None:
        """Register an entry point of the kernel. Raises XenError: EINVAL for an address that is none, ENOSYS for an unknown type."""
        if not is_canonical(gva):
            raise XenError(Errno.EINVAL, f"callback at {gva:#x}")
        if type_ not in _CALLBACKS:
            raise XenError(Errno.ENOSYS, f"callback {type_}")
        masks = bool(flags & CALLBACKF_mask_events)
        self.callbacks[type_] = Callback(gva, masks)
        if not gva and type_ in (CALLBACKTYPE.sysenter, CALLBACKTYPE.syscall32):
            del self.callbacks[type_]  # the only way to be without
        if type_ == CALLBACKTYPE.syscall:
            self._words[State.SYSCALL_HANDLER], self._words[State.SYSCALL_MASKS] = gva, int(masks)

    def unregister_callback(self, type_: int) -> None:
        """Forget the entry point for NMIs. Raises XenError: EINVAL for all others, ENOSYS for an unknown type."""
        if type_ not in _CALLBACKS:
            raise XenError(Errno.ENOSYS, f"callback {type_}")
        if type_ != CALLBACKTYPE.nmi:
            raise XenError(Errno.EINVAL, f"callback {type_} cannot be unregistered")
        self.callbacks.pop(type_, None)

    def set_kernel_stack(self, ss: int, sp: int) -> None:
        """Set the stack on which the kernel is entered from user mode."""
        self._words[State.KERNEL_SS], self._words[State.KERNEL_SP] = ss | 3, sp

    def set_upcall_vector(self, vector: int) -> None:
        """Refuse: a PV guest has no LAPIC."""
        raise XenError(Errno.EINVAL, f"upcall vector {vector} in a PV guest")

    def send_nmi(self) -> None:
        """Make an NMI pending."""
        self.nmi_pending = True
        self.kick()

    def block(self) -> None:
        """Unmask events and sleep until one is pending."""
        self.domain.shared_info.vcpu_info[self.vcpu_id].upcall_mask = False
        if not self.event_pending():
            self._blocked = True

    _blocked: bool

    @property
    def is_idle(self) -> bool:
        """Tell whether the guest has nothing to do on this vCPU until an event comes."""
        return self._blocked or not self._up

    @property
    def sleeps(self) -> bool:
        """Tell whether the thread is not in the guest, and has to take the host's lock before it is. Under that lock."""
        return self._polls or self.is_idle

    def is_halted_for_good(self) -> bool:
        """Tell that it does not: a PV guest says when it is done."""
        return False

    def area_at(self, address: int, size: int, *, physical: bool) -> Area:
        """Return an area that the guest registers; what is there is looked up each time that it is written. Raises XenError(EFAULT)."""
        if not physical and not is_guest_address(address):
            raise XenError(Errno.EFAULT, f"an area at {address:#x}")
        if physical:
            self.area_pieces(address, size, physical=True)
        return Area(address, physical)

    def area_pieces(self, address: int, size: int, *, physical: bool) -> list[tuple[int, int]]:
        """Return the (gpa, size) of what an area consists of. Raises XenError(EFAULT) where it is not the guest's to write to."""
        pieces = []
        for start, length in pages(address, size, PAGE_SIZE):
            gpa = start if physical else self.translate(start, write=True)
            if physical and not self.domain.is_plain(gpa):
                raise XenError(Errno.EFAULT, f"an area at gpa {gpa:#x}")
            pieces.append((gpa, length))
        return pieces

    # -- segments -----------------------------------------------------------------------------------------------------

    @property
    def fs_base(self) -> int:
        """The base of FS."""
        return int(self.kvm.sregs.fs.base)

    @fs_base.setter
    def fs_base(self, gva: int) -> None:
        self.kvm.sregs.fs.base = gva
        self.kvm.dirty(Sync.SREGS)

    @property
    def gs_base(self) -> int:
        """The base of GS in the mode that runs."""
        return int(self.kvm.sregs.gs.base)

    @gs_base.setter
    def gs_base(self, gva: int) -> None:
        self.kvm.sregs.gs.base = gva
        self.kvm.dirty(Sync.SREGS)
        if self.in_kernel:
            self.domain.shim.set_caller(self.vcpu_id, gva)

    @property
    def kernel_gs_base(self) -> int:
        """The base that swapgs would bring."""
        return self.other_gs

    @kernel_gs_base.setter
    def kernel_gs_base(self, gva: int) -> None:
        self.other_gs = gva

    def set_base(self, which: int, gva: int) -> None:
        """Set a segment's base: 0 FS, 1 user mode's GS, 2 the kernel's GS."""
        if which == 0:
            self.fs_base = gva
        elif (which == 1) == self.in_kernel:
            self.other_gs = gva
        else:
            self.gs_base = gva

    def load_user_gs(self, selector: int) -> None:
        """Load a selector into the GS of user mode; one that is no good becomes null."""
        gs = self.kvm.sregs.gs
        base = gs.base
        self._load_data_segment(gs, selector)
        self.other_gs, gs.base = gs.base, base

    def load_data_segments(self) -> None:
        """Have KVM know the DS and ES that the kernel has loaded for user mode, where it has not seen that.

        Such hosts forget them when the vCPU's thread changes processors. 32-bit code can do nothing without: then they are as SS is.
        """
        segments = self._words[State.DATA_SEGMENTS]
        self._load_data_segment(self.kvm.sregs.ds, segments & _SELECTOR or self.ss)
        self._load_data_segment(self.kvm.sregs.es, segments >> 16 & _SELECTOR or self.ss)

    def _load_data_segment(self, segment: Any, selector: int) -> None:
        """Load a segment register of KVM's by the descriptor that a selector names, Ref: AMD64 APM volume 2, section 4.8."""
        descriptor = self.descriptor(selector)
        if descriptor >> 47 & 1 and descriptor >> 44 & 1:
            flat(segment, selector, descriptor >> 40 & 0xF, 3, long=False)
            segment.base = descriptor >> 16 & 0xFF_FFFF | (descriptor >> 56 & 0xFF) << 24
            segment.limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF_0000
            segment.g, segment.db = descriptor >> 55 & 1, descriptor >> 54 & 1
            if segment.g:
                segment.limit = segment.limit << PAGE_SHIFT | PAGE_SIZE - 1
        else:
            segment.selector, segment.base, segment.unusable = 0, 0, 1
        self.kvm.dirty(Sync.SREGS)

    def is_code64(self, selector: int) -> bool:
        """Tell whether a selector is one of 64-bit code."""
        if selector in (Selector.RING3_CS64, Selector.RING3_CS32):
            return selector == Selector.RING3_CS64
        return bool(self.descriptor(selector) & _CODE64)

    def descriptor(self, selector: int) -> int:
        """Return the descriptor that a selector names, 0 if there is none."""
        index = selector >> 3
        tables = self.domain.mmu.tables_of(self.vcpu_id)
        frames = tables.ldt if selector & 4 else tables.gdt
        page = index // _ENTRIES_PER_PAGE
        if page == GDT_GUEST_PAGES and not selector & 4:
            gpa = self.window.gpa(Page.GDT + page)  # Xen's own
        elif selector < 4 or page >= len(frames) or not frames[page]:
            return 0
        else:
            gpa = frames[page] << PAGE_SHIFT
        return int(self.domain.memory.u64[(gpa >> 3) + index % _ENTRIES_PER_PAGE])

    def forget_selectors(self) -> None:
        """Have in-guest code leave returns to user mode to us by all selectors but Xen's own, until we have looked at theirs again."""
        self._words[State.USER_CS64], self._words[State.USER_SS] = Selector.RING3_CS64, Selector.RING3_SS

    def set_gdt(self, mfns: tuple[int, ...], entries: int) -> None:
        """Load the guest's part of the GDT."""
        del entries  # what is beyond them is in none of the frames
        self.forget_selectors()
        self._show(Page.GDT, GDT_GUEST_PAGES, mfns)

    def set_ldt(self, gva: int, entries: int) -> None:
        """Load the LDT, which is empty with 0 entries."""
        del gva  # the pages are known by their frames
        mfns = self.domain.mmu.tables_of(self.vcpu_id).ldt
        self.forget_selectors()
        self._show(Page.LDT, LDT_PAGES, mfns)
        limit = entries * 8 - 1
        base = self.window.page_va(Page.LDT)
        self.window.set_system_descriptor(Selector.LDT, _LDT_TYPE if mfns else 0, base, max(limit, 0))
        ldt = self.kvm.sregs.ldt
        ldt.base, ldt.limit, ldt.selector = (base, limit, Selector.LDT) if mfns else (0, 0, 0)
        ldt.type, ldt.present, ldt.unusable, ldt.s, ldt.g = 2, int(bool(mfns)), int(not mfns), 0, 0
        self.kvm.dirty(Sync.SREGS)

    def _show(self, first: int, pages: int, mfns: tuple[int, ...]) -> None:
        """Show frames of descriptors in the window, in both views of it."""
        window, memory = self.window, self.domain.memory
        for index in range(pages):
            entry = window.descriptor_entry(first + index, mfns[index] if index < len(mfns) else 0)
            for table in (Page.KERNEL_TABLE, Page.USER_TABLE):
                memory.u64[(window.gpa(table) >> 3) + first + index] = entry
                self.queue_touch(window.page_va(table) + (first + index) * 8)
        self.flush_tlb()

    # -- processor state ----------------------------------------------------------------------------------------------

    def set_ts(self, value: bool) -> None:
        """Set or clear CR0.TS."""
        sregs = self.kvm.sregs
        sregs.cr0 = sregs.cr0 | CR0_TS if value else sregs.cr0 & ~CR0_TS
        self.kvm.dirty(Sync.SREGS)

    def get_debugreg(self, number: int) -> int:
        """Return a debug register; 4 and 5 are other names of 6 and 7."""
        if number in (4, 6):
            return self.dr6
        if number in (5, 7):
            return self.dr7
        return int(self.kvm.get_debugregs().db[number])

    def set_debugreg(self, number: int, value: int) -> None:
        """Set a debug register. Raises XenError: EPERM for what would be a breakpoint in the hypervisor, EINVAL for what cannot be."""
        if number > _DB_LAST and value >> 32:
            raise XenError(Errno.EINVAL, f"DR{number} {value:#x}")
        if number in (4, 6):
            self.dr6 = value & ~_DR6_ZERO | _DR6_DEFAULT
            return
        registers = self.kvm.get_debugregs()
        if number in (5, 7):
            if value & _DR7_GENERAL_DETECT:
                raise XenError(Errno.EPERM, f"DR7 {value:#x}: accesses to debug registers are the hypervisor's to see")
            self.dr7 = value & ~_DR7_RESERVED | _DR7_DEFAULT
            registers.dr7 = self.dr7
        else:
            if not is_canonical(value) or _HYPERVISOR_START <= value < _HYPERVISOR_END:
                raise XenError(Errno.EPERM, f"breakpoint at {value:#x}")
            registers.db[number] = value
        self.kvm.set_debugregs(registers)
