"""Hypercalls that in-guest code carries out by itself, as far as they differ where SYSCALL leads to ring 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.asm import mem
from xenpy.asm.registers import cr3, eax, ecx, edx, esi, r8d, r9d, rax, rbx, rcx, rdx, rsi, rsp
from xenpy.memory import PAGE_SIZE
from xenpy.shim.calls import SET_SEGMENT_BASE
from xenpy.shim.fast import FastCalls
from xenpy.shim.layout import Page, State

if TYPE_CHECKING:
    from xenpy.asm.registers import Reg

_MOV_GS_ESI: Final = b"\x8e\xee"
_MSR_FS_BASE: Final = 0xC000_0100
MSR_GS_BASE: Final = 0xC000_0101
XEN_SHIFT: Final = 43
XEN_START: Final = -16
"""What an address of the hypervisor's 16 level-4 slots is when shifted so."""
RSP: Final = 2
"""The word of ring 0's stack that is the guest's RSP, counted from its top."""
WORD: Final = 8
_RPL: Final = 3


class Ring0Calls(FastCalls):
    """Hypercalls in ring 0; the address behind SYSCALL is in RCX, the guest's stack in the frame."""

    def _leave(self) -> None:
        window = self.guest.window_va
        self.a.mov(rsp, mem(rip=window + (Page.STACK + 1) * PAGE_SIZE - RSP * WORD))

    def _guard(self, pointer: Reg, label: str) -> None:
        a = self.a
        a.mov(rax, pointer)
        a.sar(rax, XEN_SHIFT)
        a.cmp(rax, XEN_START)
        a.jz(label)

    def _set_fs(self) -> None:
        a = self.a
        a.push(rcx)
        a.push(rdx)
        a.mov(ecx, _MSR_FS_BASE)
        a.mov(rdx, rsi)
        a.shr(rdx, 32)
        a.mov(eax, esi)
        a.wrmsr()
        a.pop(rdx)
        a.pop(rcx)

    def _set_user_gs_selector(self) -> None:
        """Emit it for any selector. Loading one that is no good faults, and then it is for us to do."""
        a = self.a
        a.cmp(esi, _RPL)
        a.jbe("load_gs")
        a.mov(eax, esi)
        a.and_(eax, _RPL)
        a.cmp(eax, _RPL)
        a.mov(eax, SET_SEGMENT_BASE)
        a.jnz("hand_on")
        a.label("load_gs")
        self._save()
        a.mov(ecx, MSR_GS_BASE)
        a.rdmsr()
        a.mov(r8d, eax)
        a.mov(r9d, edx)
        a.data(_MOV_GS_ESI)
        self.recorder.draft(SET_SEGMENT_BASE, "gs_unrecorded")
        self.recorder.commit()
        a.xor(eax, eax)
        a.cmp(esi, _RPL)
        a.jbe("gs_loaded")  # not all processors clear the base then
        a.rdmsr()
        a.shl(rdx, 32)
        a.or_(rax, rdx)
        a.label("gs_loaded")
        a.mov(self.state(State.OTHER_GS), rax)
        a.mov(eax, r8d)
        a.mov(edx, r9d)
        a.wrmsr()
        a.jmp("done")
        a.label("gs_unrecorded")
        a.mov(eax, r8d)
        a.mov(edx, r9d)
        a.wrmsr()
        a.jmp("give_up")

    def _load_base(self) -> None:
        self.a.mov(rax, self.state(State.KERNEL_CR3))
        self.a.mov(cr3, rax)

    def _flush_page(self) -> None:
        self.a.invlpg(mem(rbx))
