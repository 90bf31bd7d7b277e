"""A PV vCPU's way into the guest: straight to ring 3, or by way of one of the shim's IRETQ routines."""

from __future__ import annotations

import errno
from array import array
from typing import Final

from xenpy.domain.ending import End, Ending
from xenpy.domain.pv.faults import Faults
from xenpy.domain.pv.state import flat
from xenpy.domain.vcpu import DomainDying
from xenpy.kvm.constants import Exit, Sync
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.shim.layout import WRITES_MAX, Selector, State

FRAME: Final = PAGE_SIZE // 8 - 5
"""The word of the ring 0 stack where the processor's frame begins, without an error code."""
_RING0_RFLAGS: Final = 2
RFLAGS_FIXED: Final = 1 << 1 | 1 << 9
RFLAGS_CLEAR: Final = 3 << 12 | 1 << 14 | 1 << 17 | 1 << 19 | 1 << 20
"""IOPL, NT, VM, VIF, VIP."""
_REGISTERS: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags",
)  # fmt: skip


class Entering(Faults):
    """A PV vCPU that can enter the guest."""

    _kicked = False
    """Whether a kick has still to be attended to."""
    _ring0 = False
    """Whether KVM's segment registers are those of the guest's ring 0."""

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
        rflags = regs.rflags & ~RFLAGS_CLEAR | RFLAGS_FIXED
        self.window.stack[FRAME], self.window.stack[FRAME + 1] = regs.rip, self.cs
        self.window.stack[FRAME + 2], self.window.stack[FRAME + 3] = rflags, regs.rsp
        self.window.stack[FRAME + 4] = self.ss
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
