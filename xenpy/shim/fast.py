"""Hypercalls that in-guest code carries out by itself: in ring 3, or in ring 0 as `xenpy.shim.ring0` has it.

A hypercall comes as a call: the address to go back to is on the stack, every register but RAX is kept. What is not done here is handed
on with all registers as they were, and in ring 3 with the return address in State.RETURN. An access to the guest's own pointers may
fault: whoever handles the fault goes on at `give_up`, which has RBP restore the stack; so none happens while a frame is locked.

The frame table's protocol is that of xenpy.pv.mmu.layout.
"""

from __future__ import annotations

from typing import Final

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.asm import mem
from xenpy.asm.registers import (
    al,
    eax,
    edi,
    esi,
    r8,
    r9,
    r10,
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
)
from xenpy.errors import Errno
from xenpy.shim.bases import NEW_BASEPTR, NEW_USER_BASEPTR, BaseSwitches
from xenpy.shim.calls import SET_SEGMENT_BASE, saved
from xenpy.shim.entries import UPDATE_VA_MAPPING, EntryUpdates
from xenpy.shim.layout import Port, State
from xenpy.shim.recording import Flag

_MMU_UPDATE, _STACK_SWITCH, _MULTICALL, _XEN_VERSION = 1, 3, 13, 17
_VCPU_OP, _MMUEXT_OP, _EVENT_CHANNEL_OP = 24, 26, 32
_VCPUOP_IS_UP: Final = 3
_EVTCHNOP_SEND: Final = 4
_SEGBASE_GS_USER_SEL: Final = 3
_XENVER_VERSION: Final = 0
_MAX_COUNT: Final = 1024
_UPDATE_SIZE: Final = 16
_OP_SIZE: Final = 24
_MULTICALL_SIZE: Final = 64


class FastCalls(EntryUpdates, BaseSwitches):
    """Emits all of the code."""

    def emit(self) -> None:
        """Emit the entry `hypercall` and all behind it."""
        a = self.a
        a.align(16)
        a.label("hypercall")
        for number, label in (
            (_MMU_UPDATE, "mmu_update"), (_MMUEXT_OP, "mmuext_op"), (_MULTICALL, "multicall"),
            (_STACK_SWITCH, "stack_switch"), (SET_SEGMENT_BASE, "set_segment_base"), (_XEN_VERSION, "xen_version"),
            (_VCPU_OP, "vcpu_op"), (UPDATE_VA_MAPPING, "update_va"), (_EVENT_CHANNEL_OP, "event_channel_op"),
        ):  # fmt: skip
            a.cmp(eax, number)
            a.jz(label)
        a.label("hand_on")
        self._leave()
        a.label("call_us")
        a.out(Port.HYPERCALL, eax)
        a.jmp("call_us")
        self._short_calls()
        self._send()
        self._lists()
        self._update_entry()
        self._new_base()
        self._update_va()
        self._simple_in_multicall()
        self.recorder.emit()

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
        self.recorder.draft(SET_SEGMENT_BASE, "segment_base_by_us")
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
            ("segment_base", SET_SEGMENT_BASE),
            ("vcpu_op", _VCPU_OP),
        ):
            a.label(f"{label}_by_us")
            a.mov(eax, number)
            a.jmp("hand_on")

    def _send(self) -> None:
        """Emit `event_channel_op`: take note of an event that may be late. While somebody listens to what we do none may."""
        a = self.a
        a.label("event_channel_op")
        a.cmp(edi, _EVTCHNOP_SEND)
        a.jnz("hand_on")
        a.cmp(self.state(State.LATE_PORT), 0, size=8)
        a.jz("send_by_us")
        a.cmp(self.state(State.RECORD), 0, size=8)
        a.jnz("send_by_us")
        self._save()
        self._guard(rsi, "give_up")
        a.mov(eax, mem(rsi))
        a.cmp(rax, self.state(State.LATE_PORT))
        a.jnz("give_up")
        a.mov(self.state(State.SENT), 1, size=8)
        a.jmp("done")
        a.label("send_by_us")
        a.mov(eax, _EVENT_CHANNEL_OP)
        a.jmp("hand_on")

    # -- lists --------------------------------------------------------------------------------------------------------

    def _lists(self) -> None:
        a = self.a
        a.label("mmu_update")
        self._check_list()
        self._save()
        self._guard(rdi, "give_up")
        a.label("next_update")
        self.recorder.draft_list(_MMU_UPDATE, "give_up", _UPDATE_SIZE, left=mem(rbp, saved(rsi)))
        a.mov(r8, mem(rdi))
        a.mov(r9, mem(rdi, 8))
        a.call("update_entry")
        a.jc("give_up")
        self.recorder.commit()
        a.mov(rdi, mem(rbp, saved(rdi)))
        a.add(rdi, _UPDATE_SIZE)
        a.mov(mem(rbp, saved(rdi)), rdi)
        a.dec(mem(rbp, saved(rsi)), size=8)
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
        self.recorder.draft_list(_MMUEXT_OP, "ops_give_up", _OP_SIZE, left=mem(rbp, saved(rsi)))
        a.mov(eax, mem(rdi))
        a.mov(r8, mem(rdi, 8))
        a.call("one_op")
        a.jc("ops_give_up")
        self.recorder.commit()
        a.mov(rdi, mem(rbp, saved(rdi)))
        a.add(rdi, _OP_SIZE)
        a.mov(mem(rbp, saved(rdi)), rdi)
        a.dec(mem(rbp, saved(rsi)), size=8)
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
        a.mov(rdi, mem(rbp, saved(rdi)))
        a.mov(mem(rdi, 8), rax)
        a.add(rdi, _MULTICALL_SIZE)
        a.mov(mem(rbp, saved(rdi)), rdi)
        a.dec(mem(rbp, saved(rsi)), size=8)
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
        a.cmp(rax, SET_SEGMENT_BASE)
        a.jz("inner_segment_base")
        a.cmp(rax, UPDATE_VA_MAPPING)
        a.jz("inner_va")
        a.jmp("fail")

        a.label("inner_va")
        self.recorder.draft(UPDATE_VA_MAPPING | Flag.INNER, "fail", words=(rdx,))
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
        self.recorder.draft(SET_SEGMENT_BASE | Flag.INNER, "fail")
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
        a.cmp(mem(rdi), NEW_BASEPTR, size=4)
        a.jnz("fail")
        a.cmp(mem(rdi, _OP_SIZE), NEW_USER_BASEPTR, size=4)
        a.jnz("fail")
        self.recorder.draft_list(_MMUEXT_OP | Flag.INNER, "fail", _OP_SIZE, count=2)
        a.xor(r11, r11)
        a.push(rdi)
        a.mov(r8, mem(rdi, _OP_SIZE + 8))
        a.call("new_user_base")  # should the other not follow, we do both again
        a.jc("inner_two_failed")
        a.pop(rdi)
        a.mov(r8, mem(rdi, 8))
        a.mov(eax, NEW_BASEPTR)
        a.call("one_op")
        a.jc("fail")
        a.call("flush")
        self.recorder.commit(2)
        a.xor(eax, eax)
        a.ret()
        a.label("inner_two_failed")
        a.pop(rdi)
        a.jmp("fail")
