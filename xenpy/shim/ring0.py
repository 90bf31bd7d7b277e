"""The in-guest code where SYSCALL leads to ring 0: hypercalls, and the ways between the guest's kernel and its user mode.

SYSCALL and exceptions come to ring 0's own stack, where a frame for IRETQ is made up or lies already, at its top. The kernel is called by
SYSRETQ, as Xen does it: RCX and R11 are in the frame on the kernel's stack. Nothing here trusts a pointer of the guest's:

- one into the hypervisor's slots is not followed, nor used as a stack (`_guard`);
- an access that faults has us go on at the recovery point of the stretch that it is in (RECOVERIES), from where all is left to us with
  the guest's registers as they were. Until its last access to guest memory a stretch changes nothing for good;
- ring 0 never has the guest's stack when something may fault: it is loaded right before SYSRETQ, whose target is known to be canonical.
  That is why #DB has a stack of its own: a breakpoint on the operand of MOV SS comes when SYSCALL has been executed.

Ref: AMD64 APM volume 2, section 8.2 (#DB); volume 3, SYSCALL, SYSRET; xen/include/public/arch-x86/xen-x86_64.h, struct iret_context
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.asm import mem
from xenpy.asm.registers import (
    ax,
    cl,
    cr2,
    cr3,
    eax,
    ecx,
    r11,
    r11d,
    rax,
    rcx,
    rdx,
    rsp,
)  # fmt: skip
from xenpy.memory import PAGE_SIZE
from xenpy.shim.frames import (
    BOUNCED_CLEAR,
    CR2,
    FRAME_ALIGNMENT,
    HANDLER_CLEAR,
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
    RFLAGS_DF_BIT,
    RFLAGS_IF_BIT,
    take_mask,
)
from xenpy.shim.layout import Page, Port, Selector, State
from xenpy.shim.recording import Recorder
from xenpy.shim.ring0_calls import MSR_GS_BASE, RSP, WORD, XEN_SHIFT, XEN_START, Ring0Calls

if TYPE_CHECKING:
    from xenpy.asm import Assembler, Mem
    from xenpy.asm.registers import Reg
    from xenpy.shim.code import Guest

_IRET: Final = 23
_NON_CANONICAL_BITS: Final = 16
_SS, _RSP, _RFLAGS, _CS, _RIP, _ERROR = 1, RSP, *range(3, 7)
"""Words of ring 0's stack, counted from its top."""
_PRESENT_WRITE: Final = 3
_USER_FAULT: Final = 1 << 2
_RPL: Final = 3


RECOVERIES: Final = (
    ("hypercall", "hypercall_end", "give_up"),
    ("iret", "iret_end", "iret_by_us"),
    ("syscall_from_user", "syscall_built", "syscall_by_us"),
    ("pf_user", "pf_user_built", "pf_by_us"),
    ("pf_kernel", "pf_kernel_built", "pf_by_us"),
)
"""The stretches that access memory of the guest's: their first label, that behind, and where to go on when an access has faulted."""
IRETQS: Final = ("iretq_noncanonical", "iretq_kernel", "iretq_user")
"""The IRETQ instructions that go where the guest wants to."""


class Ring0:
    """Emits the code, but for the handler `page_fault` that calls us.

    What it leaves to us it does by OUT of 4 bytes to a Port, in ring 0, with all registers of the guest's but CR3.
    """

    def __init__(self, a: Assembler, guest: Guest, page_fault: int) -> None:
        self.a = a
        self.guest = guest
        self._page_fault = page_fault
        self._recorder = Recorder(a, self.state, "iret")

    def state(self, word: int) -> Mem:
        """Return the operand of a word of the STATE page."""
        return mem(rip=self.guest.state_va + word * WORD)

    def _stack(self, word: int) -> Mem:
        """Return the operand of a word of ring 0's stack, counted from its top."""
        return mem(rip=self.guest.window_va + (Page.STACK + 1) * PAGE_SIZE - word * WORD)

    def emit(self) -> None:
        """Emit the entries `syscall_from_kernel`, `syscall_from_user`, `pf_user` and `pf_kernel`, and all that they need."""
        self._hypercall()
        self._iret()
        self._user_syscall()
        self._page_faults()

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _guard(self, pointer: Reg, scratch: Reg, label: str) -> None:
        a = self.a
        a.mov(scratch, pointer)
        a.sar(scratch, XEN_SHIFT)
        a.cmp(scratch, XEN_START)
        a.jz(label)

    def _load_cr3(self, word: State) -> None:
        self.a.mov(rax, self.state(word))
        self.a.mov(cr3, rax)

    def _swap_gs(self) -> None:
        """Emit: exchange the GS bases of the two modes. RAX, RCX and RDX are lost."""
        a = self.a
        a.mov(ecx, MSR_GS_BASE)
        a.rdmsr()
        a.shl(rdx, 32)
        a.or_(rdx, rax)
        a.mov(rax, self.state(State.OTHER_GS))
        a.mov(self.state(State.OTHER_GS), rdx)
        a.mov(rdx, rax)
        a.shr(rdx, 32)
        a.wrmsr()

    def _call_us(self, label: str, port: Port) -> None:
        a = self.a
        a.label(label)
        a.out(port, eax)
        a.jmp(label)

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    def _hypercall(self) -> None:
        a = self.a
        a.align(16)
        a.label("syscall_from_kernel")
        a.mov(self._stack(_RSP), rsp)
        a.lea(rsp, self._stack(_RIP))
        a.mov(mem(rsp), rcx)
        a.cmp(eax, _IRET)
        a.jz("iret")
        a.call("hypercall")
        a.shl(rcx, _NON_CANONICAL_BITS)
        a.sar(rcx, _NON_CANONICAL_BITS)
        a.cmp(rcx, mem(rsp))
        a.jnz("sysret_fails")
        a.mov(rsp, self._stack(_RSP))
        a.sysretq()
        a.label("sysret_fails")  # in ring 0 on some processors
        a.mov(rcx, mem(rsp))
        a.mov(self._stack(_CS), Selector.RING3_CS64, size=8)
        a.mov(self._stack(_RFLAGS), r11)
        a.mov(self._stack(_SS), Selector.RING3_SS, size=8)
        a.label("iretq_noncanonical")
        a.iretq()
        Ring0Calls(a, self.guest).emit()
        a.label("hypercall_end")

    # -- IRET ---------------------------------------------------------------------------------------------------------

    def _iret(self) -> None:
        """Emit `iret`: go where the frame on the guest's stack says, unless that takes more than loading registers."""
        a = self.a
        a.align(16)
        a.label("iret")
        a.mov(rcx, self._stack(_RSP))
        a.mov(self.state(State.SCRATCH), rcx)
        self._guard(rcx, rax, "iret_by_us")
        a.cmp(self.state(State.SLOW), 0, size=8)
        a.jnz("iret_by_us")
        a.mov(rax, self.state(State.VCPU_INFO))
        a.test(rax, rax)
        a.jz("iret_by_us")
        a.test(mem(rcx, IRET_FLAGS), -1, size=4)
        a.jnz("iret_by_us")
        for word, offset in ((_RIP, IRET_RIP), (_RSP, IRET_RSP)):
            a.mov(r11, mem(rcx, offset))
            a.mov(self._stack(word), r11)
        a.movzx(r11d, mem(rcx, IRET_SS), size=2)
        a.or_(r11, _RPL)
        a.mov(self._stack(_SS), r11)
        for offset in (IRET_RAX, IRET_R11, IRET_RCX, IRET_CS):
            a.push(mem(rcx, offset))
        a.mov(r11, mem(rcx, IRET_RFLAGS))
        # There are no more accesses to the frame.
        self._recorder.draft(_IRET, "iret_by_us")
        take_mask(a, self.state(State.VCPU_INFO))
        a.mov(self._stack(_RFLAGS), r11)
        a.pop(rax)
        a.movzx(ecx, ax)
        a.or_(ecx, _RPL)
        a.mov(self._stack(_CS), rcx)
        a.and_(eax, _RPL)
        a.cmp(eax, _RPL)
        a.jz("iret_to_user")
        self._recorder.commit()
        a.pop(rcx)
        a.pop(r11)
        a.pop(rax)
        a.label("iretq_kernel")
        a.iretq()

        a.label("iret_to_user")
        a.cmp(self.state(State.USER_CR3), 0, size=8)
        a.jz("iret_by_us")
        self._recorder.commit()
        a.push(rdx)
        a.mov(self.state(State.MODE), 1, size=8)
        self._swap_gs()
        self._load_cr3(State.USER_CR3)
        for reg in (rdx, rcx, r11, rax):
            a.pop(reg)
        a.label("iretq_user")
        a.iretq()

        a.label("iret_by_us")
        a.mov(eax, _IRET)
        a.mov(rsp, self.state(State.SCRATCH))
        a.label("iret_end")
        self._call_us("call_iret", Port.HYPERCALL)

    # -- into the kernel ----------------------------------------------------------------------------------------------

    def _build_frame(self, name: str, *, words: int) -> None:
        """Emit: the part of a frame at RAX on the kernel's stack that starts with CS, from the one on ours; RDX points to vcpu_info then.

        RCX and R11 are lost, the latter to RFLAGS for the handler.
        """
        a = self.a
        at = (words - 4) * WORD
        for word, offset in ((_RSP, 2), (_SS, 3)):
            a.mov(rcx, self._stack(word))
            a.mov(mem(rax, at + offset * WORD), rcx)
        a.mov(rdx, self.state(State.VCPU_INFO))
        a.movzx(ecx, mem(rdx, MASK), size=1)
        a.mov(r11, self._stack(_RFLAGS))
        a.and_(r11, ~BOUNCED_CLEAR)
        a.test(ecx, ecx)
        a.jnz(f"{name}_masked")
        a.or_(r11, 1 << RFLAGS_IF_BIT)
        a.label(f"{name}_masked")
        a.mov(mem(rax, at + WORD), r11)
        a.shl(rcx, 32)
        a.or_(rcx, self._stack(_CS))
        a.mov(mem(rax, at), rcx)
        a.and_(r11, ~HANDLER_CLEAR)
        a.or_(r11, 1 << RFLAGS_IF_BIT)

    def _kernel_stack(self, sp: Mem, label: str, *, words: int) -> None:
        """Emit: have RAX point to a frame of so many words below a stack pointer; go to `label` where none may be. RDX is lost."""
        a = self.a
        a.cmp(self.state(State.SLOW), 0, size=8)
        a.jnz(label)
        a.cmp(self.state(State.VCPU_INFO), 0, size=8)
        a.jz(label)
        a.mov(rax, sp)
        a.and_(rax, -FRAME_ALIGNMENT)
        a.sub(rax, words * WORD)
        self._guard(rax, rdx, label)

    def _enter(self, handler: State, masks: State, *, from_user: bool) -> None:
        """Emit: go to a handler with the frame at RAX and RFLAGS in R11; RDX points to vcpu_info. The stack holds RAX and RDX."""
        a = self.a
        a.mov(self._stack(_RSP), rax)
        a.mov(rcx, self.state(masks))
        a.or_(mem(rdx, MASK), cl)
        if from_user:
            a.mov(self.state(State.MODE), 0, size=8)
            self._swap_gs()
        a.pop(rax)
        a.pop(rdx)
        a.mov(rcx, self.state(handler))
        a.mov(rsp, self._stack(_RSP))
        a.sysretq()

    def _user_syscall(self) -> None:
        """Emit `syscall_from_user`, entered with the tables of user mode."""
        a = self.a
        saved = (rcx, r11, rdx, rax)
        a.align(16)
        a.label("syscall_from_user")
        a.mov(self._stack(_RSP), rsp)
        a.lea(rsp, self._stack(_RIP))
        for reg in saved:
            a.push(reg)
        a.mov(self._stack(_CS), Selector.RING3_CS64, size=8)
        a.mov(self._stack(_SS), Selector.RING3_SS, size=8)
        a.mov(self._stack(_RFLAGS), r11)
        self._load_cr3(State.KERNEL_CR3)
        a.cmp(self.state(State.SYSCALL_HANDLER), 0, size=8)
        a.jz("syscall_by_us")
        self._kernel_stack(self.state(State.KERNEL_SP), "syscall_by_us", words=7)
        a.mov(mem(rax), rcx)
        a.mov(mem(rax, WORD), r11)
        a.mov(mem(rax, 2 * WORD), rcx)
        self._build_frame("syscall", words=7)
        a.label("syscall_built")
        a.btr(r11, RFLAGS_DF_BIT)
        self._enter(State.SYSCALL_HANDLER, State.SYSCALL_MASKS, from_user=True)

        a.label("syscall_by_us")
        a.lea(rsp, self._stack(_RIP + len(saved)))
        for reg in reversed(saved):
            a.pop(reg)
        a.mov(rsp, self._stack(_RSP))
        self._call_us("call_syscall", Port.SYSCALL)

    def _page_faults(self) -> None:
        """Emit `pf_user` and `pf_kernel`, entered by the gates of the two views of a window."""
        a = self.a
        saved = (rcx, r11, rdx, rax)
        for user in (True, False):
            name = "pf_user" if user else "pf_kernel"
            a.align(16)
            a.label(name)
            a.test(mem(rsp, 2 * WORD), _RPL, size=1)
            a.jz(self._page_fault)  # ours, at a pointer of the guest's
            for reg in saved:
                a.push(reg)
            a.mov(rax, cr2)
            a.mov(self.state(State.CR2), rax)
            if user:
                self._load_cr3(State.KERNEL_CR3)
                self._kernel_stack(self.state(State.KERNEL_SP), "pf_by_us", words=8)
            else:
                a.mov(eax, self._stack(_ERROR))
                a.and_(eax, _PRESENT_WRITE)
                a.cmp(eax, _PRESENT_WRITE)
                a.jz("pf_by_us")  # it may be a store to a page table, which is for us to carry out
                self._kernel_stack(self._stack(_RSP), "pf_by_us", words=8)
            a.mov(mem(rax), rcx)
            a.mov(mem(rax, WORD), r11)
            a.mov(ecx, self._stack(_ERROR))
            if not user:
                a.and_(ecx, ~_USER_FAULT)
            a.mov(mem(rax, 2 * WORD), rcx)
            a.mov(rcx, self._stack(_RIP))
            a.mov(mem(rax, 3 * WORD), rcx)
            if not user:
                a.and_(self._stack(_CS), ~_RPL, size=8)
            self._build_frame(name, words=8)
            a.label(f"{name}_built")
            a.mov(rcx, self.state(State.CR2))
            a.mov(mem(rdx, CR2), rcx)
            self._enter(State.FAULT_HANDLER, State.FAULT_MASKS, from_user=user)
        a.label("pf_by_us")
        a.or_(self._stack(_CS), _RPL, size=8)
        a.lea(rsp, self._stack(_ERROR + len(saved)))
        a.mov(rax, self.state(State.CR2))
        a.mov(cr2, rax)
        for reg in reversed(saved):
            a.pop(reg)
        a.jmp(self._page_fault)
