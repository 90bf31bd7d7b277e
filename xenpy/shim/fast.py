"""Hypercalls that in-guest code carries out by itself: in ring 3, or in ring 0 as `xenpy.shim.ring0` has it.

A hypercall comes as a call: the address to go back to is on the stack, every register but RAX is kept. What is not done here is handed
on with all registers as they were, and in ring 3 with the return address in State.RETURN. An access to the guest's own pointers may
fault: whoever handles the fault goes on at `give_up`, which has RBP restore the stack; so none happens while a frame is locked.

The frame table's protocol is that of xenpy.pv.mmu.layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.mmu import UVMF_ALL, UVMF_FLUSHTYPE_MASK, UVMF_LOCAL
from xenpy.asm import mem
from xenpy.asm.registers import (
    al,
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
    r10d,
    r11,
    rax,
    rbp,
    rbx,
    rcx,
    rdi,
    rdx,
    rsi,
    rsp,
)  # fmt: skip
from xenpy.errors import Errno
from xenpy.pv.mmu import layout as frames
from xenpy.pv.mmu.entries import ACCESSED_DIRTY, ENTRIES, GUEST_KERNEL, L1_DISALLOWED, SIMILAR, XEN_SLOTS
from xenpy.pv.mmu.layout import FrameType
from xenpy.pv.paging import PTE_FRAME, PTE_GLOBAL, PTE_PRESENT, PTE_PSE, PTE_RW, PTE_USER
from xenpy.shim.layout import Port, State
from xenpy.shim.recording import Flag, Recorder

if TYPE_CHECKING:
    from xenpy.asm import Assembler, Mem
    from xenpy.asm.registers import Reg
    from xenpy.shim.code import Guest

_SAVED: Final = (rax, rbx, rcx, rdx, rsi, rdi, r8, r9, r10, r11, rbp)
"""Pushed in this order, so that the last is at the lowest address."""
_MMU_UPDATE, _STACK_SWITCH, _MULTICALL, _XEN_VERSION = 1, 3, 13, 17
_VCPU_OP, _SET_SEGMENT_BASE, _MMUEXT_OP = 24, 25, 26
_UPDATE_VA_MAPPING: Final = 14
_VCPUOP_IS_UP: Final = 3
_SEGBASE_GS_USER_SEL: Final = 3
_SELECTOR: Final = 0xFFFF
_MOV_EAX_GS: Final = b"\x8c\xe8"
_XENVER_VERSION: Final = 0
_MAX_COUNT: Final = 1024
_NORMAL, _PRESERVE_AD = 0, 2
_TLB_FLUSH_LOCAL, _INVLPG_LOCAL, _TLB_FLUSH_MULTI, _INVLPG_MULTI = 6, 7, 8, 9
_NEW_BASEPTR, _NEW_USER_BASEPTR = 5, 15
_TURNS: Final = 16
"""So often in a row must a kernel have gone back to the base before before that is expected of it."""
_UPDATE_SIZE: Final = 16
_OP_SIZE: Final = 24
_MULTICALL_SIZE: Final = 64
_TABLE_BITS: Final = frames.TYPE_MASK | frames.VALIDATED | frames.OWNED
_REF_LIMIT_BIT: Final = frames.REFS_SHIFT + frames.MAX_REFS.bit_length() - 1


def _at(reg: Reg) -> int:
    """Return the offset from RBP of a saved register."""
    return (len(_SAVED) - 1 - _SAVED.index(reg)) * 8


class FastCalls:
    """Emits the code. `state` makes the operand of a State word."""

    def __init__(self, a: Assembler, guest: Guest) -> None:
        self.a = a
        self.guest = guest
        self.recorder = Recorder(a, self.state)

    def state(self, word: State) -> Mem:
        """Return the operand of a word of the STATE page."""
        return mem(rip=self.guest.state_va + word * 8)

    def emit(self) -> None:
        """Emit the entry `hypercall` and all behind it."""
        a = self.a
        a.align(16)
        a.label("hypercall")
        for number, label in (
            (_MMU_UPDATE, "mmu_update"), (_MMUEXT_OP, "mmuext_op"), (_MULTICALL, "multicall"),
            (_STACK_SWITCH, "stack_switch"), (_SET_SEGMENT_BASE, "set_segment_base"), (_XEN_VERSION, "xen_version"),
            (_VCPU_OP, "vcpu_op"), (_UPDATE_VA_MAPPING, "update_va"),
        ):  # fmt: skip
            a.cmp(eax, number)
            a.jz(label)
        a.label("hand_on")
        self._leave()
        a.label("call_us")
        a.out(Port.HYPERCALL, eax)
        a.jmp("call_us")
        self._short_calls()
        self._lists()
        self._update_entry()
        self._new_base()
        self._update_va()
        self._simple_in_multicall()
        self.recorder.emit()

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
        a.mov(eax, _SET_SEGMENT_BASE)
        a.jnz("hand_on")
        self.recorder.draft(_SET_SEGMENT_BASE, "segment_base_by_us")
        self.recorder.commit()
        a.mov(self.state(State.OTHER_GS), 0, size=8)
        a.xor(eax, eax)
        a.ret()

    def _load_base(self) -> None:
        """Emit: load CR3 with State.KERNEL_CR3. RAX is lost."""
        a = self.a
        if self.guest.vcpus == 1:
            a.mov(rax, self.state(State.KERNEL_CR3))
            a.mov(self.state(State.LOADED_CR3), rax)
        a.label("trap_cr3")
        a.int3()

    def _flush_page(self) -> None:
        """Emit: drop the translation of the address in RBX."""
        a = self.a
        a.mov(self.state(State.INVLPG), rbx)
        a.label("trap_invlpg")
        a.int3()

    # -- calls without pointers ---------------------------------------------------------------------------------------

    def _short_calls(self) -> None:
        a = self.a
        a.label("stack_switch")
        self.recorder.draft(_STACK_SWITCH, "stack_switch_by_us")
        self.recorder.commit()
        a.label("take_stack")
        a.mov(self.state(State.KERNEL_SS), rdi)
        a.mov(self.state(State.KERNEL_SP), rsi)
        a.xor(eax, eax)
        a.ret()

        a.label("set_segment_base")
        a.cmp(edi, _SEGBASE_GS_USER_SEL)
        a.jz("set_user_gs_selector")
        a.push(rsi)
        a.sar(rsi, 47)
        a.inc(rsi)
        a.cmp(rsi, 1)
        a.pop(rsi)
        a.ja("hand_on")
        a.cmp(edi, 1)
        a.ja("hand_on")  # the kernel's own: by it we know the processor
        self.recorder.draft(_SET_SEGMENT_BASE, "segment_base_by_us")
        self.recorder.commit()
        a.label("take_base_of_segment")
        a.test(edi, edi)
        a.jnz("set_user_gs")
        self._set_fs()
        a.xor(eax, eax)
        a.ret()
        a.label("set_user_gs")
        a.mov(self.state(State.OTHER_GS), rsi)
        a.xor(eax, eax)
        a.ret()
        a.label("set_user_gs_selector")
        self._set_user_gs_selector()

        a.label("xen_version")  # which is how a guest has its pending events delivered
        a.cmp(edi, _XENVER_VERSION)
        a.jnz("hand_on")
        a.push(rbx)
        a.mov(rbx, self.state(State.VCPU_INFO))
        a.test(rbx, rbx)
        a.jz("version_slow")
        a.mov(al, mem(rbx))
        a.test(al, al)
        a.jz("version")
        a.mov(al, mem(rbx, 1))
        a.test(al, al)
        a.jnz("version")
        a.label("version_slow")
        a.mov(eax, _XEN_VERSION)
        a.pop(rbx)
        a.jmp("hand_on")
        a.label("version")
        self.recorder.draft(_XEN_VERSION, "version_slow")
        self.recorder.commit()
        a.mov(eax, self.guest.version)
        a.pop(rbx)
        a.ret()

        a.label("vcpu_op")  # Linux asks for every processor it could have
        a.cmp(edi, _VCPUOP_IS_UP)
        a.jnz("hand_on")
        a.cmp(esi, self.guest.vcpus)
        a.jb("hand_on")
        self.recorder.draft(_VCPU_OP, "vcpu_op_by_us")
        self.recorder.commit()
        a.mov(rax, -Errno.ENOENT)
        a.ret()

        for label, number in (
            ("stack_switch", _STACK_SWITCH),
            ("segment_base", _SET_SEGMENT_BASE),
            ("vcpu_op", _VCPU_OP),
        ):
            a.label(f"{label}_by_us")
            a.mov(eax, number)
            a.jmp("hand_on")

    # -- lists --------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        for reg in _SAVED:
            self.a.push(reg)
        self.a.mov(rbp, rsp)

    def _restore(self) -> None:
        for reg in reversed(_SAVED):
            self.a.pop(reg)

    def _lists(self) -> None:
        a = self.a
        a.label("mmu_update")
        self._check_list()
        self._save()
        self._guard(rdi, "give_up")
        a.label("next_update")
        self.recorder.draft_list(_MMU_UPDATE, "give_up", _UPDATE_SIZE, left=mem(rbp, _at(rsi)))
        a.mov(r8, mem(rdi))
        a.mov(r9, mem(rdi, 8))
        a.call("update_entry")
        a.jc("give_up")
        self.recorder.commit()
        a.mov(rdi, mem(rbp, _at(rdi)))
        a.add(rdi, _UPDATE_SIZE)
        a.mov(mem(rbp, _at(rdi)), rdi)
        a.dec(mem(rbp, _at(rsi)), size=8)
        a.jnz("next_update")
        a.label("done")
        self._restore()
        a.xor(eax, eax)
        a.ret()

        a.label("mmuext_op")
        self._check_list()
        self._save()
        self._guard(rdi, "give_up")
        a.xor(r11, r11)  # what remains to be done: 1 load CR3, 2 flush the address in RBX
        a.label("next_op")
        self.recorder.draft_list(_MMUEXT_OP, "ops_give_up", _OP_SIZE, left=mem(rbp, _at(rsi)))
        a.mov(eax, mem(rdi))
        a.mov(r8, mem(rdi, 8))
        a.call("one_op")
        a.jc("ops_give_up")
        self.recorder.commit()
        a.mov(rdi, mem(rbp, _at(rdi)))
        a.add(rdi, _OP_SIZE)
        a.mov(mem(rbp, _at(rdi)), rdi)
        a.dec(mem(rbp, _at(rsi)), size=8)
        a.jnz("next_op")
        a.call("flush")
        a.jmp("done")
        a.label("ops_give_up")  # what is done so far must hold when we go on with the rest
        a.call("flush")
        a.jmp("give_up")

        a.label("multicall")
        a.test(rsi, rsi)
        a.jz("hand_on")
        a.cmp(rsi, _MAX_COUNT)
        a.ja("hand_on")
        self._save()
        self._guard(rdi, "give_up")
        a.label("next_call")
        a.mov(rax, mem(rdi))
        a.mov(rsi, mem(rdi, 24))
        a.mov(rdx, mem(rdi, 32))
        a.mov(r10, mem(rdi, 40))
        a.mov(rdi, mem(rdi, 16))
        a.call("inner_call")
        a.jc("give_up")
        a.mov(rdi, mem(rbp, _at(rdi)))
        a.mov(mem(rdi, 8), rax)
        a.add(rdi, _MULTICALL_SIZE)
        a.mov(mem(rbp, _at(rdi)), rdi)
        a.dec(mem(rbp, _at(rsi)), size=8)
        a.jnz("next_call")
        self.recorder.end_multicall(_MULTICALL)
        a.jmp("done")

        a.label("give_up")
        a.mov(rsp, rbp)
        self._restore()
        a.jmp("hand_on")

    def _check_list(self) -> None:
        """Leave to us what is not a plain list of the caller's own."""
        a = self.a
        a.test(rdx, rdx)
        a.jnz("hand_on")
        a.cmp(r10d, DOMID_SELF)
        a.jnz("hand_on")
        a.test(rsi, rsi)
        a.jz("hand_on")
        a.cmp(rsi, _MAX_COUNT)
        a.ja("hand_on")

    # -- page table entries -------------------------------------------------------------------------------------------

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
        a.mov(rsi, _TABLE_BITS)
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

    def _update_upper(self) -> None:
        """Emit `no_l1`: fill an empty entry of an L2 with an L1 that is one already, or leave one of an L2 or L3 empty.

        RCX holds those of _TABLE_BITS that the table has, RAX its whole word. What is present in an upper table is never changed here: who
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
        a.mov(rax, mem(rsi))
        a.label("upper_again")
        a.mov(rcx, rax)
        a.mov(rdi, _TABLE_BITS | frames.LOCKED | 1 << _REF_LIMIT_BIT)
        a.and_(rcx, rdi)
        a.mov(rdi, FrameType.L1 << frames.TYPE_SHIFT | frames.VALIDATED | frames.OWNED)
        a.cmp(rcx, rdi)
        a.jnz("unlock_fail")
        a.test(eax, frames.COUNT_MASK)
        a.jz("unlock_fail")
        a.mov(rcx, frames.ONE_TYPED)
        a.add(rcx, rax)
        a.lock.cmpxchg(mem(rsi), rcx)
        a.jnz("upper_again")
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
        a.bt(rax, _REF_LIMIT_BIT)
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
        a.jmp("taken")
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
        self.recorder.draft(_UPDATE_VA_MAPPING, "give_up", words=(rdx,))
        a.call("one_va")
        a.jc("give_up")
        self.recorder.commit()
        a.jmp("done")

        a.label("one_va")
        a.cmp(rdx, (UVMF_ALL if self.guest.vcpus == 1 else UVMF_LOCAL) + UVMF_FLUSHTYPE_MASK)
        a.jae("fail")
        a.cmp(edx, UVMF_FLUSHTYPE_MASK)
        a.jz("fail")
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

    # -- top-level tables ---------------------------------------------------------------------------------------------

    def _new_base(self) -> None:
        """Emit `one_op`: carry out one mmuext_op of EAX (command) and R8 (argument); CF tells that nothing was done."""
        a = self.a
        a.label("one_op")
        a.cmp(eax, _NEW_BASEPTR)
        a.jz("new_base")
        a.cmp(eax, _NEW_USER_BASEPTR)
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
        a.jnz("take_user_base")
        a.call("drop_base")  # none: kernel threads have no user mode
        a.jc("fail")
        a.mov(mem(r9), 0, size=8)
        a.clc()
        a.ret()
        a.label("take_user_base")
        a.call("take_base")
        a.jc("fail")
        a.mov(mem(r9), r8)
        a.clc()
        a.ret()
        a.label("new_base")
        a.lea(r9, self.state(State.KERNEL_CR3))
        a.mov(r10, frames.KERNEL_ROLE)
        a.call("take_base")
        a.jc("fail")
        a.mov(rax, mem(r9))
        a.mov(mem(r9), r8)
        if self.guest.vcpus == 1 and self.guest.ring3:
            self._keep_loaded()
        a.jmp("load_later")

        # Exchange a vCPU's reference to the table in [R9] for one to mfn R8, whose role must be R10; R8 becomes a CR3.
        a.label("take_base")
        a.shl(r8, 12)
        a.cmp(r8, mem(r9))
        a.jz("base_taken")
        self._frame_word(rsi, r8, "fail")
        a.call("check_drop")
        a.jc("fail")
        a.mov(rax, mem(rsi))
        a.label("base_again")
        a.mov(rcx, rax)
        a.mov(rdx, _TABLE_BITS | frames.KERNEL_ROLE | frames.LOCKED | 1 << _REF_LIMIT_BIT)
        a.and_(rcx, rdx)
        a.mov(rdx, FrameType.L4 << frames.TYPE_SHIFT | frames.VALIDATED | frames.OWNED)
        a.or_(rdx, r10)
        a.cmp(rcx, rdx)
        a.jnz("fail")
        a.test(eax, frames.COUNT_MASK)
        a.jz("fail")
        a.mov(rcx, frames.ONE_TYPED)
        a.add(rcx, rax)
        a.lock.cmpxchg(mem(rsi), rcx)
        a.jnz("base_again")
        a.jmp("drop_checked")

        # Give back the reference to the table in [R9], if there is one.
        a.label("drop_base")
        a.call("check_drop")
        a.jc("fail")
        a.label("drop_checked")
        a.test(rdi, rdi)
        a.jz("base_taken")
        a.mov(rax, mem(rdi))
        a.label("base_drop")
        a.mov(rcx, frames.ONE_TYPED)
        a.mov(rdx, rax)
        a.sub(rdx, rcx)
        a.lock.cmpxchg(mem(rdi), rdx)
        a.jnz("base_drop")
        a.label("base_taken")
        a.clc()
        a.ret()

        # Have RDI point to the word of the table in [R9], 0 for none; CF if it would end with this reference, which is for us to do.
        a.label("check_drop")
        a.mov(rdi, mem(r9))
        a.test(rdi, rdi)
        a.jz("base_taken")
        a.mov(rdx, rdi)
        self._frame_word(rdi, rdx, "fail")
        a.mov(rax, mem(rdi))
        a.and_(eax, frames.COUNT_MASK)
        a.cmp(eax, 2)
        a.jb("fail")
        a.clc()
        a.ret()

        a.label("flush")
        a.test(r11, r11)
        a.jz("flushed")
        a.cmp(r11, 1)
        a.jnz("flush_page")
        self._load_base()
        a.label("flushed")
        a.ret()
        a.label("flush_page")
        self._flush_page()
        a.ret()

    def _keep_loaded(self) -> None:
        """Emit: leave CR3 as it is while a kernel goes to and fro between two bases, where that can make no difference that matters.

        R8 is the new base and RAX the one before. A kernel that changes its own code does so thousands of times by way of a temporary
        address space, and on hosts where loading CR3 is a trap that is a third of its boot. What the new base maps, the loaded one must
        map alike; so only an access to what is not mapped tells the difference, and not after we have been called for anything: on our
        way back the new base is loaded. With one vCPU nobody takes the loaded tables apart meanwhile.
        """
        a = self.a
        a.mov(rcx, self.state(State.BASE_BEFORE))
        a.mov(self.state(State.BASE_BEFORE), rax)
        a.inc(self.state(State.BASES_IN_TURN), size=8)
        a.cmp(rcx, r8)
        a.jz("base_in_turn")
        a.mov(self.state(State.BASES_IN_TURN), 0, size=8)
        a.label("base_in_turn")
        a.cmp(self.state(State.BASES_IN_TURN), _TURNS, size=8)
        a.jb("load_later")
        a.mov(r9, self.state(State.LOADED_CR3))
        a.test(r9, r9)
        a.jz("load_later")
        a.cmp(r8, r9)
        a.jz("load_later")  # which is for the sake of its TLB entries
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
        a.clc()
        a.ret()

    def _simple_in_multicall(self) -> None:
        """Emit `inner_call`: carry out a call of a multicall; CF tells that nothing was done."""
        a = self.a
        a.label("inner_call")
        a.cmp(rax, _MMU_UPDATE)
        a.jz("inner_update")
        a.cmp(rax, _MMUEXT_OP)
        a.jz("inner_ops")
        a.cmp(rax, _STACK_SWITCH)
        a.jz("inner_stack_switch")
        a.cmp(rax, _SET_SEGMENT_BASE)
        a.jz("inner_segment_base")
        a.cmp(rax, _UPDATE_VA_MAPPING)
        a.jz("inner_va")
        a.jmp("fail")

        a.label("inner_va")
        self.recorder.draft(_UPDATE_VA_MAPPING | Flag.INNER, "fail", words=(rdx,))
        a.call("one_va")
        a.jc("fail")
        self.recorder.commit()
        a.xor(eax, eax)
        a.ret()

        a.label("inner_stack_switch")
        self.recorder.draft(_STACK_SWITCH | Flag.INNER, "fail")
        self.recorder.commit()
        a.call("take_stack")
        a.clc()
        a.ret()
        a.label("inner_segment_base")
        a.cmp(edi, 1)
        a.ja("fail")
        a.mov(rcx, rsi)
        a.sar(rcx, 47)
        a.inc(rcx)
        a.cmp(rcx, 1)
        a.ja("fail")
        self.recorder.draft(_SET_SEGMENT_BASE | Flag.INNER, "fail")
        self.recorder.commit()
        a.call("take_base_of_segment")
        a.clc()
        a.ret()

        for label, size in (("inner_update", _UPDATE_SIZE), ("inner_ops", _OP_SIZE)):
            number = _MMUEXT_OP if size == _OP_SIZE else _MMU_UPDATE
            a.label(label)
            a.cmp(rsi, 1)
            a.jnz("inner_two" if size == _OP_SIZE else "fail")
            a.test(rdx, rdx)
            a.jnz("fail")
            a.cmp(r10d, DOMID_SELF)
            a.jnz("fail")
            self._guard(rdi, "fail")
            self.recorder.draft_list(number | Flag.INNER, "fail", size)
            if size == _OP_SIZE:
                a.mov(eax, mem(rdi))
                a.mov(r8, mem(rdi, 8))
                a.xor(r11, r11)
                a.call("one_op")
                a.jc("fail")
                a.call("flush")
            else:
                a.mov(r8, mem(rdi))
                a.mov(r9, mem(rdi, 8))
                a.call("update_entry")
                a.jc("fail")
            self.recorder.commit()
            a.xor(eax, eax)
            a.ret()
        a.label("inner_two")  # NEW_BASEPTR and NEW_USER_BASEPTR, as a switch of processes has them
        a.cmp(rsi, 2)
        a.jnz("fail")
        a.test(rdx, rdx)
        a.jnz("fail")
        a.cmp(r10d, DOMID_SELF)
        a.jnz("fail")
        self._guard(rdi, "fail")
        a.cmp(mem(rdi), _NEW_BASEPTR, size=4)
        a.jnz("fail")
        a.cmp(mem(rdi, _OP_SIZE), _NEW_USER_BASEPTR, size=4)
        a.jnz("fail")
        self.recorder.draft_list(_MMUEXT_OP | Flag.INNER, "fail", _OP_SIZE, count=2)
        a.xor(r11, r11)
        a.push(rdi)
        a.mov(r8, mem(rdi, _OP_SIZE + 8))
        a.call("new_user_base")  # should the other not follow, we do both again
        a.jc("inner_two_failed")
        a.pop(rdi)
        a.mov(r8, mem(rdi, 8))
        a.mov(eax, _NEW_BASEPTR)
        a.call("one_op")
        a.jc("fail")
        a.call("flush")
        self.recorder.commit(2)
        a.xor(eax, eax)
        a.ret()
        a.label("inner_two_failed")
        a.pop(rdi)
        a.jmp("fail")
