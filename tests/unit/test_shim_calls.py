"""The hypercalls of in-guest code, run by this process as the machine code they are: what they do, and whose pointers they follow."""

from __future__ import annotations

import os
from random import Random
from typing import TYPE_CHECKING

import pytest
from mmu_rig import BASE, FREE, L1, L3, L4, PAGES, PRW, Rig

from xenpy import libc
from xenpy.abi._libc import ffi
from xenpy.abi.mmu import UVMF_INVLPG, UVMF_LOCAL
from xenpy.asm import Assembler, mem
from xenpy.asm.registers import r8, r9, r10, rax, rbp, rbx, rdi, rdx, rsi
from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.layout import ONE_TYPED
from xenpy.shim.code import Guest
from xenpy.shim.fast import FastCalls
from xenpy.shim.layout import Page, State
from xenpy.shim.ring0_calls import Ring0Calls

if TYPE_CHECKING:
    from collections.abc import Iterator

MMU_UPDATE, STACK_SWITCH, MULTICALL, MMUEXT_OP, XEN_VERSION, EVENT_CHANNEL_OP = 1, 3, 13, 26, 17, 32
UPDATE_VA_MAPPING = 14
EVTCHNOP_CLOSE, EVTCHNOP_SEND = 3, 4
NEW_BASEPTR, TLB_FLUSH_LOCAL, INVLPG_LOCAL, NEW_USER_BASEPTR = 5, 6, 7, 15
DOMID_SELF = 0x7FF0
VERSION = 0x40013
HANDED_ON = 0x1DE
"""What a call returns here that is left to the hypervisor."""
XEN_START, XEN_END = 0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0000
AREA = Page.END * PAGE_SIZE
SAVED = (rbx, rbp)
_KEPT = 3


class HandsOn:
    """Instead of calling the hypervisor."""

    a: Assembler

    def _leave(self) -> None:
        self.a.mov(rax, HANDED_ON)
        self.a.ret()


class Ring0(HandsOn, Ring0Calls):
    """Ring 0's, with loads of CR3 and INVLPG counted, which this process may not execute."""

    def _load_base(self) -> None:
        self.a.inc(self.state(State.INVLPG), size=8)

    def _flush_page(self) -> None:
        self.a.inc(self.state(State.NEW_CR3), size=8)


class Looking(Ring0):
    """Loads of CR3 note what the old base's word is then, and have another vCPU give back a reference to it."""

    def _load_base(self) -> None:
        super()._load_base()
        self.a.mov(rax, self.guest.frames_va)
        self.a.mov(rdx, mem(rax, (L4 - BASE) * 8))
        self.a.mov(self.state(State.CR2), rdx)
        self.a.mov(rdx, ONE_TYPED)
        self.a.lock.sub(mem(rax, (L4 - BASE) * 8), rdx)


class Ring3(HandsOn, FastCalls):
    """Ring 3's, likewise."""

    def _load_base(self) -> None:
        self.a.inc(self.state(State.INVLPG), size=8)

    def _flush_page(self) -> None:
        self.a.inc(self.state(State.NEW_CR3), size=8)


class Native:
    """A domain whose window is mapped in this process, with code for one ring in it."""

    def __init__(self, kind: type[FastCalls], vcpus: int = 1) -> None:
        self.rig = Rig()
        self.rig.start()
        fd = os.memfd_create("window")
        os.truncate(fd, AREA)
        every = libc.PROT_READ | libc.PROT_WRITE | libc.PROT_EXEC
        self.window = libc.map_memory(0, AREA, every, libc.MAP_PRIVATE, fd)
        os.close(fd)
        self.state = libc.buffer(self.window + Page.STATE * PAGE_SIZE, PAGE_SIZE).cast("Q")
        words = int(ffi.cast("uintptr_t", ffi.from_buffer(self.rig.words)))
        start = BASE << PAGE_SHIFT
        guest = Guest(
            self.window, self.window + Page.STATE * PAGE_SIZE, self.window + Page.ENTRY * PAGE_SIZE, words,
            self.rig.memory.hva(start), BASE, PAGES, start, start + (PAGES << PAGE_SHIFT), vcpus, VERSION, issubclass(kind, Ring3),
        )  # fmt: skip
        a = Assembler(self.window + Page.CODE * PAGE_SIZE)
        for reg in SAVED:
            a.push(reg)
        a.push(rdi)
        for reg, offset in ((rax, 0), (rsi, 16), (rdx, 24), (r10, 32), (r8, 40), (r9, 48), (rdi, 8)):
            a.mov(reg, mem(rdi, offset))
        a.call("hypercall")
        a.mov(rbx, rdi)
        a.pop(rdi)
        for reg, offset in ((rbx, 8), (rsi, 16), (rdx, 24), (r10, 32), (r8, 40), (r9, 48)):
            a.mov(mem(rdi, offset), reg)
        for reg in reversed(SAVED):
            a.pop(reg)
        a.ret()
        kind(a, guest).emit()
        libc.buffer(self.window, AREA)[Page.CODE * PAGE_SIZE :][: len(a.assemble())] = a.assemble()
        self._enter = libc.native_function(self.window + Page.CODE * PAGE_SIZE, "uint64_t(*)(uint64_t *)")
        self.state[State.KERNEL_CR3] = self.rig.vcpus[0].kernel_l4 << PAGE_SHIFT

    def call(self, number: int, *args: int) -> int:
        """Make a hypercall; its registers must come back as they were, but for the list that is left in RDI and RSI."""
        registers = ffi.new("uint64_t[7]", [number, *args, *[0] * (6 - len(args))])
        before = list(registers)[_KEPT:]
        result = int(self._enter(registers))
        assert list(registers)[_KEPT:] == before
        return result

    def close(self) -> None:
        self.state.release()
        self.rig.close()
        libc.unmap_memory(self.window, AREA)


@pytest.fixture(params=[Ring0, Ring3])
def native(request: pytest.FixtureRequest) -> Iterator[Native]:
    made = Native(request.param)
    yield made
    made.close()


@pytest.fixture
def ring0() -> Iterator[Native]:
    made = Native(Ring0)
    yield made
    made.close()


def words(*values: int) -> tuple[object, int]:
    """Return memory of this process with 64-bit words in it, and its address."""
    made = ffi.new("uint64_t[]", [value & (1 << 64) - 1 for value in values])
    return made, int(ffi.cast("uintptr_t", made))


def updates(native: Native, *pairs: tuple[int, int]) -> int:
    keep, address = words(*(word for pair in pairs for word in pair))
    result = native.call(MMU_UPDATE, address, len(pairs), 0, DOMID_SELF)
    del keep
    return result


def test_registers_come_back_and_what_is_not_known_is_handed_on(native: Native) -> None:
    assert native.call(XEN_VERSION, 1) == HANDED_ON
    assert native.call(99, 1, 2, 3, 4, 5, 6) == HANDED_ON


def test_stack_switch_is_noted(native: Native) -> None:
    assert native.call(STACK_SWITCH, 0xE02B, 0xFFFF_8880_1234_5000) == 0
    assert native.state[State.KERNEL_SP] == 0xFFFF_8880_1234_5000


def test_random_updates_leave_what_the_mmu_leaves(native: Native) -> None:
    """Those that are done by themselves; the others change nothing."""
    random, slow, done = Random(7), Rig(), 0
    slow.start()
    for _ in range(600):
        slot = random.randrange(100, 140)
        mfn = random.choice((random.randrange(FREE, BASE + PAGES), L1, BASE + PAGES, 0x10))
        value = random.choice((0, mfn << PAGE_SHIFT | random.choice((PRW, PRW & ~2, 1, 3, 0x107, PRW | 1 << 63))))
        pointer = (L1 << PAGE_SHIFT) + slot * 8 | random.choice((0, 2))
        if updates(native, (pointer, value)) == HANDED_ON:
            continue
        done += 1
        slow.mmu.update(pointer & ~7, value, slow.checkpoint, preserve_ad=bool(pointer & 2))
        assert native.rig.entry(L1, slot) == slow.entry(L1, slot)
        assert native.rig.words.tolist() == slow.words.tolist()
    assert done > 100
    assert native.rig.mmu.audit() == []
    slow.close()


def test_what_the_mmu_refuses_is_handed_on(native: Native) -> None:
    before = native.rig.words.tolist()
    for pointer, value in (
        ((L1 << PAGE_SHIFT) + 8 * 50, L1 << PAGE_SHIFT | PRW),
        ((L1 << PAGE_SHIFT) + 8 * 50 + 4, 0),
        ((FREE << PAGE_SHIFT), FREE + 1 << PAGE_SHIFT | PRW),
        ((BASE + PAGES << PAGE_SHIFT), 0),
    ):
        assert updates(native, (pointer, value)) == HANDED_ON
    assert native.rig.words.tolist() == before
    with pytest.raises(XenError):
        native.rig.mmu.update((L1 << PAGE_SHIFT) + 8 * 50, L1 << PAGE_SHIFT | PRW, native.rig.checkpoint)


def test_flushes(native: Native) -> None:
    keep, address = words(TLB_FLUSH_LOCAL, 0, 0)
    assert native.call(MMUEXT_OP, address, 1, 0, DOMID_SELF) == 0
    assert native.state[State.INVLPG] == 1
    del keep
    keep, address = words(INVLPG_LOCAL, 0x1234000, 0)
    assert native.call(MMUEXT_OP, address, 1, 0, DOMID_SELF) == 0
    assert native.state[State.NEW_CR3] == 1
    del keep


@pytest.mark.parametrize("bit", [40, 51, 52, 63])
@pytest.mark.parametrize("command", [NEW_BASEPTR, NEW_USER_BASEPTR])
def test_a_base_has_no_bits_beyond_those_of_a_frame(native: Native, command: int, bit: int) -> None:
    """CR3 would have those below bit 52, and loading it would fault in ring 0."""
    kernel, before = native.state[State.KERNEL_CR3], native.rig.words.tolist()
    native.state[State.USER_CR3] = 0
    keep, address = words(command, kernel >> PAGE_SHIFT | 1 << bit, 0)
    assert native.call(MMUEXT_OP, address, 1, 0, DOMID_SELF) == HANDED_ON
    assert (native.state[State.KERNEL_CR3], native.state[State.USER_CR3]) == (kernel, 0)
    assert native.rig.words.tolist() == before
    del keep


def new_base(native: Native, command: int, mfn: int) -> int:
    keep, address = words(command, mfn, 0)
    result = native.call(MMUEXT_OP, address, 1, 0, DOMID_SELF)
    del keep
    return result


def another_l4(native: Native, *, kernel: bool) -> int:
    """Pin an L4 that shows what the first one does, in the role of one of the kernel's or of user mode's."""
    native.rig.put(FREE, 0, L3 << PAGE_SHIFT | PRW)
    native.rig.mmu.pin(FREE, 4, native.rig.checkpoint)
    native.rig.mmu.types.set_role(FREE, kernel=kernel)
    return FREE


def uses(native: Native, mfn: int) -> int:
    """Return how often a frame is used as its type."""
    return native.rig.counts(mfn)[1]


@pytest.mark.parametrize("kind", [Ring0, Ring3])
@pytest.mark.parametrize("vcpus", [1, 2])
def test_a_base_is_exchanged_for_another(kind: type[FastCalls], vcpus: int) -> None:
    native = Native(kind, vcpus)
    other = another_l4(native, kernel=True)
    assert uses(native, L4) == 2
    assert new_base(native, NEW_BASEPTR, other) == 0
    assert native.state[State.KERNEL_CR3] == other << PAGE_SHIFT
    assert native.state[State.INVLPG] == 1, "CR3 is loaded once"
    assert uses(native, L4) == 1
    assert uses(native, other) == 2
    assert new_base(native, NEW_BASEPTR, L4) == 0
    assert (uses(native, L4), uses(native, other)) == (2, 1)
    native.close()


@pytest.mark.parametrize("command", [NEW_BASEPTR, NEW_USER_BASEPTR])
def test_the_last_reference_to_a_base_is_left_to_us(native: Native, command: int) -> None:
    """The table has to be taken apart."""
    other = another_l4(native, kernel=command == NEW_BASEPTR)
    word = State.KERNEL_CR3 if command == NEW_BASEPTR else State.USER_CR3
    native.state[word] = L4 << PAGE_SHIFT
    native.rig.mmu.unpin(L4, native.rig.checkpoint)
    assert uses(native, L4) == 1
    assert new_base(native, command, other) == HANDED_ON
    assert native.state[word] == other << PAGE_SHIFT
    assert native.state[State.OWED] == L4 << PAGE_SHIFT
    assert uses(native, L4) == 1
    assert uses(native, other) == 2


def test_a_base_is_held_until_cr3_holds_another_and_given_back_by_one_vcpu_only() -> None:
    """The other vCPU, which ran on the table too, leaves it just then: of the two references one remains for us."""
    native = Native(Looking, 2)
    other = another_l4(native, kernel=True)
    native.rig.mmu.take_base(L4, kernel=True)
    native.rig.mmu.unpin(L4, native.rig.checkpoint)
    before = native.rig.mmu.frames.word(L4)
    assert uses(native, L4) == 2
    assert new_base(native, NEW_BASEPTR, other) == HANDED_ON
    assert native.state[State.CR2] == before
    assert native.state[State.OWED] == L4 << PAGE_SHIFT
    assert uses(native, L4) == 1
    native.close()


@pytest.mark.parametrize(
    "address", [XEN_START, XEN_START + (1 << 39) + 0x13000, XEN_START + (1 << 40) - 8, XEN_END - 8]
)
def test_ring_0_does_not_follow_pointers_into_the_hypervisor(ring0: Native, address: int) -> None:
    """This process would die of following one."""
    for number in (MMU_UPDATE, MMUEXT_OP, MULTICALL):
        assert ring0.call(number, address, 1, 0, DOMID_SELF) == HANDED_ON
    for number in (MMU_UPDATE, MMUEXT_OP):
        for count in (1, 2):
            keep, multicall = words(number, 0, address, count, 0, DOMID_SELF, 0, 0)
            assert ring0.call(MULTICALL, multicall, 1) == HANDED_ON
            del keep


def test_ring_0_follows_pointers_beside_the_hypervisors_part(ring0: Native) -> None:
    """They are canonical or fault, which is dealt with elsewhere; here it is memory of this process."""
    keep, inner = words((L1 << PAGE_SHIFT) + 8 * 60, 0)
    keep_too, multicall = words(
        MMU_UPDATE, 77, inner, 1, 0, DOMID_SELF, 0, 0, STACK_SWITCH, 77, 0xE02B, 0x5000, 0, 0, 0, 0
    )
    assert ring0.call(MULTICALL, multicall, 2) == 0
    assert ring0.state[State.KERNEL_SP] == 0x5000
    del keep, keep_too


def event(native: Native, port: int, command: int = EVTCHNOP_SEND) -> int:
    keep, address = words(port | 0xABCD << 32)
    result = native.call(EVENT_CHANNEL_OP, command, address)
    del keep
    return result


def test_an_event_that_may_be_late_is_noted(native: Native) -> None:
    native.state[State.LATE_PORT] = 3
    assert event(native, 3) == 0
    assert native.state[State.SENT] == 1


@pytest.mark.parametrize("port", [0, 2, 3])
def test_other_events_are_handed_on(native: Native, port: int) -> None:
    native.state[State.LATE_PORT] = 0 if port == 3 else 3
    assert event(native, port) == HANDED_ON
    native.state[State.LATE_PORT] = 3
    assert event(native, 3, EVTCHNOP_CLOSE) == HANDED_ON
    native.state[State.RECORD] = native.window + Page.RECORDS * PAGE_SIZE
    assert event(native, 3) == HANDED_ON, "somebody listens"
    assert native.state[State.SENT] == 0


@pytest.mark.parametrize("address", [XEN_START, XEN_END - 8])
def test_ring_0_reads_no_port_from_the_hypervisor(ring0: Native, address: int) -> None:
    ring0.state[State.LATE_PORT] = 3
    assert ring0.call(EVENT_CHANNEL_OP, EVTCHNOP_SEND, address) == HANDED_ON


def test_update_va_mapping_finds_the_entry(native: Native) -> None:
    value = FREE << PAGE_SHIFT | PRW
    assert native.call(UPDATE_VA_MAPPING, 60 << PAGE_SHIFT, value, 0) == 0
    assert native.rig.entry(L1, 60) & ~(1 << 52 | 1 << 8) == value
    assert native.call(UPDATE_VA_MAPPING, 60 << PAGE_SHIFT, 0, UVMF_INVLPG | UVMF_LOCAL) == 0
    assert native.rig.entry(L1, 60) == 0
    assert native.state[State.NEW_CR3] == 1
    assert native.rig.mmu.audit() == []


@pytest.mark.parametrize("gva", [1 << 21, 1 << 30, 1 << 39, 257 << 39 | 0xFFFF << 48, 1 << 47, 1 << 63])
def test_update_va_mapping_without_tables_is_handed_on(native: Native, gva: int) -> None:
    before = native.rig.words.tolist()
    assert native.call(UPDATE_VA_MAPPING, gva, FREE << PAGE_SHIFT | PRW, 0) == HANDED_ON
    assert native.rig.words.tolist() == before
