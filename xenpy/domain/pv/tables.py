"""The page tables that a PV vCPU runs on: in whose name they change, how addresses are found by them, and when translations are dropped."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from xenpy.domain.ending import End, Ending
from xenpy.domain.vcpu import Vcpu
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.entries import XEN_SLOTS
from xenpy.pv.paging import PTE_FRAME, PTE_PRESENT, PTE_PSE, PTE_RW
from xenpy.shim.layout import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.domain.pv.domain import PvDomain
    from xenpy.kvm.constants import Sync

_L1_SHIFT: Final = 12
_POLL_S: Final = 0.00002
_PATIENCE_S: Final = 20
"""So long does no vCPU stay within in-guest code, on however busy a host."""


class Tables(Vcpu):
    """A PV vCPU, as far as it has page tables."""

    domain: PvDomain
    _in_guest = False
    """Whether the guest may run, by translations of before, or will without having looked at its events again."""

    def __init__(self, domain: PvDomain, vcpu_id: int, kvm_id: int, sync: Sync) -> None:
        self.window = domain.shim.windows[vcpu_id]
        self._words = self.window.state
        super().__init__(domain, vcpu_id, kvm_id, sync)
        self.flush_wanted = False
        self._flush = False
        self._invlpg: int | None = None
        self._writes: list[int] = []
        self._held = 0, 0

    # -- which they are -----------------------------------------------------------------------------------------------

    @property
    def in_kernel(self) -> bool:
        """Whether the guest's kernel runs, not its user mode."""
        return not self._words[State.MODE]

    @in_kernel.setter
    def in_kernel(self, value: bool) -> None:
        self._words[State.MODE] = not value

    @property
    def iopl(self) -> int:
        """The virtual IOPL."""
        return self._iopl

    @iopl.setter
    def iopl(self, level: int) -> None:
        self._iopl = level
        self._words[State.PORTS_ALLOWED] = int(level > 0)

    @property
    def kernel_l4(self) -> int:
        """The kernel's top-level table, 0 for none."""
        return self._words[State.KERNEL_CR3] >> PAGE_SHIFT

    @kernel_l4.setter
    def kernel_l4(self, mfn: int) -> None:
        self._words[State.KERNEL_CR3] = mfn << PAGE_SHIFT

    @property
    def user_l4(self) -> int:
        """User mode's top-level table, 0 for none."""
        return self._words[State.USER_CR3] >> PAGE_SHIFT

    @user_l4.setter
    def user_l4(self, mfn: int) -> None:
        self._words[State.USER_CR3] = mfn << PAGE_SHIFT

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

    def note_held(self) -> None:
        """Take note that references have been taken for the present tables."""
        self._held = self.kernel_l4, self.user_l4

    # -- translations -------------------------------------------------------------------------------------------------

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
        """Drop translations of several vCPUs, and wait until none runs with them. Under the host's lock.

        Ends the domain if one stays within the shim: where ring 3 reaches that, a kernel can have a vCPU do so.
        """
        vcpus = self.domain.pv_vcpus
        others = []
        for vcpu_id in range(len(vcpus)) if vcpu_ids is None else vcpu_ids:
            if vcpu_id == self.vcpu_id:
                self.flush_tlb() if gva is None else self.invlpg(gva)
            elif vcpu_id < len(vcpus):
                vcpus[vcpu_id].flush_wanted = True
                others.append(vcpus[vcpu_id])
        deadline = time.monotonic() + _PATIENCE_S
        for vcpu in others:
            if vcpu._in_guest:
                vcpu.kvm.kick()
            while vcpu._in_guest and vcpu.flush_wanted and self.domain.ending is None:
                time.sleep(_POLL_S)
                if time.monotonic() > deadline:
                    self.domain.end(Ending(End.CRASH, f"vCPU {vcpu.vcpu_id} stays within the shim"))
