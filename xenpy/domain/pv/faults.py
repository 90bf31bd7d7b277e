"""Exceptions and system calls of a PV guest: what is emulated for it, and what its kernel hears of."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final, cast

from xenpy.domain.ending import End, Ending
from xenpy.domain.pv.bounce import WITH_ERROR, Bounces
from xenpy.domain.pv.machine import GuestMachine
from xenpy.domain.vcpu import DomainDying
from xenpy.errors import XenError
from xenpy.hypercalls.callback import CALLBACKTYPE
from xenpy.kvm.constants import Sync
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.emulate import GuestFault, Outcome, emulate_forced, emulate_load, emulate_privileged, emulate_store
from xenpy.pv.emulate.machine import Vector
from xenpy.pv.mmu.entries import XEN_SLOTS
from xenpy.pv.mmu.layout import is_l1
from xenpy.pv.paging import PTE_FRAME, PTE_NX, PTE_PRESENT, PTE_RW, PTE_USER
from xenpy.shim.layout import WINDOW_SIZE, Page, Port, Selector

if TYPE_CHECKING:
    from xenpy.domain.pv.vcpu import PvVcpu

_PF_PRESENT: Final = 1 << 0
_PF_WRITE: Final = 1 << 1
_PF_USER: Final = 1 << 2
_PF_RESERVED: Final = 1 << 3
_PF_FETCH: Final = 1 << 4
_STALE_MAX: Final = 8
"""So often is a fault that the tables do not explain taken for one of a stale translation."""
_DOUBLE_FAULT: Final = 8
_NO_DEVICE: Final = 7
_INT_N: Final = 0xCD
_SYSENTER: Final = b"\x0f\x34"
_SYSCALL: Final = b"\x0f\x05"


class Faults(Bounces):
    """A PV vCPU whose guest may fault."""

    @cached_property
    def _machine(self) -> GuestMachine:
        return GuestMachine(cast("PvVcpu", self))

    def on_exception(self, vector: int, error: int) -> None:
        """Deal with an exception in ring 3, whose registers are in place."""
        debugger = self.domain.debugger
        if debugger is not None and self.take_debug_exception(debugger, vector):
            return
        rip = self.kvm.regs.rip
        if self.domain.shim.has(rip) and not self._has_strayed(vector, rip % WINDOW_SIZE) and self.in_shim_code(vector):
            return
        if vector == Vector.PF:
            self._on_page_fault(error, int(self.kvm.sregs.cr2))
        elif vector == Vector.GP:
            self._on_protection_fault(error)
        elif vector == Vector.UD:
            self._on_invalid_opcode()
        elif vector == _DOUBLE_FAULT:
            self.domain.end(Ending(End.CRASH, f"double fault at rip {int(self.kvm.regs.rip):#x}"))
            raise DomainDying
        else:
            if vector == _NO_DEVICE:
                self.set_ts(False)
            elif vector == Vector.DB:
                registers = self.kvm.get_debugregs()
                self.dr6 = int(registers.dr6)
            self.raise_trap(vector, error if vector in WITH_ERROR else None)

    def _has_strayed(self, vector: int, offset: int) -> bool:
        """Tell whether user mode has jumped into the window: to the one page that it may execute, or where it may not."""
        in_entry = offset // PAGE_SIZE == Page.ENTRY
        return not self.in_kernel and (in_entry or (vector == Vector.PF and self.kvm.sregs.cr2 == self.kvm.regs.rip))

    def in_shim_code(self, vector: int) -> bool:
        """Deal with an exception of in-guest code in ring 3: it met a pointer or a stack of the guest's that is no good."""
        fast = self.domain.shim.code.fast
        regs = self.kvm.regs
        if fast is None:
            return False
        offset = regs.rip - self.window.va
        if fast.trap_entered <= offset < fast.trap_end:
            regs.rip = self.window.va + fast.trap_by_us
            self.kvm.run.kvm_dirty_regs |= Sync.REGS
            self.within_shim = True
            return True
        near_stack = abs(int(self.kvm.sregs.cr2) - int(regs.rsp)) < PAGE_SIZE
        if fast.hypercall <= offset < fast.hypercall_end and not near_stack:
            regs.rip = self.window.va + fast.give_up
            self.flush_tlb()
        elif fast.iret <= offset < fast.iret_by_us and not near_stack:
            regs.rip = self.window.va + fast.iret_by_us
        else:
            where = f"rsp {int(regs.rsp):#x}, cr2 {int(self.kvm.sregs.cr2):#x}"
            self.domain.end(Ending(End.CRASH, f"its kernel's stack cannot be used (exception {vector}, {where})"))
            raise DomainDying
        self.kvm.run.kvm_dirty_regs |= Sync.REGS
        self.within_shim = True
        return True

    def _finish(self, outcome: Outcome | GuestFault, vector: int, error: int | None) -> None:
        """Give the guest what emulation left: nothing, another exception, or the one that it was."""
        self.kvm.run.kvm_dirty_regs |= Sync.REGS
        if outcome is Outcome.DONE:
            return
        if isinstance(outcome, GuestFault):
            if outcome.vector == Vector.PF:
                self.domain.shared_info.vcpu_info[self.vcpu_id].cr2 = outcome.cr2
            vector, error = outcome.vector, outcome.error_code if outcome.vector in WITH_ERROR else None
        self.raise_trap(vector, error)

    # -- page faults --------------------------------------------------------------------------------------------------

    def _on_page_fault(self, error: int, gva: int) -> None:
        domain = self.domain
        if self.in_kernel:
            error &= ~_PF_USER
            outcome: Outcome | GuestFault = Outcome.UNHANDLEABLE
            if error & (_PF_PRESENT | _PF_WRITE) == _PF_PRESENT | _PF_WRITE and self._is_table(gva):
                with domain.host.lock:
                    self.take_over()
                    outcome = emulate_store(self._machine, gva, self._write_entry)
            elif not error & (_PF_WRITE | _PF_FETCH) and domain.look_up(gva, 1) is not None:
                outcome = emulate_load(self._machine, gva, domain.look_up)
            if outcome is not Outcome.UNHANDLEABLE:
                self._finish(outcome, Vector.PF, error)
                return
        if self._is_stale(error, gva):
            self.flush_tlb()
            return
        domain.shared_info.vcpu_info[self.vcpu_id].cr2 = gva
        self.raise_trap(Vector.PF, error)

    def _is_table(self, gva: int) -> bool:
        """Tell whether an address is in an L1 table; stores to other read-only pages are the kernel's to deal with, whatever they store."""
        try:
            return is_l1(self.domain.mmu.frames.word(self.translate(gva) >> PAGE_SHIFT))
        except XenError:
            return False

    def _is_stale(self, error: int, gva: int) -> bool:
        """Tell whether the tables permit what faulted, so that a translation from before their last change is to blame."""
        if gva >> 47 not in (0, 0x1FFFF) or (gva >> 39 & 511) in XEN_SLOTS or error & _PF_RESERVED:
            return False
        words, ram = self.domain.memory.u64, self.domain.ram
        entry = (self.kernel_l4 if self.in_kernel else self.user_l4) << PAGE_SHIFT
        needed = PTE_PRESENT | PTE_USER | (PTE_RW if error & _PF_WRITE else 0)
        for shift in (39, 30, 21, 12):
            table = entry & PTE_FRAME
            if table not in ram:
                return False
            entry = words[table + (gva >> shift & 511) * 8 >> 3]
            if entry & needed != needed or (error & _PF_FETCH and entry & PTE_NX):
                return False
        here = int(self.kvm.regs.rip), gva
        self._stale_again = self._stale_again + 1 if here == self._stale_at else 0
        self._stale_at = here
        return self._stale_again < _STALE_MAX

    _stale_at = 0, 0
    _stale_again = 0

    def _write_entry(self, gva: int, old: int, new: int) -> bool:
        return self.domain.mmu.emulate_write(self.translate(gva), old, new, compare=True)

    # -- protection faults --------------------------------------------------------------------------------------------

    def _on_protection_fault(self, error: int) -> None:
        outcome: Outcome | GuestFault = Outcome.UNHANDLEABLE
        if error == 0:
            if not self.in_kernel and self._machine.read_code(self.kvm.regs.rip, 2) == _SYSENTER:
                self._sysenter()
                return
            with self.domain.host.lock:
                self.take_over()
                outcome = emulate_privileged(self._machine)
        elif error & 7 == 2:  # INT n through a gate of the IDT that asks for more privilege
            code = self._machine.read_code(self.kvm.regs.rip, 2)
            if code[:1] and code[0] == _INT_N and len(code) == 2:  # processors have been seen to tell of another vector
                self._software_interrupt(code[1])
                return
        self._finish(outcome, Vector.GP, error)

    # -- invalid opcodes ----------------------------------------------------------------------------------------------

    def _on_invalid_opcode(self) -> None:
        regs = self.kvm.regs
        code = self._machine.read_code(regs.rip, 2)
        if code[:1] and code[0] == _INT_N and len(code) == 2:  # on hosts that do not know INT n
            self._software_interrupt(code[1])
            return
        if code == _SYSENTER and not self.in_kernel:
            self._sysenter()
            return
        if code == _SYSCALL and not self.in_kernel:
            regs.rip += 2
            self.on_syscall(Port.SYSCALL32)
            return
        self._finish(emulate_forced(self._machine), Vector.UD, None)

    def _software_interrupt(self, vector: int) -> None:
        trap = self.traps[vector]
        if trap is None or trap.dpl < (1 if self.in_kernel else 3):
            self.raise_trap(Vector.GP, vector << 3 | 2)
            return
        self.kvm.regs.rip += 2
        self.raise_trap(vector)

    def _sysenter(self) -> None:
        """Go on behind SYSENTER, which has faulted."""
        self.kvm.regs.rip += 2
        self.on_syscall(Port.SYSENTER)

    # -- system calls -------------------------------------------------------------------------------------------------

    def on_syscall(self, port: int) -> None:
        """Call the kernel for a system call that has come by one of the Port ways; RIP is behind the instruction."""
        if port in (Port.SYSCALL, Port.HYPERCALL):
            type_ = CALLBACKTYPE.syscall
            self.cs, self.ss = Selector.RING3_CS64, Selector.RING3_SS
        elif port == Port.SYSCALL32:
            type_ = CALLBACKTYPE.syscall32
            self.cs, self.ss = Selector.RING3_CS32, Selector.RING3_SS
        else:
            type_ = CALLBACKTYPE.sysenter
            if not self.enter_syscall(type_):
                self.kvm.regs.rip -= 2
                self.raise_trap(Vector.GP, 0)
            return
        if not self.enter_syscall(type_):
            self.kvm.regs.rip -= 2
            self.raise_trap(Vector.UD)

    def new_base(self, mfn: int) -> None:
        """Run the kernel on other tables, as MMUEXT_NEW_BASEPTR. Raises XenError."""
        mmu = self.domain.mmu
        old = self.kernel_l4
        if mfn != old:
            mmu.take_base(mfn, self._checkpoint, kernel=True)
        self.load_base(mfn)
        if mfn != old:
            mmu.drop_base(old, self._checkpoint, kernel=True)
