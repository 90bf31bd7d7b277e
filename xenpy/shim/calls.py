"""What the emitters of in-guest hypercalls share: saved registers, words of the frame table, and what depends on the ring.

Ring 3 is here; `xenpy.shim.ring0` replaces what is otherwise there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.asm import mem
from xenpy.asm.registers import (
    eax,
    esi,
    r8,
    r9,
    r10,
    r11,
    rax,
    rbp,
    rbx,
    rcx,
    rdi,
    rdx,
    rsi,
    rsp,
)
from xenpy.pv.mmu import layout as frames
from xenpy.pv.paging import PTE_FRAME
from xenpy.shim.layout import State
from xenpy.shim.recording import Recorder

if TYPE_CHECKING:
    from xenpy.asm import Assembler, Mem
    from xenpy.asm.registers import Reg
    from xenpy.pv.mmu.layout import FrameType
    from xenpy.shim.code import Guest

_SAVED: Final = (rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, rbp)
"""Pushed in this order, so that the last is at the lowest address."""
SET_SEGMENT_BASE: Final = 25
_SELECTOR: Final = 0xFFFF
_16_BITS: Final = 0xFFFF
_MOV_EAX_GS: Final = b"\x8c\xe8"
TABLE_BITS: Final = frames.TYPE_MASK | frames.VALIDATED | frames.OWNED
REF_LIMIT_BIT: Final = frames.REFS_SHIFT + frames.MAX_REFS.bit_length() - 1


def saved(reg: Reg) -> int:
    """Return the offset from RBP of a saved register."""
    return (len(_SAVED) - 1 - _SAVED.index(reg)) * 8


def low16(value: int) -> int:
    """Return the low 16 bits."""
    return value & _16_BITS


class Calls:
    """Emits pieces of the code. `state` makes the operand of a State word."""

    def __init__(self, a: Assembler, guest: Guest) -> None:
        self.a = a
        self.guest = guest
        self.recorder = Recorder(a, self.state)
        self._keeps_bases = guest.vcpus == 1 and guest.ring3
        """Whether CR3 is not always loaded with a new base, and so notes are taken of what it may be needed for."""

    def state(self, word: State) -> Mem:
        """Return the operand of a word of the STATE page."""
        return mem(rip=self.guest.state_va + word * 8)

    def _save(self) -> None:
        for reg in _SAVED:
            self.a.push(reg)
        self.a.mov(rbp, rsp)

    def _restore(self) -> None:
        for reg in reversed(_SAVED):
            self.a.pop(reg)

    def _frame_word(self, dst: Reg, entry: Reg, label: str) -> None:
        """Have `dst` point to the frame table's word of the frame in `entry`; go to `label` if it is not the guest's."""
        a = self.a
        a.mov(dst, PTE_FRAME)
        a.and_(dst, entry)
        a.shr(dst, 12)
        a.sub(dst, self.guest.base_mfn)
        a.cmp(dst, self.guest.nr_pages)
        a.jae(label)
        a.shl(dst, 3)
        a.mov(rcx, self.guest.frames_va)
        a.add(dst, rcx)

    def _take_table(
        self, name: str, kind: FrameType, bits: int, scratch: Reg, label: str, *, wanted: Reg | None = None
    ) -> None:
        """Emit: take a reference to a validated table whose word RSI points to; go to `label` if it is none, or is locked.

        Of `bits` its word must have those that `wanted` holds. RAX, RCX and `scratch` are lost.
        """
        a = self.a
        a.mov(rax, mem(rsi))
        a.label(f"{name}_again")
        a.mov(rcx, rax)
        a.mov(scratch, TABLE_BITS | bits | frames.LOCKED | 1 << REF_LIMIT_BIT)
        a.and_(rcx, scratch)
        a.mov(scratch, kind << frames.TYPE_SHIFT | frames.VALIDATED | frames.OWNED)
        if wanted is not None:
            a.or_(scratch, wanted)
        a.cmp(rcx, scratch)
        a.jnz(label)
        a.test(eax, frames.COUNT_MASK)
        a.jz(label)
        a.mov(rcx, frames.ONE_TYPED)
        a.add(rcx, rax)
        a.lock.cmpxchg(mem(rsi), rcx)
        a.jnz(f"{name}_again")

    # -- what depends on the ring that this runs in -------------------------------------------------------------------

    def _leave(self) -> None:
        """Emit: take the stack and the return address to where we find them."""
        self.a.pop(self.state(State.RETURN))

    def _guard(self, pointer: Reg, label: str) -> None:
        """Emit: go to `label` if the guest may not name an address by a pointer. RAX is lost."""

    def _set_fs(self) -> None:
        """Emit: set the base of FS to RSI."""
        self.a.wrfsbase(rsi)

    def _set_user_gs_selector(self) -> None:
        """Emit: load RSI into user mode's GS and go back: none, where there is none, for most processes have no other."""
        a = self.a
        a.data(_MOV_EAX_GS)
        a.or_(eax, esi)
        a.test(eax, _SELECTOR)
        a.mov(eax, SET_SEGMENT_BASE)
        a.jnz("hand_on")
        self.recorder.draft(SET_SEGMENT_BASE, "segment_base_by_us")
        self.recorder.commit()
        a.mov(self.state(State.OTHER_GS), 0, size=8)
        a.xor(eax, eax)
        a.ret()

    def _load_base(self) -> None:
        """Emit: load CR3 with State.KERNEL_CR3. RAX is lost."""
        self._note_load()
        self.a.label("trap_cr3")
        self.a.int3()

    def _note_load(self) -> None:
        """Emit: take note, where that matters, that CR3 is about to be loaded. RAX is lost."""
        a = self.a
        if self._keeps_bases:
            a.mov(rax, self.state(State.KERNEL_CR3))
            a.mov(self.state(State.LOADED_CR3), rax)
            a.mov(self.state(State.STALE), 0, size=8)
            a.mov(self.state(State.CLEARED_ENTRY), 0, size=8)

    def _flush_page(self) -> None:
        """Emit: drop the translation of the address in RBX."""
        a = self.a
        a.mov(self.state(State.INVLPG), rbx)
        a.label("trap_invlpg")
        a.int3()
