"""What a host's KVM does with ring 3, found out by running some of it.

Ref: AMD64 Architecture Programmer's Manual, volume 3, SYSCALL
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.domain.pv.processor import set_up_processor
from xenpy.domain.pv.state import flat
from xenpy.errors import HostError
from xenpy.framepool import FramePool
from xenpy.kvm.constants import Exit
from xenpy.kvm.vcpu import KvmVcpu
from xenpy.kvm.vm import Vm
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv.paging import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT, PTE_RW, PTE_USER
from xenpy.shim.layout import SLOTS, Page, Port, Selector
from xenpy.shim.memory import Shim

if TYPE_CHECKING:
    from xenpy.kvm.system import Kvm

_RAM_GPA: Final = 4 << 30
_SHIM_GPA: Final = 1 << 30
_POOL_GPA: Final = 1 << 29
_RAM_PAGES: Final = 512
_CODE_VA: Final = 0x40_0000
_SYSCALL: Final = b"\x0f\x05"
_ENTRY: Final = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY
_TRIES: Final = 16
_RFLAGS: Final = 0x202


class Traits(NamedTuple):
    """What matters of a host's KVM to PV guests."""

    slot: int
    """The level-4 slot for the shim."""
    ring3_entry: bool
    """Whether SYSCALL leaves the processor in ring 3."""


def probe(kvm: Kvm) -> Traits:
    """Find out a host's traits. Raises HostError where none of the ways in which we run ring 3 works."""
    for slot in SLOTS:
        ring3_entry = _try(kvm, slot)
        if ring3_entry is not None:
            return Traits(slot, ring3_entry)
    raise HostError("this host's KVM does not run code in ring 3 as PV guests need it")


def _try(kvm: Kvm, slot: int) -> bool | None:
    """Execute SYSCALL in ring 3 with the shim in a slot; tell whether ring 3 is where it leads, None if it leads nowhere."""
    vm, memory, frames = Vm(kvm), GuestMemory(), FramePool()
    vcpu = None
    try:
        memory.on_region = vm.set_region
        memory.add_ram(_RAM_GPA, _RAM_PAGES * PAGE_SIZE)
        base = _RAM_GPA // PAGE_SIZE
        shim = Shim(
            memory, _SHIM_GPA, slot=slot, ring3_entry=True, base_mfn=base, nr_pages=_RAM_PAGES, m2p_entries=base + _RAM_PAGES,
            vcpus=1, version=0, pool=(_POOL_GPA, frames.size), fast=False,
        )  # fmt: skip
        vcpu = KvmVcpu(vm, 0)
        vcpu.set_cpuid(kvm.supported_cpuid())
        set_up_processor(vcpu, shim, shim.windows[0], xsave=False)
        tables = [_RAM_GPA + index * PAGE_SIZE for index in range(5)]
        for table, below, shift in zip(tables, tables[1:], (39, 30, 21, 12), strict=False):
            memory.u64[(table >> 3) + (_CODE_VA >> shift & 511)] = below | _ENTRY
        memory.u64[(tables[0] >> 3) + slot] = shim.kernel_slot
        memory.write(tables[-1], _SYSCALL)
        flat(vcpu.sregs.cs, Selector.RING3_CS64, 11, 3, long=True)
        flat(vcpu.sregs.ss, Selector.RING3_SS, 3, 3, long=False)
        vcpu.sregs.cr3 = tables[0]
        vcpu.regs.rip, vcpu.regs.rsp, vcpu.regs.rflags = _CODE_VA, _CODE_VA + PAGE_SIZE, _RFLAGS
        reason = -errno.EINTR
        for _ in range(_TRIES):
            reason = vcpu.enter()
            if reason != -errno.EINTR:
                break
        entry = shim.windows[0].page_va(Page.ENTRY)
        if reason != Exit.IO or vcpu.run.io.port != Port.HYPERCALL or not 0 <= vcpu.regs.rip - entry < PAGE_SIZE:
            return None
        return bool(vcpu.sregs.ss.dpl)
    finally:
        if vcpu is not None:
            vcpu.close()
        vm.close()
        for thing in (memory, frames):
            with suppress(BufferError):  # the shim's views keep the memory mapped until they go
                thing.close()
