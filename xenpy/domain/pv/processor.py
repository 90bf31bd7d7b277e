"""The processor state that the shim needs and the guest does not see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.kvm.constants import Sync
from xenpy.pv.paging import EFER_LMA, EFER_LME
from xenpy.shim.layout import GDT_LIMIT, Page, Selector

if TYPE_CHECKING:
    from xenpy.kvm.vcpu import KvmVcpu
    from xenpy.shim.memory import Shim, Window

_CR0: Final = 0x8005_0033
"""PG, AM, WP, NE, ET, MP, PE."""
_CR4_PAE_FXSR_XMM: Final = 1 << 5 | 1 << 9 | 1 << 10
_CR4_OSXSAVE: Final = 1 << 18
_EFER_SCE_NXE: Final = 1 << 0 | 1 << 11
_MSR_STAR, _MSR_LSTAR, _MSR_CSTAR, _MSR_FMASK = 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084
_MSR_SYSENTER_CS, _MSR_SYSENTER_ESP, _MSR_SYSENTER_EIP = 0x174, 0x175, 0x176
_FMASK: Final = 1 << 8 | 1 << 10 | 1 << 14 | 1 << 16 | 1 << 18
"""TF, DF, NT, RF, AC."""
_TSS_TYPE: Final = 11
_IDT_LIMIT: Final = 4095


def set_up_processor(kvm: KvmVcpu, shim: Shim, window: Window, *, xsave: bool) -> None:
    """Have a vCPU use the shim's tables and entries; `xsave` lets it use XSAVE."""
    sregs = kvm.sregs
    sregs.cr0, sregs.efer = _CR0, _EFER_SCE_NXE | EFER_LME | EFER_LMA
    sregs.cr4 = _CR4_PAE_FXSR_XMM | (_CR4_OSXSAVE if xsave else 0)
    sregs.gdt.base, sregs.gdt.limit = window.page_va(Page.GDT), GDT_LIMIT
    sregs.idt.base, sregs.idt.limit = window.page_va(Page.IDT), _IDT_LIMIT
    tr = sregs.tr
    tr.base, tr.limit, tr.selector, tr.type, tr.present, tr.s = (
        window.page_va(Page.TSS), shim.tss_limit, Selector.TSS, _TSS_TYPE, 1, 0,
    )  # fmt: skip
    tr.unusable = tr.g = tr.dpl = 0
    for name in ("ds", "es", "fs", "gs", "ldt"):
        segment = getattr(sregs, name)
        segment.selector, segment.base, segment.limit, segment.present, segment.unusable = 0, 0, 0, 0, 1
    sregs.ldt.type, sregs.ldt.s = 2, 0
    kvm.dirty(Sync.SREGS | Sync.REGS)
    entry = window.va
    sysenter_eip = entry + shim.code.sysenter
    kvm.set_msrs(
        {
            _MSR_STAR: Selector.RING3_CS32 << 48 | Selector.RING0_CS << 32,
            _MSR_LSTAR: entry + shim.code.syscall,
            _MSR_CSTAR: entry + shim.code.syscall32,
            _MSR_FMASK: _FMASK,
            _MSR_SYSENTER_CS: Selector.RING0_CS,
            _MSR_SYSENTER_ESP: window.stack_top,
            _MSR_SYSENTER_EIP: sysenter_eip,
        }
    )
    if kvm.get_msrs([_MSR_SYSENTER_EIP]).get(_MSR_SYSENTER_EIP) != sysenter_eip:
        # Processors that do not know SYSENTER in long mode keep half an address. It faults there, and on an emulation that does know it
        # must not lead to that half.
        kvm.set_msrs({_MSR_SYSENTER_CS: 0})
