"""A PV vCPU: its thread's way into the guest and out of it.

The guest's registers are those of KVM while it runs in ring 3. When the processor has come to ring 0, by an exception or a system call,
what ring 3 looked like is in the frame on the shim's stack: it is put back at once, so that `regs`, `cs` and `ss` always tell of the guest,
and `_prepare` finds the way back in: directly where nothing but registers has changed, else by one of the shim's IRETQ routines.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import End, Ending
from xenpy.domain.pv.bounce import WITH_ERROR
from xenpy.domain.pv.context import Contexts
from xenpy.domain.pv.entering import FRAME, RFLAGS_CLEAR, RFLAGS_FIXED, Entering
from xenpy.domain.pv.late import LATEST_NS, LateEvents
from xenpy.domain.vcpu import DomainDying
from xenpy.errors import XenError
from xenpy.kvm.constants import KVM_EXIT_IO_OUT, Exit, Sync
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.emulate.machine import Vector
from xenpy.shim.layout import DEBUG_STACK_SIZE, Page, Port, Selector, State
from xenpy.shim.traps import EMULATED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.domain.pv.domain import PvDomain

_MASK32: Final = 0xFFFF_FFFF
_KICKED: Final = frozenset({-errno.EINTR, -errno.EAGAIN, int(Exit.INTR)})
_TICK_EXITS: Final = 4
"""A timer costs about so many exits like the one by a kick: the kick itself, the guest's setting the next one, its looking for events."""
_FRAME_WORDS: Final = 5
_DEBUG_FRAME: Final = DEBUG_STACK_SIZE // 8 - _FRAME_WORDS
"""Where that of #DB begins, if it has a stack of its own."""
_BAD_VALUE: Final = frozenset({Vector.NP, Vector.SS, Vector.GP, Vector.PF})
"""What the guest's pointers and selectors may raise."""
_CALL_SIZE: Final = 4
"""The bytes that in-guest code writes to a port to call us; it writes one to the port that is an exception's number."""
_RPL: Final = 3
_SELECTOR: Final = 0xFFFF
_EVENT_CHANNEL_OP: Final = 32
_INT3: Final = b"\xcc"
_BREAKPOINT: Final = 3
_AWAITED_MAX: Final = 8
"""So many kicks may find the guest where it may have executed INT3; one that has was interrupted by its exception long before."""


class PvVcpu(Entering, Contexts):
    """A vCPU of a PV domain."""

    def __init__(self, domain: PvDomain, vcpu_id: int) -> None:
        super().__init__(domain, vcpu_id, vcpu_id, Sync.REGS | Sync.SREGS)
        self._blocked = False
        self._busy = False
        """Whether the guest must go on before anything is changed. In-guest code may hold a frame that others wait for, with the lock."""
        self._kicked = False
        self._kicked_at = 0
        """How much the thread had run when a kick made the guest stop, in nanoseconds; 0 when it goes on."""
        self._awaited = 0
        """How many kicks in a row have found it next to an INT3 whose exception has not come."""
        resume = domain.shim.code.resume
        self._code_start, self._code_end = min(resume), max(resume)
        self._late = LateEvents(domain, self._words)
        self._handlers |= {
            Exit.IO: self._on_io,
            Exit.HLT: self._on_halt,
            Exit.MMIO: self._on_mmio,
            Exit.INTR: self._on_kick,
        }

    # -- the loop -----------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        kvm, run, domain, handlers = self.kvm, self.kvm.run, self.domain, self._handlers
        while True:
            if run.immediate_exit:
                kvm.clear_kick()
                self._kicked = True
            if domain.ending is not None:
                return
            if not self._busy:
                self._late.send()
                if self._kicked and not self.within_shim:
                    self._kicked = False
                    self._attend()
                if self._blocked or not self._up:
                    self._sleep()
                    continue
                self._make_ready()
            else:
                self._in_guest = True  # in-guest code may go on to the guest, by translations of before
                if self._kicked or self.flush_wanted:
                    self._retry_soon()  # or nothing would make the guest stop again for what the kick was for
            reason = kvm.enter()
            self.exits += 1
            self._busy = False
            if reason not in _KICKED:
                self._in_guest = False
            handler = handlers.get(reason)
            try:
                if handler is not None:
                    handler()
                elif reason == -errno.EINTR or reason == -errno.EAGAIN:
                    run.immediate_exit = 1
                    self._on_kick()
                else:
                    self._on_unknown(reason)
                if self.step_from is not None:
                    self._look_at_step()
            except DomainDying:
                return

    def _make_ready(self) -> None:
        """Do what comes before the guest is entered."""
        if not self._late.allow(self._kick_at):
            self.kick_after(LATEST_NS)
        self._in_guest = True  # what comes from here on kicks us
        self.deliver()
        self._prepare()
        if self._kicked_at:
            self._timer_cost_ns = _TICK_EXITS * (time.thread_time_ns() - self._kicked_at)
            self._kicked_at = 0

    def _look_at_step(self) -> None:
        """Stop for a debugger if its step has been made, unless the guest is in in-guest code, which is no place to stop at."""
        debugger = self.domain.debugger
        if debugger is not None and not (self._busy or self.within_shim or self.domain.shim.has(self.kvm.regs.rip)):
            self.end_step(debugger)

    def _sleep(self) -> None:
        """Wait for an event, or to be brought up."""
        with self.domain.host.lock:
            self.domain.asleep.notify_all()
            while not (self.kvm.run.immediate_exit or self.domain.ending is not None or self._requests):
                if self._up and not (self._blocked and not self.event_pending()):
                    break
                deadline = self.timers.next_deadline() if self._up else None
                self.wait_until(deadline)
                if self._up:
                    self.timers.expire()
            if self._up and self.event_pending():
                self._blocked = False
            self._kick_at = 0
            self.rearm()

    def settle(self) -> None:
        """Do nothing: events are delivered before each entry."""
        self.retry_at = None

    def upcall(self) -> None:
        """Have the thread look at its events. Under the host's lock, from any thread."""
        self._woken = True
        self._wake.notify_all()
        if self._in_guest:
            self.kvm.kick()

    # -- exits --------------------------------------------------------------------------------------------------------

    def _on_kick(self) -> None:
        """Find out where the guest was interrupted: within the shim it must first go on."""
        self._kicked_at = time.thread_time_ns()
        kvm = self.kvm
        sregs, rip = kvm.sregs, kvm.regs.rip
        if sregs.ss.dpl == 0 or self.domain.shim.has(rip):
            self._busy = True
        else:
            events = kvm.get_events()
            queued = events.exception.injected or events.exception.pending
            self._in_ring3()
            self._busy = bool(queued) or self._awaits_breakpoint(rip)
        self._in_guest = self._busy
        if self._busy:
            self._retry_soon()

    def _awaits_breakpoint(self, rip: int) -> bool:
        """Tell whether the guest is to go on to the exception of an INT3. A loop next to such a byte never gets to one."""
        if not self._near_breakpoint(rip):
            self._awaited = 0
            return False
        self._awaited += 1
        return self._awaited <= _AWAITED_MAX

    def _near_breakpoint(self, rip: int) -> bool:
        """Tell whether the guest may have just executed INT3: KVM does not tell of software exceptions that it still has to deliver."""
        words = self.domain.memory
        for gva in (rip - 1, rip):
            try:
                if words.read(self.translate_any(gva), 1) == _INT3:
                    return True
            except XenError:
                continue
        return False

    def _in_ring3(self) -> None:
        self._ring0 = False
        self.cs, self.ss = self.kvm.sregs.cs.selector, self.kvm.sregs.ss.selector

    def _on_io(self) -> None:
        run, sregs, regs = self.kvm.run, self.kvm.sregs, self.kvm.regs
        io = run.io
        ring0 = sregs.ss.dpl == 0
        rip = regs.rip
        if ring0:
            self._ring0 = True
            if io.size == _CALL_SIZE:
                self.cs, self.ss = Selector.RING3_CS64, Selector.RING3_SS
                self._on_call(io.port)
            else:
                self._take_frame(io.port)
        elif self.domain.shim.has(rip) and io.direction == KVM_EXIT_IO_OUT:
            self._in_ring3()
            self._on_call(io.port)
        else:  # user mode of the guest, through a port that is open for the shim
            self._in_ring3()
            if io.direction != KVM_EXIT_IO_OUT:
                size = io.size * io.count
                self.kvm.page[io.data_offset : io.data_offset + size] = b"\xff" * size
                self._busy = True

    def _take_frame(self, vector: int) -> None:
        """Put the registers of ring 3 back, and deal with the exception that ended it."""
        regs, stack = self.kvm.regs, self.window.stack
        error = 0
        if vector in WITH_ERROR:
            error = stack[FRAME - 1]
        elif vector == _BREAKPOINT:
            self._awaited = 0
        elif vector == Vector.DB and not self.domain.shim.ring3_entry:
            self._take_debug_frame()
            return
        rip, cs = stack[FRAME], stack[FRAME + 1]
        if regs.rsp != self.window.stack_top - 40 - 8 * (vector in WITH_ERROR) or cs & 3 != 3:
            self._nested(vector)
            return
        self.cs = cs
        regs.rip, regs.rflags, regs.rsp = rip, stack[FRAME + 2], stack[FRAME + 3]
        self.ss = stack[FRAME + 4]
        self.kvm.run.kvm_dirty_regs |= Sync.REGS
        fast = self.domain.shim.code.fast
        if fast is not None and self.in_kernel and rip - self.window.va == fast.keep_return:
            # SYSCALL needs no stack, and boot loaders that take their own address space apart have none.
            self.window.state[State.RETURN], regs.rflags = regs.rcx, regs.r11
            self._on_call(Port.HYPERCALL)
            return
        self.on_exception(vector, error)

    def _take_debug_frame(self) -> None:
        """Put back the registers of what #DB has interrupted: ring 3, or in-guest code, which must go on as if nothing had been."""
        regs, frame = self.kvm.regs, self.window.stack[_DEBUG_FRAME : _DEBUG_FRAME + _FRAME_WORDS].tolist()
        regs.rip, cs, regs.rflags, regs.rsp, ss = frame
        self.kvm.run.kvm_dirty_regs |= Sync.REGS
        if cs & _RPL:
            self.cs, self.ss = cs, ss
            self.on_exception(Vector.DB, 0)
        else:
            self._busy = True

    def _nested(self, vector: int) -> None:
        """Deal with an exception in ring 0: of IRETQ, whose frame the guest chose, or at a pointer of its; any other is a bug of ours."""
        regs, memory = self.kvm.regs, self.domain.memory
        errors = vector in WITH_ERROR
        offset = int(regs.rsp) - self.window.page_va(Page.STACK)
        words: list[int] = []
        error = 0
        if 0 <= offset <= PAGE_SIZE - 48:
            words = memory.view(self.window.gpa(Page.STACK), PAGE_SIZE).cast("Q")[offset // 8 :].tolist()
        else:
            offset = int(regs.rsp) - self.window.page_va(Page.STATE)
            if 0 <= offset <= PAGE_SIZE - 48:
                words = self.window.state[offset // 8 :].tolist()
        if errors and words:
            error = words.pop(0)
        fast, fast0 = self.domain.shim.code.fast, self.domain.shim.code.fast0
        frame = self.window.stack[FRAME:].tolist() if words else []
        if words and fast0 is not None and vector in _BAD_VALUE and not self._is_iretq(words[0] - self.window.va):
            recovery = fast0.recovery(words[0] - self.window.va)
            if recovery is not None:
                regs.rip, regs.rsp = self.window.va + recovery, words[3]
                self.kvm.run.kvm_dirty_regs |= Sync.REGS
                self.flush_tlb()
                self._busy = True
                return
        if words and fast is not None and words[0] == self.window.va + fast.iret_user:
            frame = self.window.state[State.USER_FRAME : State.USER_FRAME + 5].tolist()
            regs.rax = self.window.state[State.SAVED_RAX]
        elif not words or not self._is_iretq(words[0] - self.window.va):
            detail = f"exception {vector} in the shim at {words[:1]}, rsp {int(regs.rsp):#x}, cr2 {int(self.kvm.sregs.cr2):#x}"
            wild = any(mfn << PAGE_SHIFT not in self.domain.ram for mfn in (self.kernel_l4, self.user_l4) if mfn)
            self.domain.end(Ending(End.CRASH if wild else End.INTERNAL, detail))
            raise DomainDying
        regs.rip, self.cs, regs.rflags, regs.rsp, self.ss = frame
        self.kvm.run.kvm_dirty_regs |= Sync.REGS
        self.on_bad_iret(vector, error)

    def _is_iretq(self, offset: int) -> bool:
        """Tell whether an instruction of the window may be IRETQ with a frame that the guest chose."""
        fast0 = self.domain.shim.code.fast0
        return self._code_start <= offset < self._code_end or (fast0 is not None and offset in fast0.iretqs)

    def _on_call(self, port: int) -> None:
        regs = self.kvm.regs
        if port == Port.TRAP and self.in_kernel:
            self._take_trap()
            return
        if self.domain.shim.code.fast is not None:
            regs.rip = self.window.state[State.RETURN]
        else:
            regs.rip, regs.rflags = regs.rcx, regs.r11
        self.kvm.run.kvm_dirty_regs |= Sync.REGS
        if port == Port.HYPERCALL and self.in_kernel:
            self._hypercall()
        else:
            self.on_syscall(port)

    def _take_trap(self) -> None:
        """Deal with an exception of the kernel's that in-guest code has left to us. The kernel can write to these words."""
        words, regs = self._words[State.TRAP_VECTOR : State.TRAP_ERROR + 1].tolist(), self.kvm.regs
        vector, regs.rip, cs, rflags, regs.rsp, ss, error = words
        regs.rflags = rflags & ~RFLAGS_CLEAR | RFLAGS_FIXED
        self.cs, self.ss = cs & _SELECTOR | _RPL, ss & _SELECTOR | _RPL
        self.kvm.sregs.cr2 = self._words[State.TRAP_CR2]
        self.kvm.run.kvm_dirty_regs |= Sync.REGS
        self.on_exception(vector if vector in EMULATED else Vector.GP, error & _SELECTOR)

    def _hypercall(self) -> None:
        self._late.send()
        regs = self.kvm.regs
        self._late.expected = regs.rax == _EVENT_CHANNEL_OP
        self._replaced = False
        args = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
        result = self._call(regs.rax, args, wide=True)
        if not self._replaced:
            regs.rax = result & 0xFFFF_FFFF_FFFF_FFFF

    def _checkpoint(self) -> None:
        super()._checkpoint()
        self.domain.writer = self

    def poll(self, ports: Sequence[int], timeout_ns: int) -> None:
        """Sleep until a port is pending, an upcall comes, or system time reaches `timeout_ns` (0: no limit)."""
        super().poll(ports, timeout_ns)
        self.domain.writer = self

    def yield_(self) -> None:
        """Let other vCPUs run."""
        super().yield_()
        self.domain.writer = self

    def resume(self, *, blocked: bool) -> None:
        """Go on in ring 3 with the registers that are there, in a new VM, which has no translations yet."""
        self._blocked = blocked
        self.note_held()
        self.kvm.sregs.cr3 = (self.kernel_l4 if self.in_kernel else self.user_l4) << PAGE_SHIFT
        self._set_ring0()
        self._flush = True

    def _on_halt(self) -> None:
        self.domain.end(Ending(End.INTERNAL, "HLT in the shim"))

    def _on_mmio(self) -> None:
        """Let accesses to addresses without memory read as all ones."""
        mmio = self.kvm.run.mmio
        if not mmio.is_write:
            mmio.data[0:8] = [0xFF] * 8
        self._busy = True

    def _on_triple_fault(self) -> None:
        self.domain.end(Ending(End.CRASH, f"triple fault on vCPU {self.vcpu_id} near rip {int(self.kvm.regs.rip):#x}"))
