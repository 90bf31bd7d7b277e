"""Page table entries that in-guest code writes by itself, and counts references for: mmu_update's and update_va_mapping's."""

from __future__ import annotations

from typing import Final

from xenpy.abi.mmu import UVMF_ALL, UVMF_FLUSHTYPE_MASK, UVMF_LOCAL
from xenpy.asm import mem
from xenpy.asm.registers import (
    eax,
    ecx,
    edi,
    edx,
    esi,
    r8,
    r8d,
    r9,
    r9b,
    r9d,
    r10,
    r10b,
    r11,
    rax,
    rbx,
    rcx,
    rdi,
    rdx,
    rsi,
)
from xenpy.pv.mmu import layout as frames
from xenpy.pv.mmu.entries import ACCESSED_DIRTY, ENTRIES, GUEST_KERNEL, L1_DISALLOWED, SIMILAR, XEN_SLOTS
from xenpy.pv.mmu.layout import FrameType
from xenpy.pv.paging import PTE_FRAME, PTE_GLOBAL, PTE_PRESENT, PTE_PSE, PTE_RW, PTE_USER
from xenpy.shim.calls import REF_LIMIT_BIT, TABLE_BITS, Calls
from xenpy.shim.layout import State

UPDATE_VA_MAPPING: Final = 14
_NORMAL, _PRESERVE_AD = 0, 2


class EntryUpdates(Calls):
    """Emits `update_entry`, which other calls use, and `update_va` with its `one_va`."""

    def _update_entry(self) -> None:
        """Emit `update_entry`: carry out one mmu_update of R8 (pointer and command) and R9; CF tells that nothing was done.

        RAX, RBX, RCX, RDX, RSI, RDI, R8 to R10 are lost.
        """
        a = self.a
        a.label("update_entry")
        a.mov(edx, 3)
        a.and_(edx, r8d)
        a.cmp(edx, _NORMAL)
        a.jz("update_known")
        a.cmp(edx, _PRESERVE_AD)
        a.jnz("fail")
        a.label("update_known")
        a.mov(rax, self.guest.ram_end - self.guest.ram_start)
        a.mov(rbx, self.guest.ram_start)
        a.sub(r8, rbx)
        a.cmp(r8, rax)
        a.jae("fail")
        a.test(r8d, 4)
        a.jnz("fail")
        a.mov(rbx, r8)
        a.shr(rbx, 12)
        a.shl(rbx, 3)
        a.mov(rax, self.guest.frames_va)
        a.add(rbx, rax)  # the table's word
        a.and_(r8, -8)
        a.mov(rax, self.guest.direct_va)
        a.add(r8, rax)  # the entry
        a.test(r9b, PTE_PRESENT)
        a.jz("bits_checked")
        a.mov(rax, L1_DISALLOWED)
        a.test(r9, rax)
        a.jnz("fail")
        a.label("bits_checked")
        # The table, which nobody else is changing
        a.lock.bts(mem(rbx), frames.LOCKED_BIT, size=8)
        a.jc("fail")
        a.mov(rax, mem(rbx))
        a.mov(rcx, rax)
        a.mov(rsi, TABLE_BITS)
        a.and_(rcx, rsi)
        a.mov(rsi, FrameType.L1 << frames.TYPE_SHIFT | frames.VALIDATED | frames.OWNED)
        a.cmp(rcx, rsi)
        a.jnz("no_l1")
        a.test(eax, frames.COUNT_MASK)
        a.jz("unlock_fail")
        self._adjust_new()
        a.mov(r10, mem(r8))
        a.xor(esi, esi)
        # What stays: the same frame with other attributes
        a.test(r9b, PTE_PRESENT)
        a.jz("drop_old")
        a.test(r10b, PTE_PRESENT)
        a.jz("take_new")
        a.mov(rax, r9)
        a.xor(rax, r10)
        a.mov(rcx, ~SIMILAR & (1 << 64) - 1)
        a.test(rax, rcx)
        a.jz("write_similar")
        a.label("take_new")
        self._take_new()
        a.label("drop_old")
        # A frame that the guest has given up meanwhile is for us to free.
        a.xor(edi, edi)
        a.test(r10b, PTE_PRESENT)
        a.jz("write")
        self._frame_word(rdi, r10, "old_is_foreign")
        a.mov(rax, mem(rdi))
        a.bt(rax, frames.OWNED.bit_length() - 1)
        a.jc("write")
        a.jmp("undo_new")
        a.label("old_is_foreign")
        a.xor(edi, edi)
        a.label("write")
        if self._keeps_bases:
            self._note_change()
        a.test(edx, edx)
        a.jnz("write_preserving")
        a.mov(mem(r8), r9)
        a.label("written")
        a.test(rdi, rdi)
        a.jz("unlock")
        self._drop_old()
        a.label("unlock")
        a.lock.btr(mem(rbx), frames.LOCKED_BIT, size=8)
        a.clc()
        a.ret()

        a.label("write_preserving")  # the processor may set these bits at any moment
        a.mov(rax, mem(r8))
        a.label("write_again")
        a.mov(rcx, rax)
        a.and_(ecx, ACCESSED_DIRTY)
        a.or_(rcx, r9)
        a.lock.cmpxchg(mem(r8), rcx)
        a.jnz("write_again")
        a.jmp("written")

        a.label("write_similar")
        a.xor(edi, edi)
        a.jmp("write")
        a.label("undo_new")
        a.test(rsi, rsi)
        a.jz("unlock_fail")
        a.xchg(rdi, rsi)
        a.mov(r10, r9)
        a.call("drop_reference")
        a.label("unlock_fail")
        a.lock.btr(mem(rbx), frames.LOCKED_BIT, size=8)
        a.label("fail")
        a.stc()
        a.ret()
        self._update_upper()

    def _adjust_new(self) -> None:
        """Emit: make the new L1 entry R9 what the hypervisor stores."""
        a = self.a
        a.test(r9b, PTE_PRESENT)
        a.jz("adjusted")
        a.test(r9b, PTE_USER)
        a.jnz("has_user")
        a.bts(r9, GUEST_KERNEL.bit_length() - 1)
        a.or_(r9, PTE_USER)
        a.label("has_user")
        a.bt(r9, GUEST_KERNEL.bit_length() - 1)
        a.jc("adjusted")
        a.or_(r9, PTE_GLOBAL)
        a.label("adjusted")

    def _note_change(self) -> None:
        """Emit: take note of translations that the processor may hold and that are not so any more, before R9 replaces R10 at R8.

        An entry that is cleared, and set to the very same again before CR3 has been loaded, is as it was. Of entries that were not
        present processors hold nothing.
        """
        a = self.a
        a.test(r10b, PTE_PRESENT)
        a.jnz("note_old")
        a.test(r9b, PTE_PRESENT)
        a.jz("noted")
        a.cmp(r8, self.state(State.CLEARED_ENTRY))
        a.jnz("noted")
        a.mov(self.state(State.CLEARED_ENTRY), 0, size=8)
        a.cmp(r9, self.state(State.CLEARED_VALUE))
        a.jz("noted")
        a.label("note_stale")
        a.mov(self.state(State.STALE), 1, size=8)
        a.jmp("noted")
        a.label("note_old")
        a.cmp(r9, r10)
        a.jz("noted")
        a.test(r9b, PTE_PRESENT)
        a.jnz("note_stale")
        a.cmp(self.state(State.CLEARED_ENTRY), 0, size=8)
        a.jnz("note_stale")
        a.mov(self.state(State.CLEARED_ENTRY), r8)
        a.mov(self.state(State.CLEARED_VALUE), r10)
        a.label("noted")

    def _update_upper(self) -> None:
        """Emit `no_l1`: fill an empty entry of an L2 with an L1 that is one already, or leave one of an L2 or L3 empty.

        RCX holds those of TABLE_BITS that the table has, RAX its whole word. What is present in an upper table is never changed here: who
        holds the hypervisor's lock relies on that.
        """
        a = self.a
        a.label("no_l1")
        for kind, label in ((FrameType.L2, "upper"), (FrameType.L3, "upper_empty")):
            a.mov(rsi, kind << frames.TYPE_SHIFT | frames.VALIDATED | frames.OWNED)
            a.cmp(rcx, rsi)
            a.jz(label)
        a.jmp("unlock_fail")
        a.label("upper_empty")
        a.test(r9, r9)
        a.jnz("unlock_fail")
        a.label("upper")
        a.test(eax, frames.COUNT_MASK)
        a.jz("unlock_fail")
        a.cmp(mem(r8), 0, size=8)
        a.jnz("unlock_fail")
        a.test(r9, r9)
        a.jz("unlock")
        a.test(r9b, PTE_PRESENT)
        a.jz("unlock_fail")
        a.test(r9d, PTE_GLOBAL)
        a.jnz("unlock_fail")
        a.or_(r9, PTE_USER)
        self._frame_word(rsi, r9, "unlock_fail")
        self._take_table("upper", FrameType.L1, 0, rdi, "unlock_fail")
        if self._keeps_bases:
            a.mov(self.state(State.PRIVATE_TABLE), 0, size=8)
        a.mov(mem(r8), r9)
        a.jmp("unlock")

    def _take_new(self) -> None:
        """Emit: take the references of the present entry R9; RSI then points to its frame's word."""
        a = self.a
        self._frame_word(rsi, r9, "unlock_fail")
        a.mov(rax, mem(rsi))
        a.label("take_again")
        a.bt(rax, frames.OWNED.bit_length() - 1)
        a.jnc("unlock_fail")
        a.bt(rax, REF_LIMIT_BIT)
        a.jc("unlock_fail")
        a.mov(rcx, frames.ONE_REF)
        a.test(r9b, PTE_RW)
        a.jz("take_readable")
        a.bt(rax, frames.LOCKED_BIT)  # who holds it may be giving it another type
        a.jc("unlock_fail")
        a.inc(rcx)
        a.add(rcx, rax)
        a.mov(rdi, rax)
        a.shr(rdi, frames.TYPE_SHIFT)
        a.and_(edi, 7)
        a.cmp(edi, FrameType.WRITABLE)
        a.jz("take_it")
        a.test(eax, frames.COUNT_MASK)
        a.jnz("unlock_fail")
        a.mov(rdi, ~(frames.TYPE_MASK | frames.VALIDATED) & (1 << 64) - 1)
        a.and_(rcx, rdi)
        a.or_(rcx, FrameType.WRITABLE << frames.TYPE_SHIFT)
        a.jmp("take_it")
        a.label("take_readable")
        a.add(rcx, rax)
        a.label("take_it")
        a.lock.cmpxchg(mem(rsi), rcx)
        a.jnz("take_again")
        a.label("taken")

    def _drop_old(self) -> None:
        """Emit: give back the references of the present entry R10, whose frame's word RDI points to."""
        a = self.a
        a.call("drop_reference")
        a.jmp("unlock")
        a.label("drop_reference")
        a.mov(rax, mem(rdi))
        a.label("drop_again")
        a.mov(rcx, rax)
        a.mov(r9, frames.ONE_REF)
        a.sub(rcx, r9)
        a.test(r10b, PTE_RW)
        a.jz("drop_it")
        a.test(eax, frames.COUNT_MASK)
        a.jz("dropped")  # not held: the guest has deceived itself with a stale translation
        a.dec(rcx)
        a.test(ecx, frames.COUNT_MASK)
        a.jnz("drop_it")
        a.mov(r9, ~(frames.TYPE_MASK | frames.VALIDATED) & (1 << 64) - 1)
        a.and_(rcx, r9)
        a.label("drop_it")
        a.lock.cmpxchg(mem(rdi), rcx)
        a.jnz("drop_again")
        a.label("dropped")
        a.ret()

    def _update_va(self) -> None:
        """Emit `one_va`: carry out update_va_mapping of RDI, RSI and RDX as there; CF tells that nothing was done."""
        a = self.a
        a.label("update_va")
        self._save()
        self.recorder.draft(UPDATE_VA_MAPPING, "give_up", words=(rdx,))
        a.call("one_va")
        a.jc("give_up")
        self.recorder.commit()
        a.jmp("done")

        a.label("one_va")
        a.cmp(rdx, (UVMF_ALL if self.guest.vcpus == 1 else UVMF_LOCAL) + UVMF_FLUSHTYPE_MASK)
        a.jae("fail")
        a.cmp(edx, UVMF_FLUSHTYPE_MASK)
        a.jz("fail")
        a.call("walk")
        a.jc("fail")
        a.mov(r9, rsi)
        a.push(rdi)
        a.push(rdx)
        a.call("update_entry")
        a.pop(rdx)
        a.pop(rbx)
        a.jc("fail")
        a.and_(edx, UVMF_FLUSHTYPE_MASK)
        a.mov(r11, rdx)
        a.call("flush")
        a.xor(eax, eax)
        a.ret()

        # Have R8 be the machine address of the level-1 entry for the address in RDI; CF if there is none. RAX and RCX are lost.
        a.label("walk")
        a.mov(rax, rdi)
        a.sar(rax, 47)
        a.inc(rax)
        a.cmp(rax, 1)
        a.ja("fail")
        a.mov(rcx, rdi)
        a.shr(rcx, 39)
        a.and_(ecx, ENTRIES - 1)
        a.mov(eax, ecx)
        a.sub(eax, XEN_SLOTS.start)
        a.cmp(eax, len(XEN_SLOTS))
        a.jb("fail")
        a.mov(r8, self.state(State.KERNEL_CR3))
        for shift in (30, 21, 12):
            a.mov(rax, PTE_FRAME)
            a.and_(r8, rax)
            a.mov(rax, self.guest.ram_start)
            a.sub(r8, rax)
            a.mov(rax, self.guest.ram_end - self.guest.ram_start)
            a.cmp(r8, rax)
            a.jae("fail")
            a.mov(rax, self.guest.direct_va)
            a.add(r8, rax)
            a.mov(r8, mem(r8, scale=(rcx, 8)))
            a.test(r8d, PTE_PRESENT)
            a.jz("fail")
            a.test(r8d, PTE_PSE)
            a.jnz("fail")
            a.mov(rcx, rdi)
            a.shr(rcx, shift)
            a.and_(ecx, ENTRIES - 1)
        a.mov(rax, PTE_FRAME)
        a.and_(r8, rax)
        a.shl(ecx, 3)
        a.add(r8, rcx)
        a.clc()
        a.ret()
