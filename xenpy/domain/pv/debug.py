"""A debugger's breakpoints and steps in a PV guest: INT3, and RFLAGS.TF in ring 3.

Ref: AMD64 APM volume 2, section 13.1.4
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from xenpy.domain.debugging import Trap
from xenpy.domain.pv.state import PvState
from xenpy.kvm.constants import Sync
from xenpy.pv.emulate.machine import Vector

if TYPE_CHECKING:
    from xenpy.domain.debugging import Debugger
    from xenpy.domain.vcpu import Vcpu

RFLAGS_TF: Final = 1 << 8
_BP: Final = 3


class Debugged(PvState):
    """A PV vCPU that a debugger may step."""

    step_from: int | None = None
    """The RIP of the instruction that is to be executed alone."""
    _own_tf = False
    """Whether the guest had TF set itself."""
    _user_step: int | None = None
    """The tables of the user mode in which a step has begun."""
    _trapped = False

    @property
    def segments(self) -> tuple[int, int]:
        """Return the guest's CS and SS."""
        return self.cs, self.ss

    def arm(self, *, step: bool) -> None:
        """Be ready for a debugger's breakpoints, and execute one instruction only if it is to `step`."""
        if not step:
            self.disarm()
            return
        regs = self.kvm.regs
        self.step_from, self._trapped = int(regs.rip), False
        self._own_tf = bool(regs.rflags & RFLAGS_TF)
        self._user_step = None if self.in_kernel else self.user_l4
        self._set_flags(regs.rflags | RFLAGS_TF)

    def disarm(self) -> None:
        """Have exceptions be the guest's own again."""
        if self.step_from is not None:
            self.step_from = None
            if not self._own_tf:
                self._set_flags(self.kvm.regs.rflags & ~RFLAGS_TF)

    def _set_flags(self, rflags: int) -> None:
        self.kvm.regs.rflags = rflags
        self.kvm.dirty(Sync.REGS)

    def take_debug_exception(self, debugger: Debugger, vector: int) -> bool:
        """Deal with an exception if it is the debugger's, whose registers are in place; tell whether it was."""
        vcpu = cast("Vcpu", self)
        if vector == _BP:
            gva = int(self.kvm.regs.rip) - 1
            if not debugger.owns(vcpu, gva):
                return False
            self.kvm.regs.rip = gva
            self.kvm.dirty(Sync.REGS)
            self.disarm()
            debugger.trapped(vcpu, Trap.BREAKPOINT)
            return True
        if vector != Vector.DB:
            return False
        if self.step_from is not None:
            self._trapped = True  # what comes of it is decided when RIP is out of the shim
            return True
        if self._user_step is None or self.in_kernel or self.user_l4 != self._user_step:
            return False
        # A step into the kernel by SYSCALL: the flag has waited in the frame to which the kernel has returned.
        self._user_step = None
        self._set_flags(self.kvm.regs.rflags & ~RFLAGS_TF)
        return True

    def end_step(self, debugger: Debugger) -> None:
        """Stop if the step has been made. When the guest has been left, and RIP is not in the shim."""
        if int(self.kvm.regs.rip) == self.step_from and not self._trapped:
            return
        if self._trapped:
            self._user_step = None
        self.disarm()
        debugger.trapped(cast("Vcpu", self), Trap.STEP)
