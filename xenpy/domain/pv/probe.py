"""What a host's KVM does with ring 3, found out by running some of it.

Ref: AMD64 Architecture Programmer's Manual, volume 3, SYSCALL
"""

from __future__ import annotations

import errno
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.asm import Assembler, mem
from xenpy.asm.registers import rax
from xenpy.domain.pv.processor import set_up_processor
from xenpy.domain.pv.state import flat
from xenpy.errors import HostError
from xenpy.framepool import FramePool
from xenpy.kvm.constants import Exit, Sync
from xenpy.kvm.vcpu import KvmVcpu
from xenpy.kvm.vm import Vm
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv.paging import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW, PTE_USER
from xenpy.shim.layout import SLOTS, Page, Port, Selector, State
from xenpy.shim.memory import Shim

if TYPE_CHECKING:
    from xenpy.kvm.system import Kvm

_RAM_GPA: Final = 4 << 30
_SHIM_GPA: Final = 1 << 30
_POOL_GPA: Final = 1 << 29
_RAM_PAGES: Final = 512
_CODE_VA: Final = 0x40_0000
_DATA_VA: Final = _CODE_VA + PAGE_SIZE
_TABLES: Final = 4
_CODE, _FIRST, _SECOND = range(_TABLES, _TABLES + 3)
"""Pages of RAM behind the tables: code, and two of data of which one is shown at _DATA_VA."""
_CHANGES: Final = 4
"""So often must a changed entry have had effect at once: KVM may by chance have dropped what it had of it."""
_ENTRY: Final = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY
_TRIES: Final = 16
_RFLAGS: Final = 0x202


class Traits(NamedTuple):
    """What matters of a host's KVM to PV guests."""

    slot: int
    """The level-4 slot for the shim."""
    ring3_entry: bool
    """Whether SYSCALL leaves the processor in ring 3."""
    shadow: bool
    """Whether KVM shadows page tables, so that it must see the changes that are made to them."""


_found: list[Traits] = []


def traits_of(kvm: Kvm) -> Traits:
    """Return this machine's traits, found out once for the process. Raises HostError as `probe` does."""
    if not _found:
        _found.append(probe(kvm))
    return _found[0]


def probe(kvm: Kvm) -> Traits:
    """Find out a host's traits. Raises HostError where none of the ways in which we run ring 3 works."""
    for slot in SLOTS:
        vm, memory, frames = Vm(kvm), GuestMemory(), FramePool()
        trial = None
        try:
            memory.on_region = vm.set_region
            trial = _Trial(kvm, vm, memory, frames, slot)
            if trial.run():
                ring3_entry = bool(trial.vcpu.sregs.ss.dpl)
                return Traits(slot, ring3_entry, ring3_entry or trial.misses_changes())
        finally:
            if trial is not None:
                trial.vcpu.close()
            vm.close()
            for thing in (memory, frames):
                with suppress(BufferError):  # the shim's views keep the memory mapped until they go
                    thing.close()
    raise HostError("this host's KVM does not run code in ring 3 as PV guests need it")


class _Trial:
    """A vCPU with the shim in a slot, whose ring 3 reads a word and executes SYSCALL."""

    def __init__(self, kvm: Kvm, vm: Vm, memory: GuestMemory, frames: FramePool, slot: int) -> None:
        memory.add_ram(_RAM_GPA, _RAM_PAGES * PAGE_SIZE)
        base = _RAM_GPA // PAGE_SIZE
        self._memory = memory
        self._shim = Shim(
            memory, _SHIM_GPA, slot=slot, ring3_entry=True, base_mfn=base, nr_pages=_RAM_PAGES, m2p_entries=base + _RAM_PAGES,
            vcpus=1, version=0, pool=(_POOL_GPA, frames.size), fast=False,
        )  # fmt: skip
        for upper, shift in enumerate((39, 30, 21)):
            self._set(upper, _CODE_VA >> shift & 511, upper + 1)
        self._set(_TABLES - 1, _CODE_VA >> 12 & 511, _CODE)
        self._set(_TABLES - 1, _DATA_VA >> 12 & 511, _FIRST)
        memory.u64[_RAM_GPA + 8 * slot >> 3] = self._shim.kernel_slot
        code = Assembler(_CODE_VA)
        code.mov(rax, mem(rip=_DATA_VA))
        code.syscall()
        memory.write(_RAM_GPA + _CODE * PAGE_SIZE, code.assemble())
        for page in (_FIRST, _SECOND):
            memory.u64[_RAM_GPA + page * PAGE_SIZE >> 3] = page
        self.vcpu = KvmVcpu(vm, 0)
        self.vcpu.set_cpuid(kvm.supported_cpuid())
        set_up_processor(self.vcpu, self._shim, self._shim.windows[0], xsave=False)
        flat(self.vcpu.sregs.cs, Selector.RING3_CS64, 11, 3, long=True)
        flat(self.vcpu.sregs.ss, Selector.RING3_SS, 3, 3, long=False)
        self.vcpu.sregs.cr3 = _RAM_GPA
        regs = self.vcpu.regs
        regs.rip, regs.rsp, regs.rflags = _CODE_VA, _DATA_VA, _RFLAGS

    def _set(self, table: int, index: int, page: int) -> None:
        self._memory.u64[(_RAM_GPA + table * PAGE_SIZE >> 3) + index] = _RAM_GPA + page * PAGE_SIZE | _ENTRY

    def run(self) -> bool:
        """Go on; tell whether SYSCALL leads to where it should."""
        vcpu = self.vcpu
        reason = -errno.EINTR
        for _ in range(_TRIES):
            reason = vcpu.enter()
            if reason != -errno.EINTR:
                break
        entry = self._shim.windows[0].page_va(Page.ENTRY)
        if reason != Exit.IO or vcpu.run.io.port != Port.HYPERCALL:
            return False
        return 0 <= int(vcpu.regs.rip) - entry < PAGE_SIZE

    def misses_changes(self) -> bool:
        """Tell whether ring 3, by way of loading CR3, goes on to see what a page table entry showed before we changed it."""
        window, regs = self._shim.windows[0], self.vcpu.regs
        for change in range(_CHANGES):
            page = _FIRST if change % 2 else _SECOND
            self._set(_TABLES - 1, _DATA_VA >> 12 & 511, page)
            frame = _CODE_VA, Selector.RING3_CS64, _RFLAGS, _DATA_VA, Selector.RING3_SS
            window.stack[-len(frame) :] = memoryview(array("Q", frame))
            window.state[State.NEW_CR3] = _RAM_GPA
            regs.rip, regs.rsp = window.va + self._shim.code.resume.cr3, window.stack_top - 8 * len(frame)
            self.vcpu.dirty(Sync.REGS)
            if not self.run():
                raise HostError("this host's KVM does not go back to ring 3 as PV guests need it")
            if regs.rax != page:
                return True
        return False
