"""Top-level page tables that in-guest code changes between by itself, and flushes of the TLB: mmuext_op's."""

from __future__ import annotations

from typing import Final

from xenpy.asm import mem
from xenpy.asm.registers import (
    cs,
    eax,
    ecx,
    r8,
    r9,
    r10,
    r10d,
    r11,
    rax,
    rbx,
    rcx,
    rdi,
    rdx,
    rsi,
    rsp,
    ss,
)
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu import layout as frames
from xenpy.pv.mmu.entries import ENTRIES, ROOT_LEVEL
from xenpy.pv.mmu.layout import FrameType
from xenpy.pv.paging import PTE_FRAME, PTE_PRESENT
from xenpy.shim.calls import Calls
from xenpy.shim.layout import State

NEW_BASEPTR, NEW_USER_BASEPTR = 5, 15
_TLB_FLUSH_LOCAL, _INVLPG_LOCAL, _TLB_FLUSH_MULTI, _INVLPG_MULTI = 6, 7, 8, 9
_TURNS: Final = 16
"""So often in a row must a kernel have gone back to the base before before that is expected of it."""


class BaseSwitches(Calls):
    """Emits `one_op`, which carries out an operation of mmuext_op, and `flush`, which does what that has put off."""

    def _new_base(self) -> None:
        """Emit `one_op`: carry out one mmuext_op of EAX (command) and R8 (argument); CF tells that nothing was done."""
        a = self.a
        a.label("one_op")
        a.cmp(eax, NEW_BASEPTR)
        a.jz("new_base")
        a.cmp(eax, NEW_USER_BASEPTR)
        a.jz("new_user_base")
        a.cmp(eax, _TLB_FLUSH_LOCAL)
        a.jz("load_later")
        a.cmp(eax, _INVLPG_LOCAL)
        a.jz("invlpg_later")
        if self.guest.vcpus == 1:  # whatever the mask, it is this one
            a.cmp(eax, _TLB_FLUSH_MULTI)
            a.jz("load_later")
            a.cmp(eax, _INVLPG_MULTI)
            a.jz("invlpg_later")
        a.jmp("fail")
        a.label("invlpg_later")
        a.test(r11, r11)
        a.jnz("load_later")
        a.mov(rbx, r8)
        a.mov(r11, 2)
        a.clc()
        a.ret()
        a.label("load_later")
        a.mov(r11, 1)
        a.clc()
        a.ret()

        a.label("new_user_base")
        a.lea(r9, self.state(State.USER_CR3))
        a.mov(r10, 0)
        a.test(r8, r8)
        a.jz("exchange_user_base")  # none: kernel threads have no user mode
        a.call("take_base")
        a.jc("fail")
        a.label("exchange_user_base")
        a.mov(rdi, mem(r9))
        a.cmp(rdi, r8)
        a.jz("base_done")
        a.mov(mem(r9), r8)
        a.jmp("drop_base")

        a.label("new_base")
        a.lea(r9, self.state(State.KERNEL_CR3))
        a.mov(r10, frames.KERNEL_ROLE)
        a.call("take_base")
        a.jc("fail")
        a.mov(rdi, mem(r9))
        a.cmp(rdi, r8)
        a.jz("load_later")
        a.mov(mem(r9), r8)
        self._change_base()

        # Take a reference to mfn R8, whose role must be R10, unless it is the table in [R9] already; R8 becomes a CR3.
        a.label("take_base")
        a.mov(rax, r8)
        a.shr(rax, PTE_FRAME.bit_length() - PAGE_SHIFT)
        a.jnz("fail")  # the word of a frame is found without these bits, but CR3 would have them
        a.shl(r8, PAGE_SHIFT)
        a.cmp(r8, mem(r9))
        a.jz("base_done")
        self._frame_word(rsi, r8, "fail")
        self._take_table("base", FrameType.L4, frames.KERNEL_ROLE, rdx, "fail", wanted=r10)
        a.label("base_done")
        a.clc()
        a.ret()

        # Give back the reference to the table that the CR3 in RDI names, 0 for none. CF if that would be its end: then we owe it.
        a.label("drop_base")
        a.mov(r10, rdi)
        a.test(rdi, rdi)
        a.jz("base_done")
        self._frame_word(rdi, r10, "base_done")
        a.mov(rax, mem(rdi))
        a.label("base_drop")
        a.mov(ecx, eax)
        a.and_(ecx, frames.COUNT_MASK)
        a.cmp(ecx, 2)
        a.jb("base_owed")
        a.mov(rcx, frames.ONE_TYPED)
        a.mov(rdx, rax)
        a.sub(rdx, rcx)
        a.lock.cmpxchg(mem(rdi), rdx)
        a.jnz("base_drop")
        a.clc()
        a.ret()
        a.label("base_owed")
        a.mov(self.state(State.OWED), r10)
        a.jmp("fail")

        a.label("flush")
        a.test(r11, r11)
        a.jz("flushed")
        a.cmp(r11, 1)
        a.jnz("flush_page")
        a.label("load_base")
        self._load_base()
        a.label("flushed")
        a.ret()
        a.label("flush_page")
        self._flush_page()
        a.ret()

    def _change_base(self) -> None:
        """Emit: go over from the base in RDI to that in R8, and give the old one's reference back."""
        a = self.a
        if self.guest.vcpus > 1:
            # Not before CR3 is loaded: another vCPU could make something else of the table that this one runs on.
            a.push(rdi)
            a.call("load_base")
            a.pop(rdi)
            a.xor(r11, r11)
            a.jmp("drop_base")
            return
        a.push(rdi)
        a.call("drop_base")
        a.pop(rax)
        a.jc("fail")
        if self.guest.ring3:
            self._keep_loaded()
        a.jmp("load_later")

    def _keep_loaded(self) -> None:
        """Emit: leave CR3 as it is while a kernel goes to and fro between two bases, where that can make no difference that matters.

        R8 is the new base and RAX the one before. A kernel that changes its own code does so thousands of times by way of a temporary
        address space, and on hosts where loading CR3 is a trap that is a third of its boot. What the new base maps, the loaded one must
        map alike; so only an access to what is not mapped tells the difference, and not after we have been called for anything: on our
        way back the new base is loaded. With one vCPU nobody takes the loaded tables apart meanwhile.

        Loading CR3 also has the processor forget translations, so no entry may have changed of which it may hold one, but that which the
        loaded base alone leads to: to that, the kernel comes by loading this base, which happens here unless the entry is as it was.
        """
        a = self.a
        a.mov(rcx, self.state(State.BASE_BEFORE))
        a.mov(self.state(State.BASE_BEFORE), rax)
        a.inc(self.state(State.BASES_IN_TURN), size=8)
        a.cmp(rcx, r8)
        a.jz("base_in_turn")
        a.mov(self.state(State.BASES_IN_TURN), 0, size=8)
        a.mov(self.state(State.PRIVATE_TABLE), 0, size=8)
        a.label("base_in_turn")
        a.cmp(self.state(State.BASES_IN_TURN), _TURNS, size=8)
        a.jb("load_later")
        a.mov(r9, self.state(State.LOADED_CR3))
        a.test(r9, r9)
        a.jz("load_later")
        a.cmp(self.state(State.STALE), 0, size=8)
        a.jnz("load_later")
        a.mov(rdx, self.state(State.CLEARED_ENTRY))
        a.cmp(r8, r9)
        a.jnz("other_base")
        a.test(rdx, rdx)
        a.jnz("load_later")
        a.jmp("keep_loaded")
        a.label("other_base")
        a.mov(rax, self.guest.direct_va - self.guest.ram_start & (1 << 64) - 1)
        a.add(r8, rax)
        a.add(r9, rax)
        a.mov(ecx, ENTRIES)
        a.label("compare_entry")
        a.mov(rax, mem(r8, -8, scale=(rcx, 8)))
        a.test(rax, rax)
        a.jz("entry_compared")
        a.cmp(rax, mem(r9, -8, scale=(rcx, 8)))
        a.jnz("load_later")
        a.label("entry_compared")
        a.dec(ecx)
        a.jnz("compare_entry")
        a.test(rdx, rdx)
        a.jz("keep_loaded")
        a.and_(rdx, -PAGE_SIZE)
        a.cmp(rdx, self.state(State.PRIVATE_TABLE))
        a.jz("keep_loaded")
        self._find_private()
        a.label("keep_loaded")  # the kernel counts on a serializing instruction, since it may have changed code
        a.lea(rcx, mem(rip="serialized"))
        a.mov(rdx, rsp)
        a.mov(eax, ss)
        a.push(rax)
        a.push(rdx)
        a.pushfq()
        a.mov(eax, cs)
        a.push(rax)
        a.push(rcx)
        a.iretq()
        a.label("serialized")
        a.clc()
        a.ret()

    def _find_private(self) -> None:
        """Emit: go to `load_later` unless the table at RDX is a level-1 table that of the two bases the loaded one alone leads to; note it.

        The bases are seen at R8 and R9, and what the other has the loaded one has too. The way is by its one entry that the other lacks,
        which is the only one of that level-3 table; the tables there have one entry each, and no references but by these.
        """
        a = self.a
        for level in (4, 3, 2):
            self._only_entry(level)
            self._frame_word(rsi, r10, "load_later")
            if level == ROOT_LEVEL:
                a.mov(ecx, ENTRIES)
                a.mov(rdi, PTE_FRAME)
                a.label("private_again")
                a.mov(rax, mem(r9, -8, scale=(rcx, 8)))
                a.cmp(rax, mem(r8, -8, scale=(rcx, 8)))
                a.jnz("private_other")
                a.xor(rax, r10)
                a.test(rax, rdi)
                a.jz("load_later")
                a.label("private_other")
                a.dec(ecx)
                a.jnz("private_again")
            else:
                a.mov(rax, mem(rsi))
                a.mov(ecx, eax)
                a.and_(ecx, frames.COUNT_MASK)
                a.shr(rax, frames.PINNED.bit_length() - 1)
                a.and_(eax, 1)
                a.inc(eax)
                a.cmp(ecx, eax)
                a.jnz("load_later")
            a.mov(r9, PTE_FRAME)
            a.and_(r9, r10)
            a.mov(rax, self.guest.direct_va - self.guest.ram_start & (1 << 64) - 1)
            a.add(r9, rax)
        a.cmp(r9, rdx)
        a.jnz("load_later")
        a.mov(self.state(State.PRIVATE_TABLE), rdx)

    def _only_entry(self, level: int) -> None:
        """Emit: have R10 be the one entry of the table at R9, at the root the one that differs from that at R8; else go to `load_later`."""
        a = self.a
        a.xor(r10d, r10d)
        a.mov(ecx, ENTRIES)
        a.label(f"private_{level}")
        a.mov(rax, mem(r9, -8, scale=(rcx, 8)))
        a.test(rax, rax)
        a.jz(f"private_next_{level}")
        if level == ROOT_LEVEL:
            a.cmp(rax, mem(r8, -8, scale=(rcx, 8)))
            a.jz(f"private_next_{level}")
        a.test(r10, r10)
        a.jnz("load_later")
        a.mov(r10, rax)
        a.label(f"private_next_{level}")
        a.dec(ecx)
        a.jnz(f"private_{level}")
        a.test(r10d, PTE_PRESENT)
        a.jz("load_later")
