"""A PV vCPU: its thread's way into the guest and out of it.

The guest's registers are those of KVM while it runs in ring 3. When the processor has come to ring 0, by an exception or a system call,
what ring 3 looked like is in the frame on the shim's stack: it is put back at once, so that `regs`, `cs` and `ss` always tell of the guest,
and `_prepare` finds the way back in: directly where nothing but registers has changed, else by one of the shim's IRETQ routines.
"""

from __future__ import annotations

import errno
import time
from array import array
from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import End, Ending
from xenpy.domain.pv.bounce import WITH_ERROR
from xenpy.domain.pv.context import Contexts
from xenpy.domain.pv.faults import Faults
from xenpy.domain.pv.late import LATEST_NS, LateEvents
from xenpy.domain.pv.state import flat
from xenpy.domain.vcpu import DomainDying
from xenpy.errors import Errno, XenError
from xenpy.kvm.constants import KVM_EXIT_IO_OUT, Exit, Sync
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.emulate.machine import Vector
from xenpy.pv.mmu.entries import XEN_SLOTS
from xenpy.pv.paging import PTE_FRAME, PTE_PRESENT, PTE_PSE, PTE_RW
from xenpy.shim.layout import DEBUG_STACK_SIZE, WRITES_MAX, Page, Port, Selector, State
from xenpy.shim.traps import EMULATED

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xenpy.domain.pv.domain import PvDomain

_MASK32: Final = 0xFFFF_FFFF
_RETRY_NS: Final = 500_000
"""How long until an event is tried again that found the vCPU within the shim."""
_FRAME: Final = PAGE_SIZE // 8 - 5
"""The word of the ring 0 stack where the processor's frame begins, without an error code."""
_RING0_RFLAGS: Final = 2
_RFLAGS_FIXED: Final = 1 << 1 | 1 << 9
_RFLAGS_CLEAR: Final = 3 << 12 | 1 << 14 | 1 << 17 | 1 << 19 | 1 << 20
"""IOPL, NT, VM, VIF, VIP."""
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
_L1_SHIFT: Final = 12
_EVENT_CHANNEL_OP: Final = 32
_INT3: Final = b"\xcc"
_POLL_S: Final = 0.00002


class PvVcpu(Faults, Contexts):
    """A vCPU of a PV domain."""

    def __init__(self, domain: PvDomain, vcpu_id: int) -> None:
        super().__init__(domain, vcpu_id, vcpu_id, Sync.REGS | Sync.SREGS)
        self._blocked = False
        self._busy = False
        """Whether the guest must go on before anything is changed. In-guest code may hold a frame that others wait for, with the lock."""
        self._kicked = False
        self._kicked_at = 0
        """How much the thread had run when a kick made the guest stop, in nanoseconds; 0 when it goes on."""
        self._flush = False
        self._invlpg: int | None = None
        self._writes: list[int] = []
        self._ring0 = False
        resume = domain.shim.code.resume
        self._code_start, self._code_end = min(resume), max(resume)
        self._held = 0, 0
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
                if self._kicked:
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

    # -- entering -----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Bring KVM's registers to where the guest goes on, by way of the shim if that is needed."""
        if self.flush_wanted:
            self.flush_wanted = False
            self._flush = True
        sregs, regs, run = self.kvm.sregs, self.kvm.regs, self.kvm.run
        cr3 = (self.kernel_l4 if self.in_kernel else self.user_l4) << PAGE_SHIFT
        load = self._flush or sregs.cr3 != cr3
        if load:
            self._check_base(cr3)
        here = not self._ring0 and sregs.cs.selector == self.cs and sregs.ss.selector == self.ss
        if here and not (load or self._writes or self._invlpg is not None):
            return  # nothing is marked dirty that is not: writing registers makes KVM forget exceptions
        if len(self._writes) > WRITES_MAX:
            self._flush_writes()
        resume = self.domain.shim.code.resume
        state = self.window.state
        state[State.SAVED_RAX] = regs.rax
        if self._writes:
            state[State.SAVED_RCX], state[State.SAVED_RSI] = regs.rcx, regs.rsi
            self._list_writes(self._writes)
            self._writes = []
            ways = resume.writes_cr3, resume.writes_invlpg, resume.writes
        else:
            ways = resume.cr3, resume.invlpg, resume.plain
        entry = ways[0 if load else 1 if self._invlpg is not None else 2]
        if load:
            state[State.NEW_CR3] = cr3
            state[State.LOADED_CR3] = 0
        elif self._invlpg is not None:
            state[State.INVLPG] = self._invlpg
        self._flush = False
        self._invlpg = None
        rflags = regs.rflags & ~_RFLAGS_CLEAR | _RFLAGS_FIXED
        self.window.stack[_FRAME], self.window.stack[_FRAME + 1] = regs.rip, self.cs
        self.window.stack[_FRAME + 2], self.window.stack[_FRAME + 3] = rflags, regs.rsp
        self.window.stack[_FRAME + 4] = self.ss
        regs.rip = self.window.va + entry
        regs.rsp = self.window.stack_top - 40
        regs.rflags = _RING0_RFLAGS
        if not self._ring0:
            self._set_ring0()
        run.kvm_dirty_regs |= Sync.REGS

    def _check_base(self, cr3: int) -> None:
        """Have CR3 hold a table that this vCPU refers to: any other may be none any more when the shim's first instructions run.

        Ends the domain if what is to be loaded is no table: on some hosts a kernel can write what it likes to its State.
        """
        if cr3 not in self.domain.ram:
            self._in_guest = False  # nobody is to wait for us with the lock
            self.domain.end(Ending(End.CRASH, f"its page tables are to be at gpa {cr3:#x}, where it has no memory"))
            raise DomainDying
        sregs, kernel = self.kvm.sregs, self.kernel_l4 << PAGE_SHIFT
        if sregs.cr3 not in (kernel, self.user_l4 << PAGE_SHIFT) and len(self.domain.pv_vcpus) > 1:
            sregs.cr3 = kernel
            self.kvm.run.kvm_dirty_regs |= Sync.SREGS

    def _set_ring0(self) -> None:
        sregs = self.kvm.sregs
        flat(sregs.cs, Selector.RING0_CS, 11, 0, long=True)
        flat(sregs.ss, Selector.RING0_SS, 3, 0, long=False)
        self.kvm.run.kvm_dirty_regs |= Sync.SREGS
        self._ring0 = True

    def _list_writes(self, writes: list[int]) -> None:
        self.window.writes[: len(writes)] = memoryview(array("Q", writes))
        self.window.state[State.WRITE_COUNT] = len(writes)

    def _flush_writes(self) -> None:
        """Touch a list of words that is too long for one entry."""
        regs, kvm = self.kvm.regs, self.kvm
        saved = [getattr(regs, name) for name in _REGISTERS]
        self._set_ring0()
        while self._writes:
            part, self._writes = self._writes[:WRITES_MAX], self._writes[WRITES_MAX:]
            self._list_writes(part)
            regs.rip = self.window.va + self.domain.shim.code.resume.flush
            regs.rsp, regs.rflags = self.window.stack_top, _RING0_RFLAGS
            kvm.run.kvm_dirty_regs |= Sync.REGS
            while (reason := kvm.enter()) == -errno.EINTR:
                kvm.clear_kick()
                self._kicked = True
            if reason != Exit.IO:
                self._in_guest = False  # nobody is to wait for us with the lock
                self._on_unknown(reason)
                raise DomainDying
        kvm.run.immediate_exit = 1
        for name, value in zip(_REGISTERS, saved, strict=True):
            setattr(regs, name, value)
        self._set_ring0()

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
            self._busy = bool(queued) or self._near_breakpoint(rip)
        self._in_guest = self._busy
        if self._busy:
            self._retry_soon()

    def _retry_soon(self) -> None:
        """Have a kick come when the guest is likely to have left the shim, but not before: a timer that is due must wait as well.

        An earlier kick would find the vCPU where it is now, again and again.
        """
        self.kick_after(_RETRY_NS)

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
            error = stack[_FRAME - 1]
        elif vector == Vector.DB and not self.domain.shim.ring3_entry:
            self._take_debug_frame()
            return
        rip, cs = stack[_FRAME], stack[_FRAME + 1]
        if regs.rsp != self.window.stack_top - 40 - 8 * (vector in WITH_ERROR) or cs & 3 != 3:
            self._nested(vector)
            return
        self.cs = cs
        regs.rip, regs.rflags, regs.rsp = rip, stack[_FRAME + 2], stack[_FRAME + 3]
        self.ss = stack[_FRAME + 4]
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
        frame = self.window.stack[_FRAME:].tolist() if words else []
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
        regs.rflags = rflags & ~_RFLAGS_CLEAR | _RFLAGS_FIXED
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
        result = self._call(regs.rax & _MASK32, args, wide=True)
        if not self._replaced:
            regs.rax = result & 0xFFFF_FFFF_FFFF_FFFF

    def _checkpoint(self) -> None:
        super()._checkpoint()
        self.domain.writer = self

    def take_over(self) -> None:
        """Be the vCPU in whose name page tables change, with all vCPUs' references as in-guest code has left them."""
        self.domain.writer = self
        for vcpu in self.domain.pv_vcpus:
            vcpu.note_moves()
        owed = self._words[State.OWED]
        if owed:
            self._words[State.OWED] = 0
            self.domain.mmu.types.put(owed >> PAGE_SHIFT, self._checkpoint)

    def note_moves(self) -> None:
        """Take note of bases that in-guest code has changed between. Under the host's lock."""
        now = self.kernel_l4, self.user_l4
        if now != self._held:
            for old, new, kernel in zip(self._held, now, (True, False), strict=True):
                if old != new:
                    self.domain.mmu.moved_base(old, new, kernel=kernel)
            self._held = now

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

    def note_held(self) -> None:
        """Take note that references have been taken for the present tables."""
        self._held = self.kernel_l4, self.user_l4

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

    # -- page tables --------------------------------------------------------------------------------------------------

    def translate(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind a guest-virtual address by the kernel's tables. Raises XenError(EFAULT)."""
        l4 = self.kernel_l4
        if not l4 and self.domain.writer is not None:
            l4 = self.domain.writer.kernel_l4  # of the vCPU that speaks for this one, which has not been started
        return self._walk(l4, gva, write=write)

    def translate_any(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind an address of the mode that runs, kernel or user. Raises XenError(EFAULT)."""
        return self._walk(self.kernel_l4 if self.in_kernel else self.user_l4, gva, write=write)

    def _walk(self, l4: int, gva: int, *, write: bool) -> int:
        words, ram = self.domain.memory.u64, self.domain.ram
        if not l4 or gva >> 47 not in (0, 0x1FFFF) or (gva >> 39 & 511) in XEN_SLOTS:
            raise XenError(Errno.EFAULT, f"gva {gva:#x} is not the guest's")
        entry = l4 << PAGE_SHIFT
        for shift in (39, 30, 21, 12):
            table = entry & PTE_FRAME
            if table not in ram:
                raise XenError(Errno.EFAULT, f"gva {gva:#x} is mapped by a table at gpa {table:#x}")
            entry = words[table + (gva >> shift & 511) * 8 >> 3]
            if not entry & PTE_PRESENT or (write and not entry & PTE_RW) or (entry & PTE_PSE and shift != _L1_SHIFT):
                raise XenError(Errno.EFAULT, f"gva {gva:#x} is not mapped")
        return entry & PTE_FRAME | gva & 0xFFF

    def queue_touch(self, gva: int) -> None:
        """Have a word be touched in the guest before it goes on, so that shadow page tables, if any, notice what we have written there."""
        self._words[State.STALE], self._words[State.PRIVATE_TABLE] = 1, 0
        if self.domain.touches:
            self._writes.append(gva)

    def load_base(self, mfn: int) -> None:
        """Make an L4 the kernel's."""
        self.kernel_l4 = mfn
        self._flush = True
        self.note_held()

    def load_user_base(self, mfn: int) -> None:
        """Make an L4 user mode's."""
        self.user_l4 = mfn
        self.note_held()

    def flush_tlb(self) -> None:
        """Drop all translations before the guest goes on."""
        self._flush = True

    def invlpg(self, gva: int) -> None:
        """Drop one translation before the guest goes on."""
        if self._invlpg is None or self._invlpg == gva:
            self._invlpg = gva
        else:
            self._flush = True

    def flush_on(self, vcpu_ids: Iterable[int] | None, gva: int | None) -> None:
        """Drop translations of several vCPUs, and wait until none runs with them. Under the host's lock."""
        vcpus = self.domain.pv_vcpus
        others = []
        for vcpu_id in range(len(vcpus)) if vcpu_ids is None else vcpu_ids:
            if vcpu_id == self.vcpu_id:
                self.flush_tlb() if gva is None else self.invlpg(gva)
            elif vcpu_id < len(vcpus):
                vcpus[vcpu_id].flush_wanted = True
                others.append(vcpus[vcpu_id])
        for vcpu in others:
            if vcpu._in_guest:
                vcpu.kvm.kick()
            while vcpu._in_guest and vcpu.flush_wanted and self.domain.ending is None:
                time.sleep(_POLL_S)


_REGISTERS: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip
