"""The state in which a PV vCPU starts: the builder's for the first, VCPUOP_initialise's for the others.

Ref: xen/include/public/arch-x86/xen.h, struct vcpu_guest_context
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from xenpy.domain.pv.bounce import RFLAGS_IF
from xenpy.domain.pv.state import PvState, flat
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.callback import CALLBACKTYPE
from xenpy.hypercalls.descriptors import check_ldt, ldt_frames
from xenpy.kvm.constants import Sync
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.paging import PTE_FRAME, is_canonical
from xenpy.pv.shared_info import LEGACY_MAX_VCPUS
from xenpy.shim.layout import Selector

if TYPE_CHECKING:
    from xenpy.builder.pv import PvStart

_VGCF_in_kernel: Final = 1 << 2
_VGCF_failsafe_disables_events: Final = 1 << 3
_VGCF_syscall_disables_events: Final = 1 << 4
_VGCF_online: Final = 1 << 5
_GPRS: Final = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "rip", "rsp",
)  # fmt: skip
_ADDRESSES: Final = (
    "kernel_sp", "fs_base", "gs_base_kernel", "gs_base_user", "event_callback_eip", "syscall_callback_eip", "failsafe_callback_eip",
)  # fmt: skip
"""What must be canonical of a context, beside RIP, RSP and handlers."""
_ENTRIES_PER_PAGE: Final = 512
_GDT_ENTRIES_MAX: Final = 14 * _ENTRIES_PER_PAGE


def _check(context: Any) -> None:
    """Raise XenError(EINVAL) for a context that cannot be loaded, whatever its tables."""
    if context.gdt_ents > _GDT_ENTRIES_MAX:
        raise XenError(Errno.EINVAL, f"{context.gdt_ents} GDT entries")
    check_ldt(int(context.ldt_base), int(context.ldt_ents))
    addresses = [getattr(context, name) for name in _ADDRESSES]
    addresses += [context.user_regs.rip, context.user_regs.rsp, *(trap.address for trap in context.trap_ctxt)]
    for gva in addresses:
        if not is_canonical(gva):
            raise XenError(Errno.EINVAL, f"{gva:#x} is no address")


class Contexts(PvState):
    """A PV vCPU that can be started."""

    _context: Any = None

    def set_ring3(self) -> None:
        """Have KVM's registers be those of ring 3."""
        sregs = self.kvm.sregs
        flat(sregs.cs, self.cs, 11, 3, long=True)
        flat(sregs.ss, self.ss, 3, 3, long=False)
        self.kvm.dirty(Sync.SREGS | Sync.REGS)

    def start_first(self, start: PvStart) -> None:
        """Start the first vCPU as its kernel's builder says."""
        mmu = self.domain.mmu
        mmu.take_base(start.pt_base_mfn, kernel=True)
        self.kernel_l4 = start.pt_base_mfn
        self.note_held()
        self.set_kernel_stack(Selector.RING3_SS, start.stack)
        regs = self.kvm.regs
        regs.rip, regs.rsi, regs.rsp, regs.rflags = start.entry, start.start_info, start.stack, RFLAGS_IF | 2
        self.kvm.sregs.cr3 = self.kernel_l4 << PAGE_SHIFT
        self.domain.shim.set_caller(0, 0)
        self.set_ring3()

    # -- VCPUOP_initialise --------------------------------------------------------------------------------------------

    def initialise(self, context: Any) -> None:
        """Take struct vcpu_guest_context. Raises XenError: EEXIST if the vCPU has been initialised, EINVAL, and what its tables deserve."""
        if self._started:
            raise XenError(Errno.EEXIST, f"vCPU {self.vcpu_id} has been initialised already")
        _check(context)  # all that may be refused, before anything is held
        mmu = self.domain.mmu
        if not context.flags & _VGCF_in_kernel and not context.ctrlreg[1]:
            raise XenError(Errno.EINVAL, "user mode without page tables")
        if self.vcpu_id >= LEGACY_MAX_VCPUS and self.domain.shared_info.vcpu_info[self.vcpu_id].gpa is None:
            raise XenError(Errno.EINVAL, f"vCPU {self.vcpu_id} has no vcpu_info")
        frames = [int(context.gdt_frames[page]) for page in range(-(-context.gdt_ents // _ENTRIES_PER_PAGE))]
        kernel_l4, user_l4 = ((int(context.ctrlreg[number]) & PTE_FRAME) >> PAGE_SHIFT for number in (3, 1))
        tables = mmu.tables_of(self.vcpu_id)
        tables.replace_gdt(frames)
        try:
            mmu.take_base(kernel_l4, kernel=True)
        except XenError:
            tables.clear()
            raise
        try:
            if user_l4:
                mmu.take_base(user_l4, kernel=False)
        except XenError:
            mmu.drop_base(kernel_l4, kernel=True)
            tables.clear()
            raise
        self.kernel_l4, self.user_l4 = kernel_l4, user_l4
        self.note_held()
        self._load_context(context, tuple(frames))
        self._started = True
        if context.flags & _VGCF_online:
            self.up()

    def _load_context(self, context: Any, gdt: tuple[int, ...]) -> None:
        regs, sregs = self.kvm.regs, self.kvm.sregs
        for name in _GPRS:
            setattr(regs, name, getattr(context.user_regs, name))
        regs.rflags = context.user_regs.rflags & ~(3 << 12) | RFLAGS_IF | 2
        self.iopl = context.user_regs.rflags >> 12 & 3
        self.in_kernel = bool(context.flags & _VGCF_in_kernel)
        self.cs, self.ss = context.user_regs.cs | 3, context.user_regs.ss | 3
        self.set_kernel_stack(context.kernel_ss, context.kernel_sp)
        for number, trap in enumerate(context.trap_ctxt):
            if trap.address:
                self.set_trap(number, trap.flags, trap.cs, trap.address)
        for type_, gva, masks in (
            (CALLBACKTYPE.event, context.event_callback_eip, True),
            (CALLBACKTYPE.failsafe, context.failsafe_callback_eip, context.flags & _VGCF_failsafe_disables_events),
            (CALLBACKTYPE.syscall, context.syscall_callback_eip, context.flags & _VGCF_syscall_disables_events),
        ):
            if gva:
                self.register_callback(type_, int(bool(masks)), gva)
        sregs.fs.base = context.fs_base
        bases = context.gs_base_kernel, context.gs_base_user
        self.gs_base, self.other_gs = bases if self.in_kernel else bases[::-1]
        sregs.cr3 = self.kernel_l4 << PAGE_SHIFT
        self.set_ring3()
        self.set_gdt(gdt, int(context.gdt_ents))
        ldt = int(context.ldt_base), int(context.ldt_ents)
        self.domain.mmu.tables_of(self.vcpu_id).replace_ldt(ldt_frames(self.translate, *ldt))
        self.set_ldt(*ldt)
        for number in (0, 1, 2, 3, 6, 7):
            with suppress(XenError):  # a value that cannot be is left out, as by Xen
                self.set_debugreg(number, int(context.debugreg[number]))

    def up(self) -> None:
        """Bring the vCPU online. Raises XenError(EINVAL) if it was never initialised."""
        if not self._started:
            raise XenError(Errno.EINVAL, f"vCPU {self.vcpu_id} is not initialised")
        self._set_online(True)
        self.kick()

    def down(self) -> None:
        """Take the vCPU offline, the calling one when its hypercall has returned."""
        self._set_online(False)
        self.kick()
