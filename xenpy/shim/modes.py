"""Changes between the guest's kernel and its user mode that in-guest code carries out by itself, where SYSCALL leads to ring 3.

Ring 3 of the kernel sees the window, and builds or reads the kernel's frames itself. What it cannot do is change page tables: for that
it traps to ring 0 by INT3, which does as little as it can, for on the hosts that need all this every instruction there is interpreted.
The INT3 gates of the two views of a window lead to different handlers, so that each needs to know its own callers only.

Ref: xen/include/public/arch-x86/xen-x86_64.h, struct iret_context
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.asm import mem
from xenpy.asm.registers import (
    al,
    cl,
    cr2,
    cr3,
    eax,
    ecx,
    r11,
    rax,
    rcx,
    rsp,
)  # fmt: skip
from xenpy.shim.calls import low16
from xenpy.shim.frames import (
    BOUNCED_CLEAR,
    CR2,
    IRET_CS,
    IRET_FLAGS,
    IRET_R11,
    IRET_RAX,
    IRET_RCX,
    IRET_RFLAGS,
    IRET_RIP,
    IRET_RSP,
    IRET_SS,
    MASK,
    RFLAGS_IF_BIT,
    RFLAGS_TF_BIT,
    take_mask,
)
from xenpy.shim.layout import Page, Selector, State
from xenpy.shim.recording import Recorder

if TYPE_CHECKING:
    from xenpy.asm import Assembler, Mem
    from xenpy.shim.code import Guest

_IRET: Final = 23
_MOV_EAX_ES: Final = b"\x8c\xc0"
_MOV_EAX_DS: Final = b"\x8c\xd8"
_BP, _PF = 3, 14
_RPL: Final = 3


class Modes:
    """Emits the code. `state` makes the operand of a State word."""

    def __init__(self, a: Assembler, guest: Guest) -> None:
        self.a = a
        self.guest = guest
        self.recorder = Recorder(a, self.state, "iret")

    def state(self, word: int) -> Mem:
        """Return the operand of a word of the STATE page."""
        return mem(rip=self.guest.state_va + word * 8)

    def _stack(self, word: int) -> Mem:
        """Return the operand of a word of ring 0's stack, counted from its top."""
        return mem(rip=self.guest.window_va + (Page.STACK + 1) * 4096 - word * 8)

    # -- ring 0 -------------------------------------------------------------------------------------------------------

    def emit_ring0(self) -> None:
        """Emit the handlers `bp_kernel`, `bp_user` and `pf_user`."""
        a = self.a
        a.align(16)
        a.label("bp_kernel")  # on the stack: RIP, CS, RFLAGS, RSP, SS
        # Windows differ above their low 21 bits only, and nothing of the guest's is in the slot.
        a.cmp(mem(rsp, 4), low16(self.guest.window_va >> 32), size=2)
        a.jnz("bp_generic")
        a.cmp(mem(rsp), low16(a.address("trap_cr3") + 1), size=2)
        a.jnz("bp_not_cr3")
        a.mov(rax, self.state(State.KERNEL_CR3))
        a.mov(cr3, rax)
        a.iretq()
        a.label("bp_not_cr3")
        a.cmp(mem(rsp), low16(a.address("trap_user") + 1), size=2)
        a.jnz("bp_not_user")
        a.mov(rax, self.state(State.USER_CR3))
        a.mov(cr3, rax)
        a.lea(rsp, self.state(State.USER_FRAME))
        a.mov(rax, self.state(State.SAVED_RAX))
        a.label("iret_user")
        a.iretq()
        a.label("bp_not_user")
        a.cmp(mem(rsp), low16(a.address("trap_invlpg") + 1), size=2)
        a.jnz("bp_generic")
        a.mov(rax, self.state(State.INVLPG))
        a.invlpg(mem(rax))
        a.iretq()
        a.label("bp_generic")
        a.out(_BP, al)
        a.jmp("bp_generic")

        a.label("bp_user")
        a.cmp(mem(rsp), low16(self.guest.user_trap_va + 1), size=2)
        a.jnz("bp_generic")
        a.mov(self.state(State.SAVED_RAX), rax)
        a.mov(rax, self.state(State.KERNEL_CR3))
        a.mov(cr3, rax)
        a.lea(rax, mem(rip="user_syscall"))
        a.mov(mem(rsp), rax)
        a.iretq()

        a.label("pf_user")  # on the stack: error code, RIP, CS, RFLAGS, RSP, SS
        a.mov(self.state(State.SAVED_RAX), rax)
        a.mov(rax, cr2)
        a.mov(self.state(State.CR2), rax)
        a.mov(rax, self.state(State.KERNEL_CR3))
        a.mov(cr3, rax)
        a.lea(rsp, self.state(State.STUB_FRAME))
        a.iretq()

    # -- ring 3 -------------------------------------------------------------------------------------------------------

    def emit_ring3(self) -> None:
        """Emit `iret`, where the kernel's IRET comes with its frame on the stack, and where user mode arrives."""
        self._iret()
        self._user_syscall()
        self._user_fault()

    def _swap_gs(self) -> None:
        """Emit: exchange the GS bases of the two modes. RAX and RCX are lost."""
        a = self.a
        a.rdgsbase(rax)
        a.mov(rcx, self.state(State.OTHER_GS))
        a.wrgsbase(rcx)
        a.mov(self.state(State.OTHER_GS), rax)

    def _iret(self) -> None:
        a = self.a
        a.align(16)
        a.label("iret")
        a.cmp(self.state(State.SLOW), 0, size=8)
        a.jnz("iret_by_us")
        a.mov(rax, self.state(State.VCPU_INFO))
        a.test(rax, rax)
        a.jz("iret_by_us")
        a.test(mem(rsp, IRET_FLAGS), -1, size=4)
        a.jnz("iret_by_us")
        a.mov(r11, mem(rsp, IRET_RFLAGS))
        a.bt(r11, RFLAGS_TF_BIT)
        a.jc("iret_by_us")  # RET would be the step, not the instruction that it leads to
        self.recorder.draft(_IRET, "iret_by_us")
        take_mask(a, self.state(State.VCPU_INFO))
        a.mov(eax, mem(rsp, IRET_CS))
        a.and_(eax, 3)
        a.cmp(eax, 3)
        a.jz("iret_to_user")

        # RET loads none of these, so that others would not fault. Frames of faults show the host's, which Linux has for user mode.
        a.movzx(eax, mem(rsp, IRET_CS), size=2)
        a.cmp(eax, Selector.RING3_CS64 & ~_RPL)
        a.jz("iret_cs_known")
        a.or_(eax, _RPL)
        a.cmp(eax, self.state(State.USER_CS64))
        a.jnz("iret_by_us")
        a.label("iret_cs_known")
        a.movzx(eax, mem(rsp, IRET_SS), size=2)
        a.cmp(eax, Selector.RING3_SS)
        a.jz("iret_ss_known")
        a.or_(eax, _RPL)
        a.cmp(eax, self.state(State.USER_SS))
        a.jnz("iret_by_us")
        a.label("iret_ss_known")
        a.mov(rax, mem(rsp, IRET_RIP))
        a.sar(rax, 47)
        a.inc(rax)
        a.cmp(rax, 1)
        a.ja("iret_by_us")
        self.recorder.commit()
        a.mov(rax, mem(rsp, IRET_RSP))  # to the kernel: by its own stack, below which nothing of its is
        a.mov(rcx, mem(rsp, IRET_RIP))
        a.mov(mem(rax, -8), rcx)
        a.mov(mem(rax, -16), r11)
        a.sub(rax, 16)
        a.mov(self.state(State.SCRATCH), rax)
        a.mov(r11, mem(rsp, IRET_R11))
        a.mov(rcx, mem(rsp, IRET_RCX))
        a.mov(rax, mem(rsp, IRET_RAX))
        a.mov(rsp, self.state(State.SCRATCH))
        a.popfq()
        a.ret()

        a.label("iret_to_user")
        a.cmp(self.state(State.USER_CR3), 0, size=8)
        a.jz("iret_by_us")
        a.movzx(eax, mem(rsp, IRET_CS), size=2)
        a.cmp(eax, self.state(State.USER_CS64))
        a.jnz("iret_to_32_bits")
        a.movzx(eax, mem(rsp, IRET_SS), size=2)
        a.or_(eax, _RPL)
        a.cmp(eax, self.state(State.USER_SS))
        a.jnz("iret_by_us")
        self.recorder.commit()
        a.mov(rax, mem(rsp, IRET_RIP))
        a.mov(self.state(State.USER_FRAME), rax)
        a.mov(eax, mem(rsp, IRET_CS))
        a.mov(self.state(State.USER_FRAME + 1), rax)
        a.mov(self.state(State.USER_FRAME + 2), r11)
        a.mov(rax, mem(rsp, IRET_RSP))
        a.mov(self.state(State.USER_FRAME + 3), rax)
        a.mov(eax, mem(rsp, IRET_SS))
        a.or_(eax, 3)
        a.mov(self.state(State.USER_FRAME + 4), rax)
        a.mov(rax, mem(rsp, IRET_RAX))
        a.mov(self.state(State.SAVED_RAX), rax)
        a.mov(self.state(State.MODE), 1, size=8)
        a.mov(self.state(State.LOADED_CR3), 0, size=8)
        self._swap_gs()
        a.mov(r11, mem(rsp, IRET_R11))
        a.mov(rcx, mem(rsp, IRET_RCX))
        a.label("trap_user")
        a.int3()

        # Hosts that run guests in user mode may interpret such code, with the segments that KVM knows of: not those loaded in ring 3.
        a.label("iret_to_32_bits")
        a.data(_MOV_EAX_ES)
        a.shl(eax, 16)
        a.mov(ecx, eax)
        a.data(_MOV_EAX_DS)
        a.or_(eax, ecx)
        a.mov(self.state(State.DATA_SEGMENTS), rax)
        a.label("iret_by_us")
        a.mov(eax, _IRET)
        a.jmp("call_us")
        a.label("iret_end")

    def _frame_flags(self, label: str) -> None:
        """Emit: turn the RFLAGS in R11 into those of a frame; leave the mask of events in RCX as the frame's CS has it.

        RAX then points to vcpu_info.
        """
        a = self.a
        a.and_(r11, ~BOUNCED_CLEAR)
        a.mov(rax, self.state(State.VCPU_INFO))
        a.movzx(ecx, mem(rax, MASK), size=1)
        a.test(ecx, ecx)
        a.jnz(label)
        a.or_(r11, 1 << RFLAGS_IF_BIT)
        a.label(label)
        a.shl(rcx, 32)

    def _user_syscall(self) -> None:
        """Emit `user_syscall`: RCX and R11 hold user mode's RIP and RFLAGS, State.SAVED_RAX its RAX."""
        a = self.a
        a.align(16)
        a.label("user_syscall")
        a.mov(self.state(State.SCRATCH), rsp)
        a.mov(rsp, self.state(State.KERNEL_SP))
        a.and_(rsp, -16)
        a.push(Selector.RING3_SS)
        a.push(self.state(State.SCRATCH))
        a.mov(self.state(State.SCRATCH), r11)
        a.mov(self.state(State.SAVED_RCX), rcx)
        self._frame_flags("syscall_masked")
        a.push(r11)
        a.or_(rcx, Selector.RING3_CS64)
        a.push(rcx)
        a.push(self.state(State.SAVED_RCX))
        a.push(self.state(State.SCRATCH))
        a.push(self.state(State.SAVED_RCX))
        a.mov(self.state(State.MODE), 0, size=8)
        a.mov(rcx, self.state(State.SYSCALL_MASKS))
        a.or_(mem(rax, MASK), cl)
        self._swap_gs()
        a.mov(rcx, self.state(State.SAVED_RCX))
        a.mov(r11, self.state(State.SCRATCH))
        a.mov(rax, self.state(State.SAVED_RAX))
        a.cld()
        a.jmp(self.state(State.SYSCALL_HANDLER))

    def _user_fault(self) -> None:
        """Emit `user_fault`: the frame is on ring 0's stack, State.CR2 and State.SAVED_RAX hold the rest."""
        a = self.a
        a.align(16)
        a.label("user_fault")
        a.mov(rsp, self.state(State.KERNEL_SP))
        a.and_(rsp, -16)
        for word in (1, 2):  # SS, RSP
            a.push(self._stack(word))
        a.mov(self.state(State.SAVED_RCX), rcx)
        a.mov(self.state(State.SCRATCH), r11)
        a.mov(r11, self._stack(3))
        self._frame_flags("fault_masked")
        a.push(r11)
        a.or_(rcx, self._stack(4))
        a.push(rcx)
        a.push(self._stack(5))
        a.push(self._stack(6))
        a.push(self.state(State.SCRATCH))
        a.push(self.state(State.SAVED_RCX))
        a.mov(rcx, self.state(State.CR2))
        a.mov(mem(rax, CR2), rcx)
        a.mov(rcx, self.state(State.FAULT_MASKS))
        a.or_(mem(rax, MASK), cl)
        a.mov(self.state(State.MODE), 0, size=8)
        self._swap_gs()
        a.mov(rcx, self.state(State.SAVED_RCX))
        a.mov(r11, self.state(State.SCRATCH))
        a.mov(rax, self.state(State.SAVED_RAX))
        a.jmp(self.state(State.FAULT_HANDLER))
