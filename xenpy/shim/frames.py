"""The frames by which a PV kernel is called and goes back, as in-guest code handles them.

Ref: xen/include/public/arch-x86/xen-x86_64.h, struct iret_context; xen.h, struct vcpu_info; AMD64 APM volume 1, section 3.1.4
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.asm import mem
from xenpy.asm.registers import r11, rax

if TYPE_CHECKING:
    from xenpy.asm import Assembler, Mem

IRET_RAX, IRET_R11, IRET_RCX, IRET_FLAGS, IRET_RIP, IRET_CS, IRET_RFLAGS, IRET_RSP, IRET_SS = range(0, 72, 8)
"""Offsets in struct iret_context."""
PENDING, MASK, CR2 = 0, 1, 16
"""Offsets in struct vcpu_info."""

RFLAGS_TF_BIT: Final = 8
RFLAGS_IF_BIT: Final = 9
RFLAGS_DF_BIT: Final = 10
IRET_SET: Final = 1 << 1 | 1 << RFLAGS_IF_BIT
IRET_CLEAR: Final = 3 << 12 | 1 << 14 | 1 << 17 | 1 << 19 | 1 << 20
"""IOPL, NT, VM, VIF, VIP: what an IRET of the guest's does not load."""
BOUNCED_CLEAR: Final = 3 << 12 | 1 << RFLAGS_IF_BIT
"""What RFLAGS in a frame for the kernel tell of virtual state, not of the processor's: IOPL and IF."""
HANDLER_CLEAR: Final = 1 << RFLAGS_TF_BIT | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 18
"""TF, NT, RF, VM, AC: what a handler starts without."""
FRAME_ALIGNMENT: Final = 16


def take_mask(a: Assembler, vcpu_info: Mem) -> None:
    """Emit: mask events, or not, as the RFLAGS in R11 say that IRET is to load, and make those what the processor loads. RAX is lost.

    Goes to `iret_by_us` for events that wait to be delivered.
    """
    a.mov(rax, vcpu_info)
    a.bt(r11, RFLAGS_IF_BIT)
    a.jnc("iret_masked")
    a.cmp(mem(rax, PENDING), 0, size=1)
    a.jnz("iret_by_us")
    a.mov(mem(rax, MASK), 0, size=1)
    a.jmp("iret_unmasked")
    a.label("iret_masked")
    a.mov(mem(rax, MASK), 1, size=1)
    a.label("iret_unmasked")
    a.and_(r11, ~IRET_CLEAR)
    a.or_(r11, IRET_SET)
