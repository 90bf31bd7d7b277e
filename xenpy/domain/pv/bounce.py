"""Calling a PV kernel: exceptions, system calls and events as frames on its stack, and IRET back.

Ref: xen-doc pv guest guide, pv-traps; xen/include/public/arch-x86/xen-x86_64.h, struct iret_context
"""

from __future__ import annotations

import time
from struct import pack, unpack
from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import End, Ending
from xenpy.domain.pv.debug import RFLAGS_TF, Debugged
from xenpy.domain.pv.returns import refusal
from xenpy.domain.vcpu import DomainDying
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.callback import CALLBACKTYPE
from xenpy.kvm.constants import Sync
from xenpy.memory import PAGE_SIZE
from xenpy.shim.layout import Selector, State

if TYPE_CHECKING:
    from xenpy.domain.pv.state import Trap

RFLAGS_IF: Final = 1 << 9
RFLAGS_DF: Final = 1 << 10
RFLAGS_IOPL_SHIFT: Final = 12
_RFLAGS_IOPL: Final = 3 << RFLAGS_IOPL_SHIFT
_RFLAGS_CLEARED: Final = RFLAGS_TF | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 18
"""TF, NT, RF, VM, AC: what a handler starts without."""
_IRET_WORDS: Final = 9
VGCF_in_syscall: Final = 1 << 8
VMASST_architectural_iopl: Final = 1 << 4
_NMI: Final = 2
_RETRY_NS: Final = 500_000
"""How long until an event is tried again that found the vCPU within the shim."""
WITH_ERROR: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21, 29, 30})
"""Vectors that come with an error code. Ref: AMD64 APM volume 2, section 8.2"""


class Bounces(Debugged):
    """A PV vCPU that can call its kernel."""

    within_shim = False
    """Whether RIP is within the shim although registers have been changed."""
    _replaced: bool
    """Whether the hypercall in progress has replaced the registers, so that its result has no place."""

    def _to_kernel(self) -> None:
        """Leave user mode."""
        if not self.in_kernel:
            self.in_kernel = True
            self._swap_gs()

    def _swap_gs(self) -> None:
        sregs = self.kvm.sregs
        sregs.gs.base, self.other_gs = self.other_gs, sregs.gs.base
        self.kvm.run.kvm_dirty_regs |= Sync.SREGS

    def bounce(self, handler: int, *, masks_events: bool, error: int | None = None, extra: bytes = b"") -> None:
        """Call the kernel at a handler. Ends the domain if its stack is not there."""
        regs = self.kvm.regs
        info = self.domain.shared_info.vcpu_info[self.vcpu_id]
        masked = info.upcall_mask
        cs = self.cs & ~3 if self.in_kernel else self.cs
        stack = regs.rsp if self.in_kernel else self.kernel_sp
        rflags = regs.rflags & ~(RFLAGS_IF | _RFLAGS_IOPL)
        if self.step_from is not None and not self._own_tf:
            rflags &= ~RFLAGS_TF  # a debugger's
        if not masked:
            rflags |= RFLAGS_IF
        if self.domain.vm_assist & VMASST_architectural_iopl:
            rflags |= self.iopl << RFLAGS_IOPL_SHIFT
        frame = pack("<QQ", regs.rcx, regs.r11) + extra
        if error is not None:
            frame += pack("<Q", error)
        frame += pack("<QQQQQ", regs.rip, cs | masked << 32, rflags, regs.rsp, self.ss)
        stack = (stack & ~15) - len(frame)
        self._to_kernel()
        try:
            if not handler:
                raise XenError(Errno.EFAULT, "there is no handler")
            self._write_stack(stack, frame)
        except XenError as problem:
            self._in_guest = False  # nobody is to wait for us with the lock
            where = f"rip {regs.rip:#x}, stack {stack:#x}, handler {handler:#x}"
            self.domain.end(Ending(End.CRASH, f"its kernel cannot be called: {problem.reason} ({where})"))
            raise DomainDying from None
        if masks_events:
            info.upcall_mask = True
        regs.rsp, regs.rip = stack, handler
        regs.rflags &= ~_RFLAGS_CLEARED
        self.cs, self.ss = Selector.RING3_CS64, Selector.RING3_SS
        self.kvm.run.kvm_dirty_regs |= Sync.REGS

    def _write_stack(self, gva: int, data: bytes) -> None:
        first = min(len(data), PAGE_SIZE - gva % PAGE_SIZE)
        self.domain.memory.write(self.translate(gva, write=True), data[:first])
        if first < len(data):
            self.domain.memory.write(self.translate(gva + first, write=True), data[first:])

    def raise_trap(self, vector: int, error: int | None = None) -> None:
        """Give the guest an exception."""
        trap: Trap | None = self.traps[vector]
        if trap is None:
            regs = self.kvm.regs
            detail = f"exception {vector}, error code {error or 0:#x}, without a handler at rip {int(regs.rip):#x}"
            self.domain.end(Ending(End.CRASH, detail))
            raise DomainDying
        self.bounce(trap.gva, masks_events=trap.masks_events, error=error)

    def _retry_soon(self) -> None:
        """Have a kick come when the guest is likely to have left the shim, but not before: a timer that is due must wait as well.

        An earlier kick would find the vCPU where it is now, again and again. One that comes no later is left alone: a guest that leaves
        us no other time to look, by one access after another to what is not there, would put it off for ever.
        """
        now = time.monotonic_ns()
        if not now < self._kick_at <= now + _RETRY_NS:
            self.kick_after(_RETRY_NS)

    # -- events -------------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """Call the kernel for an NMI or an event that waits, if it wants to be called."""
        if self.within_shim:
            # What is in a window must not be preempted: the kernel might go on with it on another processor.
            self.within_shim = False
            self._retry_soon()
            return
        if self.step_from is not None:
            return  # one instruction, before any of a handler's
        if self.nmi_pending and not self.nmi_masked:
            callback = self.callbacks.get(CALLBACKTYPE.nmi)
            trap = self.traps[_NMI]
            handler = callback.gva if callback else trap.gva if trap else 0
            self.nmi_pending = False
            if handler:
                self.nmi_masked = True
                self.bounce(handler, masks_events=True)
        self._words[State.SLOW] = (
            self.nmi_masked or self.nmi_pending or self.domain.vm_assist & VMASST_architectural_iopl
        )
        view = self.domain.shared_info.vcpu_info[self.vcpu_id].view
        if view[0] and not view[1]:
            event = self.callbacks.get(CALLBACKTYPE.event)
            if event is not None:
                self.bounce(event.gva, masks_events=True)

    # -- system calls -------------------------------------------------------------------------------------------------

    def enter_syscall(self, type_: CALLBACKTYPE) -> bool:
        """Call the kernel for a system call; tell whether it has an entry point for that."""
        callback = self.callbacks.get(type_)
        if callback is None or not callback.gva:
            return False
        self.kvm.regs.rflags &= ~RFLAGS_DF
        self.bounce(callback.gva, masks_events=callback.masks_events)
        return True

    # -- going back ---------------------------------------------------------------------------------------------------

    def iret(self) -> None:
        """Go where the frame on the kernel's stack says."""
        regs = self.kvm.regs
        gva = regs.rsp
        size = _IRET_WORDS * 8
        first = min(size, PAGE_SIZE - gva % PAGE_SIZE)
        try:
            data = self.domain.memory.read(self.translate(gva), first)
            if first < size:
                data += self.domain.memory.read(self.translate(gva + first), size - first)
        except XenError as problem:
            self.domain.end(Ending(End.CRASH, f"iret: {problem.reason}"))
            raise DomainDying from None
        rax, r11, rcx, flags, rip, cs, rflags, rsp, ss = unpack("<9Q", data)
        if cs & 3 == 3:
            if not self.user_l4:
                self.domain.end(Ending(End.CRASH, "iret to user mode, which has no page tables"))
                raise DomainDying
            self.in_kernel = False
            self._swap_gs()
        # By SYSRET, where the kernel says that it answers a system call: it takes RIP and RFLAGS from these two.
        regs.r11, regs.rcx = (rflags, rip) if flags & VGCF_in_syscall else (r11, rcx)
        regs.rax, regs.rip, regs.rsp = rax, rip, rsp
        self.cs, self.ss = cs & 0xFFFF | 3, ss & 0xFFFF | 3
        self.iopl_of_frame(rflags)
        regs.rflags = rflags & ~_RFLAGS_IOPL | RFLAGS_IF
        self.nmi_masked = False
        self.domain.shared_info.vcpu_info[self.vcpu_id].upcall_mask = not rflags & RFLAGS_IF
        self._replaced = True
        refused = refusal(self.descriptor, self.cs, self.ss, rip)
        if refused is not None:
            self.on_bad_iret(*refused)
        elif not self.in_kernel and self.domain.shim.code.fast is not None:
            if self.is_code64(self.cs):
                self._words[State.USER_CS64], self._words[State.USER_SS] = self.cs, self.ss
            else:
                self.load_data_segments()

    def on_bad_iret(self, vector: int, error: int) -> None:
        """Give the guest the exception of an IRET whose frame is in the registers, as that of the instruction it was to go to.

        So does Xen. Its failsafe callback is for data segments that it cannot reload when it switches vCPUs; KVM does not reload them.
        """
        self.raise_trap(vector, error if vector in WITH_ERROR else None)

    def iopl_of_frame(self, rflags: int) -> None:
        """Take the virtual IOPL from a frame, where the guest asked for that."""
        if self.domain.vm_assist & VMASST_architectural_iopl:
            self.iopl = rflags >> RFLAGS_IOPL_SHIFT & 3
