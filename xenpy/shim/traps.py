"""Instructions of a PV kernel that fault and are emulated within the guest, where SYSCALL stays in ring 3.

IN and OUT of ports behind which there is nothing, CPUID by the prefix that asks for it to be emulated, and with one vCPU MOV and XCHG of 64
bits to entries of level-1 tables. Ring 0 does no more than note the fault and go on in ring 3, on a stack at the end of the STATE page;
the registers are pushed so that RBP points to them by their numbers. What is not done here is left to us as it was, by OUT to Port.TRAP:
so is an access to the guest's memory that faults, whose handler goes on at `trap_by_us`.
"""

from __future__ import annotations

from typing import Final

from xenpy.abi.debugcons import DEBUG_PORT
from xenpy.asm import mem
from xenpy.asm.registers import (
    al,
    cr2,
    eax,
    ecx,
    edi,
    edx,
    r8,
    r8d,
    r9,
    r9d,
    r10,
    r11,
    r12,
    r13,
    r14,
    r15,
    rax,
    rbp,
    rbx,
    rcx,
    rdi,
    rdx,
    rsi,
    rsp,
)
from xenpy.memory import PAGE_SIZE
from xenpy.pv.emulate.cpuid_prefix import FORCED_CPUID
from xenpy.pv.emulate.ports import PCI_CONFIG_ADDRESS, PIT_CHANNEL_2, RTC_INDEX
from xenpy.pv.mmu import layout as frames
from xenpy.pv.mmu.layout import FrameType
from xenpy.pv.paging import PTE_FRAME, PTE_PRESENT
from xenpy.shim.calls import Calls, low16
from xenpy.shim.frames import RFLAGS_TF_BIT
from xenpy.shim.layout import ANY_SUBLEAF, CPUID_LEAVES, Page, Port, Selector, State

UD, GP, PF = 6, 13, 14
ERRORS: Final = {GP: 0, PF: 7}
"""The error codes of what may be emulated: that of an instruction, and of a store to what is present and read-only."""
NAMES: Final = {UD: "ud", GP: "gp", PF: "pf"}
EMULATED: Final = frozenset(NAMES)
_SS, _RSP, _RFLAGS, _CS, _RIP, _ERROR = range(1, 7)
"""Words of ring 0's stack, counted from its top."""
_WORD: Final = 8
_FRAME: Final = 5
"""Words of a frame for IRETQ."""
_RAX, _RCX, _RDX, _RBX = range(4)
_NUMBERED: Final = (rax, rcx, rdx, rbx, None, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15)
"""Registers by their numbers; that of RSP is found elsewhere."""
_OPERAND_SIZE: Final = 0x66
_PORT_MASK, _PORT_OPCODE = 0xF4, 0xE4
"""IN and OUT are e4 to e7 and ec to ef."""
_REX_W_MASK, _REX_W = 0xFA, 0x48
"""A prefix with W, and maybe R and B: without X."""
_XCHG, _MOV = 0x87, 0x89
_CPUID_WORDS: Final = 3


def vectors(vcpus: int) -> tuple[int, ...]:
    """Return the exceptions of a kernel of so many vCPUs that come here first."""
    return (UD, GP, PF) if vcpus == 1 else (UD, GP)


class Traps(Calls):
    """Emits the code; `update_entry` and `walk` are emitted elsewhere."""

    # -- ring 0 -------------------------------------------------------------------------------------------------------

    def emit_ring0(self, exceptions: int, stub_size: int) -> None:
        """Emit the handlers `ud_kernel`, `gp_kernel` and, with one vCPU, `pf_kernel`.

        Those that call us are at `exceptions`, each of `stub_size` bytes.
        """
        a = self.a
        for index, vector in enumerate(vectors(self.guest.vcpus)):
            name = NAMES[vector]
            generic = exceptions + vector * stub_size
            a.align(16)
            a.label(f"{name}_kernel")  # on the stack: error code if there is one, RIP, CS, RFLAGS, RSP, SS
            rip = 0
            if vector in ERRORS:
                rip = _WORD
                a.cmp(mem(rsp), ERRORS[vector], size=4)
                a.jnz(generic)
            a.cmp(mem(rsp, rip + 4), low16(self.guest.window_va >> 32), size=2)
            a.jz(generic)  # in-guest code's own
            a.mov(self.state(State.TRAP_RAX), rax)
            if vector == PF:
                a.mov(rax, cr2)
                a.mov(self.state(State.TRAP_CR2), rax)
            a.lea(rsp, mem(rip=self.guest.state_va + (State.TRAP_STUBS + index * _FRAME) * _WORD))
            a.iretq()

    # -- ring 3 -------------------------------------------------------------------------------------------------------

    def _ring0_stack(self, word: int) -> int:
        return self.guest.window_va + (Page.STACK + 1) * PAGE_SIZE - word * _WORD

    def emit_ring3(self) -> None:
        """Emit `trap_ud`, `trap_gp` and, with one vCPU, `trap_pf`, where ring 0 goes on, and all up to `trap_end`."""
        a = self.a
        a.align(16)
        for vector in vectors(self.guest.vcpus):
            name = NAMES[vector]
            a.label(f"trap_{name}")
            a.mov(self.state(State.TRAP_VECTOR), vector, size=8)
            a.call("trap_enter")
            a.jmp(f"emulate_{name}")
        self._enter()
        self._ports()
        self._cpuid()
        if PF in vectors(self.guest.vcpus):
            self._stores()
        self._leave_trap()

    def _enter(self) -> None:
        """Emit `trap_enter`: save registers, and what ring 0's stack tells. RSI then points to the instruction."""
        a = self.a
        a.label("trap_enter")
        a.pop(self.state(State.SCRATCH))
        for number in reversed(range(len(_NUMBERED))):
            register = _NUMBERED[number]
            if number == _RAX:
                a.push(self.state(State.TRAP_RAX))
            elif register is None:
                a.push(mem(rip=self._ring0_stack(_RSP)))
            else:
                a.push(register)
        a.mov(rbp, rsp)
        a.cld()
        for word, where in (
            (State.TRAP_RIP, _RIP), (State.TRAP_CS, _CS), (State.TRAP_RFLAGS, _RFLAGS), (State.TRAP_RSP, _RSP),
            (State.TRAP_SS, _SS), (State.TRAP_ERROR, _ERROR),
        ):  # fmt: skip
            a.mov(rax, mem(rip=self._ring0_stack(where)))
            a.mov(self.state(word), rax)
        a.label("trap_entered")
        a.cmp(self.state(State.RECORD), 0, size=8)
        a.jnz("trap_by_us")  # somebody listens
        a.cmp(self.state(State.TRAP_CS), Selector.RING3_CS64, size=2)
        a.jnz("trap_by_us")
        a.mov(rax, self.state(State.TRAP_RFLAGS))
        a.bt(rax, RFLAGS_TF_BIT)
        a.jc("trap_by_us")
        a.mov(rsi, self.state(State.TRAP_RIP))
        a.jmp(self.state(State.SCRATCH))

    def _leave_trap(self) -> None:
        a = self.a
        a.label("trap_done")  # RDX: the instruction's length
        a.add(self.state(State.TRAP_RIP), rdx)
        self._restore_all()
        a.push(self.state(State.TRAP_RFLAGS))
        a.popfq()
        a.mov(rsp, self.state(State.TRAP_RSP))
        a.jmp(self.state(State.TRAP_RIP))
        a.label("trap_by_us")
        self._restore_all()
        a.label("trap_call_us")
        a.out(Port.TRAP, eax)
        a.jmp("trap_call_us")
        a.label("trap_end")

    def _restore_all(self) -> None:
        a = self.a
        a.mov(rsp, rbp)
        for register in _NUMBERED:
            if register is None:
                a.lea(rsp, mem(rsp, _WORD))
            else:
                a.pop(register)

    # -- IN and OUT ---------------------------------------------------------------------------------------------------

    def _ports(self) -> None:
        """Emit `emulate_gp`. ECX is the operand's size, EDX the instruction's length, R9D the port."""
        a = self.a
        a.label("emulate_gp")
        a.cmp(self.state(State.PORTS_ALLOWED), 0, size=8)
        a.jz("trap_by_us")
        a.mov(rax, mem(rsi))
        a.mov(edx, 1)
        a.mov(ecx, 4)
        a.cmp(al, _OPERAND_SIZE)
        a.jnz("port_opcode")
        a.shr(rax, 8)
        a.inc(edx)
        a.mov(ecx, 2)
        a.label("port_opcode")
        a.mov(r9d, eax)
        a.and_(r9d, _PORT_MASK)
        a.cmp(r9d, _PORT_OPCODE)
        a.jnz("trap_by_us")
        a.test(al, 1)
        a.jnz("port_sized")
        a.mov(ecx, 1)
        a.label("port_sized")
        a.movzx(r9d, mem(rbp, _RDX * _WORD), size=2)
        a.test(al, 8)
        a.jnz("port_known")
        a.inc(edx)
        a.mov(r9d, eax)
        a.shr(r9d, 8)
        a.and_(r9d, 0xFF)
        a.label("port_known")
        a.cmp(r9d, PCI_CONFIG_ADDRESS)
        a.jz("port_of_pci")
        a.cmp(r9d, DEBUG_PORT)
        a.jz("trap_by_us")
        a.cmp(r9d, RTC_INDEX)
        a.ja("port_of_nothing")
        a.cmp(r9d, PIT_CHANNEL_2 - 4)  # a wide access from below reaches into the timer
        a.ja("trap_by_us")
        a.label("port_of_nothing")
        a.test(al, 2)
        a.jnz("trap_done")
        a.mov(r10, -1)
        a.label("port_answer")
        a.cmp(ecx, 2)
        a.jb("port_answer_byte")
        a.jz("port_answer_word")
        a.shl(r10, 32)
        a.shr(r10, 32)
        a.mov(mem(rbp, _RAX * _WORD), r10)
        a.jmp("trap_done")
        a.label("port_answer_word")
        a.or_(mem(rbp, _RAX * _WORD), -1, size=2)
        a.jmp("trap_done")
        a.label("port_answer_byte")
        a.or_(mem(rbp, _RAX * _WORD), -1, size=1)
        a.jmp("trap_done")
        a.label("port_of_pci")  # which can be read back
        a.cmp(ecx, 4)
        a.jnz("port_of_nothing")
        a.mov(r10, self.guest.state_va + State.PCI_ADDRESS * _WORD)  # the domain's, in the first window
        a.test(al, 2)
        a.jnz("port_of_pci_write")
        a.mov(r10, mem(r10))
        a.jmp("port_answer")
        a.label("port_of_pci_write")
        a.mov(eax, mem(rbp, _RAX * _WORD))
        a.mov(mem(r10), rax)
        a.jmp("trap_done")

    # -- CPUID --------------------------------------------------------------------------------------------------------

    def _cpuid(self) -> None:
        """Emit `emulate_ud`: answer from State.CPUID, where we write down what we have been asked for."""
        a = self.a
        a.label("emulate_ud")
        a.mov(rax, mem(rsi))
        a.shl(rax, 64 - 8 * len(FORCED_CPUID))
        a.mov(rcx, int.from_bytes(FORCED_CPUID, "little") << 64 - 8 * len(FORCED_CPUID))
        a.cmp(rax, rcx)
        a.jnz("trap_by_us")
        a.mov(eax, mem(rbp, _RAX * _WORD))
        a.mov(ecx, eax)
        a.sub(rcx, self.state(State.NO_LEAF))
        a.cmp(rcx, self.state(State.NO_LEAF_COUNT))
        a.jb("leaf_of_nothing")
        a.mov(ecx, mem(rbp, _RCX * _WORD))
        a.shl(rcx, 32)
        a.or_(rax, rcx)
        a.lea(rdi, self.state(State.CPUID))
        a.mov(rcx, self.state(State.CPUID_COUNT))
        a.cmp(rcx, CPUID_LEAVES)
        a.ja("trap_by_us")
        a.mov(edx, eax)
        a.mov(rsi, ANY_SUBLEAF << 32)
        a.or_(rdx, rsi)
        a.label("next_leaf")
        a.dec(rcx)
        a.js("trap_by_us")
        a.cmp(rax, mem(rdi))
        a.jz("leaf_found")
        a.cmp(rdx, mem(rdi))
        a.jz("leaf_found")
        a.add(rdi, _CPUID_WORDS * _WORD)
        a.jmp("next_leaf")
        a.label("leaf_found")
        for index, number in enumerate((_RAX, _RBX, _RCX, _RDX)):
            a.mov(eax, mem(rdi, _WORD + index * 4))
            a.mov(mem(rbp, number * _WORD), rax)
        a.label("leaf_known")
        a.mov(edx, len(FORCED_CPUID))
        a.jmp("trap_done")
        a.label("leaf_of_nothing")
        for number in (_RAX, _RBX, _RCX, _RDX):
            a.mov(mem(rbp, number * _WORD), 0, size=8)
        a.jmp("leaf_known")

    # -- stores to page tables ------------------------------------------------------------------------------------------

    def _stores(self) -> None:
        """Emit `emulate_pf`: of a register to [register], and XCHG of both, 64 bits each."""
        a = self.a
        a.label("emulate_pf")
        a.mov(rax, mem(rsi))
        a.mov(ecx, eax)
        a.and_(ecx, _REX_W_MASK)
        a.cmp(ecx, _REX_W)
        a.jnz("trap_by_us")
        a.mov(r9d, eax)  # the ModRM byte
        a.shr(r9d, 16)
        a.and_(r9d, 0xFF)
        a.cmp(r9d, 0x40)
        a.jae("trap_by_us")
        a.mov(ecx, r9d)
        a.and_(ecx, 7)
        a.sub(ecx, 4)
        a.cmp(ecx, 1)
        a.jbe("trap_by_us")  # a SIB byte, or an address relative to RIP
        a.mov(ecx, r9d)
        a.and_(ecx, 7)
        a.mov(edx, eax)
        a.and_(edx, 1)
        a.shl(edx, 3)
        a.or_(ecx, edx)
        a.mov(rdi, mem(rbp, scale=(rcx, 8)))  # the address
        a.mov(ecx, r9d)
        a.shr(ecx, 3)
        a.mov(edx, eax)
        a.and_(edx, 4)
        a.shl(edx, 1)
        a.or_(ecx, edx)
        a.lea(rdx, mem(rbp, scale=(rcx, 8)))
        a.mov(self.state(State.TRAP_OPERAND), rdx)
        a.mov(r9, mem(rdx))
        a.shr(eax, 8)
        a.and_(eax, 0xFF)
        a.mov(self.state(State.TRAP_OPCODE), rax)
        a.cmp(eax, _XCHG)
        a.jz("store_known")
        a.cmp(eax, _MOV)
        a.jnz("trap_by_us")
        a.label("store_known")
        a.cmp(rdi, self.state(State.TRAP_CR2))
        a.jnz("trap_by_us")
        a.test(edi, _WORD - 1)
        a.jnz("trap_by_us")
        a.call("walk")
        a.jc("trap_by_us")
        a.mov(rax, self.guest.ram_start)
        a.sub(r8, rax)
        a.mov(rax, self.guest.ram_end - self.guest.ram_start)
        a.cmp(r8, rax)
        a.jae("trap_by_us")
        a.mov(rax, self.guest.direct_va)
        a.mov(r8, mem(r8, scale=(rax, 1)))
        a.test(r8d, PTE_PRESENT)
        a.jz("trap_by_us")
        a.mov(rax, PTE_FRAME)
        a.and_(r8, rax)
        self._frame_word(rsi, r8, "trap_by_us")
        a.mov(rax, mem(rsi))
        a.shr(rax, frames.TYPE_SHIFT)
        a.and_(eax, 7)
        a.cmp(eax, FrameType.L1)
        a.jnz("trap_by_us")
        a.and_(edi, PAGE_SIZE - _WORD)
        a.or_(r8, rdi)
        a.call("update_entry")
        a.jc("trap_by_us")
        a.mov(edx, 3)
        a.cmp(self.state(State.TRAP_OPCODE), _XCHG, size=8)
        a.jnz("trap_done")
        a.mov(rax, self.state(State.TRAP_OPERAND))
        a.mov(mem(rax), r10)
        a.jmp("trap_done")
