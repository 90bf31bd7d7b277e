"""Stores to page tables: where they go, which are refused, and what happens between their repetitions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from emulate_rig import CODE, DATA, MASK, PAGE, RF, TF, FakeMachine, assemble
from hypothesis import given
from hypothesis import strategies as st

from xenpy.errors import Errno, XenError
from xenpy.pv.emulate import GuestFault, Outcome, decode_store, emulate_store
from xenpy.pv.emulate.decode import REGISTERS

if TYPE_CHECKING:
    from pathlib import Path

FS_BASE, GS_BASE = 0x7000_0000_0000, 0xFFFF_8880_0000_0000
MOV_RDI_RAX = bytes.fromhex("488907")
STOSQ = bytes.fromhex("48ab")
REP = b"\xf3"

# Registers hold 0x1000 times their number (rax 0x1000, rcx 0x2000, ...), r9 -8, and rip CODE.
ADDRESSES = [
    ("[rax]", 0x1000), ("[rbx + 8]", 0x4008), ("[rsp]", 0x5000), ("[rbp]", 0x6000), ("[rbp - 8]", 0x5FF8),
    ("[r12]", 0xD000), ("[r13]", 0xE000), ("[r12 + 0x100]", 0xD100), ("[rsp + 0x12340]", 0x17340),
    ("[rax + rcx * 8]", 0x11000), ("[rsp + rbp * 2 + 16]", 0x11010), ("[rbp + rax]", 0x7000), ("[r13 + r12 * 4]", 0x42000),
    ("[rcx * 4 + 0x20]", 0x8020), ("[r9 * 8 + 0x4000]", 0x3FC0), ("[r9 + rax]", 0xFF8), ("[r9]", MASK - 7),
    ("[0x12345678]", 0x1234_5678), ("[-0x1000]", MASK - 0xFFF), ("[rax - 0x2000]", MASK - 0xFFF),
    ("fs:[0x28]", FS_BASE + 0x28), ("gs:[rax + 0x10]", GS_BASE + 0x1010), ("fs:[r9]", FS_BASE - 8),
    ("[eax]", 0x1000), ("[r9d]", 0xFFFF_FFF8), ("[r9d + ecx]", 0x1FF8), ("gs:[r9d]", GS_BASE + 0xFFFF_FFF8),
    ("[rip + 0x100]", CODE + 0x106), ("[rip - 0x2006]", CODE - 0x2000), ("[eip + 0x100]", CODE + 0x107),
]  # fmt: skip


def numbered(code: bytes = b"") -> FakeMachine:
    machine = FakeMachine(code)
    for number, name in enumerate(REGISTERS, 1):
        setattr(machine.regs, name, 0x1000 * number)
    machine.regs.r9 = MASK - 7
    return machine


def test_addresses(tmp_path: Path) -> None:
    machine = numbered()
    codes = assemble(tmp_path, [f"mov byte ptr {operand}, dl" for operand, _ in ADDRESSES])
    for (operand, gva), code in zip(ADDRESSES, codes, strict=True):
        store = decode_store(machine.regs, code, gva, fs_base=FS_BASE, gs_base=GS_BASE)
        assert store is not None, operand
        assert (store.gva, store.next_rip) == (gva, CODE + len(code)), operand


@pytest.mark.parametrize(("code", "gva"), [("438814a500001000", 0x134000), ("418815f9ffffff", CODE)])
def test_rex_makes_no_base_of_a_displacement(code: str, gva: int) -> None:
    machine = numbered()  # mov [r12 * 4 + 0x100000], dl; mov [rip - 7], dl: both with REX.B, which assemblers leave out
    store = decode_store(machine.regs, bytes.fromhex(code), gva)
    assert store is not None
    assert store.gva == gva


def test_absolute_address_of_eight_bytes(tmp_path: Path) -> None:
    machine = numbered()
    gva = 0xFFFF_8880_1234_5678
    (code,) = assemble(tmp_path, [f"movabs [{gva}], rax"])
    store = decode_store(machine.regs, code, gva)
    assert store is not None
    assert (store.gva, store.size, store.effect(0).new) == (gva, 8, 0x1000)


REFUSED = [
    "push qword ptr [rdi]", "pop qword ptr [rdi]", "call qword ptr [rdi]", "push rax", "cmp [rdi], rax",
    "test [rdi], rax", "mov rax, [rdi]", "mov [rdi], ds", "lock cmpxchg16b [rdi]", "bt [rdi], rax", "bt qword ptr [rdi], 3",
    "movups [rdi], xmm0", "vmovdqu [rdi], ymm0", "add rax, [rdi]", "mov rdi, rax", "xchg rax, rdi", "add rdi, rax", "inc rdi",
    "bts rdi, rax", "bts rdi, 5", "cmpxchg rdi, rax", "xadd rdi, rax", "lea rax, [rdi]", "shl qword ptr [rdi], 1",
    "jmp qword ptr [rdi]", "cmp qword ptr [rdi], 5", "mul qword ptr [rdi]", "fstp qword ptr [rdi]",
    ".byte 0xf0, 0x48, 0x89, 0x07", ".byte 0xf0, 0x48, 0xab",  # lock mov, lock stosq
    ".byte 0x48, 0xc7, 0x4f, 0, 0, 0, 0, 0", ".byte 0x66, 0x0f, 0xc3, 0x07",  # c7 /1, movnti with 66
    "mov ax, 5", "ud2", "hlt",
]  # fmt: skip


def test_what_is_not_a_store_within_an_entry(tmp_path: Path) -> None:
    for text, code in zip(REFUSED, assemble(tmp_path, REFUSED), strict=True):
        machine = FakeMachine(code)
        machine.regs.rdi = machine.regs.rsp = DATA
        assert emulate_store(machine, DATA, machine.update) is Outcome.UNHANDLEABLE, text
        assert (machine.calls, machine.regs.rip) == ([], CODE), text


@pytest.mark.parametrize("rdi", [DATA + 1, DATA + 4, DATA + 7, DATA + PAGE, DATA - 8, DATA + (1 << 48)])
def test_stores_that_are_not_aligned_or_elsewhere(rdi: int) -> None:
    machine = FakeMachine(MOV_RDI_RAX)
    machine.regs.rdi = rdi
    assert emulate_store(machine, DATA, machine.update) is Outcome.UNHANDLEABLE


@pytest.mark.parametrize("length", range(len(MOV_RDI_RAX)))
def test_code_that_ends_early(length: int) -> None:
    machine = FakeMachine()
    assert decode_store(machine.regs, MOV_RDI_RAX[:length], 0) is None


def test_sixteen_bytes_are_no_instruction() -> None:
    machine = FakeMachine()
    assert decode_store(machine.regs, b"\x3e" * 12 + MOV_RDI_RAX, 0) is not None
    assert decode_store(machine.regs, b"\x3e" * 13 + MOV_RDI_RAX, 0) is None


def test_a_rex_prefix_counts_only_before_the_opcode() -> None:
    machine = FakeMachine()
    store = decode_store(machine.regs, b"\x48\x66\x89\x07", 0)
    assert store is None


@pytest.mark.parametrize(("in_kernel", "long_mode"), [(False, True), (False, False)])
def test_only_the_kernel_has_page_tables_to_write(in_kernel: bool, long_mode: bool) -> None:
    machine = FakeMachine(MOV_RDI_RAX)
    machine.regs.rdi = DATA
    machine.in_kernel, machine.long_mode = in_kernel, long_mode
    assert emulate_store(machine, DATA, machine.update) is Outcome.UNHANDLEABLE


def test_a_narrow_store_changes_its_part_of_the_entry() -> None:
    machine = FakeMachine(bytes.fromhex("8907"))
    machine.poke(DATA + 8, bytes.fromhex("1122334455667788"))
    machine.regs.rdi, machine.regs.rax = DATA + 12, 0xAABBCCDD
    assert emulate_store(machine, DATA + 12, machine.update) is Outcome.DONE
    assert machine.calls == [("update", DATA + 8, 0x8877665544332211, 0xAABBCCDD44332211)]
    assert machine.regs.rip == CODE + 2


def test_an_entry_that_changes_meanwhile_is_read_again() -> None:
    machine = FakeMachine(bytes.fromhex("f0480fab07"))  # lock bts [rdi], rax
    machine.regs.rdi, machine.regs.rax = DATA, 40

    def update(gva: int, old: int, new: int) -> bool:
        if not machine.calls:
            machine.poke(DATA, b"\x60")  # the processor sets A and D
        return machine.update(gva, old, new)

    assert emulate_store(machine, DATA, update) is Outcome.DONE
    assert [call[2:] for call in machine.calls] == [(0, 1 << 40), (0x60, 1 << 40 | 0x60)]


def test_an_entry_that_never_stops_changing_is_left_to_the_guest() -> None:
    machine = FakeMachine(MOV_RDI_RAX)
    machine.regs.rdi, machine.regs.rax = DATA, 1
    assert emulate_store(machine, DATA, lambda *_: False) is Outcome.DONE
    assert machine.regs.rip == CODE


def refuse(gva: int, old: int, new: int) -> bool:
    raise XenError(Errno.EINVAL, "no such frame")


def test_a_refused_entry_is_the_guests_page_fault() -> None:
    machine = FakeMachine(bytes.fromhex("48870f"))  # xchg [rdi], rcx
    machine.regs.rdi, machine.regs.rcx = DATA, 1
    before = dict(vars(machine.regs))
    assert emulate_store(machine, DATA, refuse) is Outcome.UNHANDLEABLE
    assert vars(machine.regs) == before


def test_a_failed_cmpxchg_and_a_store_of_the_same_ask_for_no_update() -> None:
    for code in ("f0480fb10f", "48c70700000000"):  # lock cmpxchg [rdi], rcx; mov qword [rdi], 0
        machine = FakeMachine(bytes.fromhex(code))
        machine.regs.rdi, machine.regs.rax, machine.regs.rcx = DATA, 7, 9
        assert emulate_store(machine, DATA, refuse) is Outcome.DONE
        assert machine.regs.rip == CODE + len(code) // 2


# -- repetitions ------------------------------------------------------------------------------------------------------


def test_a_page_table_page_is_cleared_at_once() -> None:
    machine = FakeMachine(REP + STOSQ)
    machine.pages[DATA][:] = b"\xff" * PAGE
    machine.regs.rdi, machine.regs.rcx = DATA, 512
    assert emulate_store(machine, DATA, machine.update) is Outcome.DONE
    assert machine.pages[DATA] == bytes(PAGE)
    assert len(machine.calls) == 512
    assert (machine.regs.rip, machine.regs.rdi, machine.regs.rcx) == (CODE + 3, DATA + PAGE, 0)


def test_a_page_of_bytes_takes_several_faults() -> None:
    machine = FakeMachine(bytes.fromhex("f3aa"))
    machine.regs.rdi, machine.regs.rcx, machine.regs.rax = DATA, PAGE, 0x77
    for left in range(PAGE - 512, -1, -512):
        assert emulate_store(machine, machine.regs.rdi, machine.update) is Outcome.DONE
        assert (machine.regs.rcx, machine.regs.rip) == (left, CODE if left else CODE + 2)
    assert machine.pages[DATA] == b"\x77" * PAGE


def test_repetitions_stop_at_the_end_of_the_page_and_go_on_from_there() -> None:
    machine = FakeMachine(REP + STOSQ)
    machine.pages[DATA + PAGE] = bytearray(PAGE)
    machine.regs.rdi, machine.regs.rcx, machine.regs.rax = DATA + PAGE - 16, 1 << 60, 3
    assert emulate_store(machine, DATA + PAGE - 16, machine.update) is Outcome.DONE
    assert (machine.regs.rip, machine.regs.rdi, machine.regs.rcx) == (CODE, DATA + PAGE, (1 << 60) - 2)
    assert emulate_store(machine, DATA + PAGE, machine.update) is Outcome.DONE
    assert machine.regs.rcx == (1 << 60) - 514
    assert len(machine.calls) == 514


def test_a_refused_repetition_leaves_the_ones_before_it() -> None:
    machine = FakeMachine(REP + STOSQ)
    machine.regs.rdi, machine.regs.rcx, machine.regs.rax = DATA, 4, 5

    def update(gva: int, old: int, new: int) -> bool:
        return machine.update(gva, old, new) if gva < DATA + 16 else refuse(gva, old, new)

    assert emulate_store(machine, DATA, update) is Outcome.DONE
    assert (machine.regs.rip, machine.regs.rdi, machine.regs.rcx) == (CODE, DATA + 16, 2)
    assert emulate_store(machine, DATA + 16, update) is Outcome.UNHANDLEABLE


def test_no_repetitions_are_no_store() -> None:
    machine = FakeMachine(REP + STOSQ)
    machine.regs.rdi = DATA
    assert emulate_store(machine, DATA, machine.update) is Outcome.UNHANDLEABLE


def test_a_copy_from_memory_that_is_not_there_faults_there() -> None:
    machine = FakeMachine(bytes.fromhex("f348a5"))  # rep movsq
    source = CODE + PAGE - 8
    machine.regs.rdi, machine.regs.rsi, machine.regs.rcx = DATA, source - 4, 3
    outcome = emulate_store(machine, DATA, machine.update)
    assert isinstance(outcome, GuestFault)
    assert (outcome.vector, outcome.error_code, outcome.cr2) == (14, 0, CODE + PAGE)
    assert (machine.regs.rcx, machine.regs.rsi, machine.regs.rdi) == (2, source + 4, DATA + 8)


def test_narrow_counts_and_pointers() -> None:
    machine = FakeMachine(b"\x67" + REP + STOSQ)
    machine.regs.rdi, machine.regs.rcx, machine.regs.rax = DATA | 5 << 32, 7 << 32 | 2, 1
    assert emulate_store(machine, DATA, machine.update) is Outcome.DONE
    assert (machine.regs.rdi, machine.regs.rcx, machine.regs.rip) == (DATA + 16, 0, CODE + 4)


# -- single steps -----------------------------------------------------------------------------------------------------


def test_a_single_step_ends_behind_the_instruction() -> None:
    machine = FakeMachine(MOV_RDI_RAX)
    machine.regs.rdi = DATA
    machine.regs.rflags |= TF | RF
    outcome = emulate_store(machine, DATA, machine.update)
    assert isinstance(outcome, GuestFault)
    assert (outcome.vector, machine.regs.rip, machine.drs[6]) == (1, CODE + 3, 1 << 14)
    assert machine.regs.rflags & RF == 0


def test_each_repetition_is_a_step() -> None:
    machine = FakeMachine(REP + STOSQ)
    machine.regs.rdi, machine.regs.rcx = DATA, 2
    machine.regs.rflags |= TF
    for rip in (CODE, CODE + 3):
        assert isinstance(emulate_store(machine, machine.regs.rdi, machine.update), GuestFault)
        assert machine.regs.rip == rip


# -- any bytes --------------------------------------------------------------------------------------------------------

PREFIXES = st.lists(st.sampled_from(b"\x66\x67\xf0\xf2\xf3\x64\x65\x2e\x48\x4f\x41\x0f"), max_size=5).map(bytes)


@given(
    prefixes=PREFIXES,
    tail=st.binary(max_size=16),
    values=st.lists(st.integers(0, MASK), min_size=17, max_size=17),
    rflags=st.integers(0, (1 << 22) - 1),
)
def test_no_bytes_are_an_exception(prefixes: bytes, tail: bytes, values: list[int], rflags: int) -> None:
    machine = FakeMachine(prefixes + tail)
    for name, value in zip(REGISTERS, values, strict=False):
        setattr(machine.regs, name, value)
    machine.regs.rflags = rflags
    for fault_gva in values:
        store = decode_store(machine.regs, prefixes + tail, fault_gva, fs_base=values[0], gs_base=values[16])
        if store is not None:
            effect = store.effect((1 << 8 * store.size) - 1)
            assert store.gva % store.size == 0
            assert 0 <= effect.new < 1 << 8 * store.size
            assert all(0 <= value <= MASK and name in REGISTERS for name, value in effect.registers)
            assert 0 <= effect.rflags < 1 << 22
            assert (store.next_rip - CODE & MASK) <= 15


@given(prefixes=PREFIXES, tail=st.binary(max_size=16), rcx=st.integers(0, MASK), rflags=st.integers(0, 0xFFF))
def test_no_store_leaves_its_page(prefixes: bytes, tail: bytes, rcx: int, rflags: int) -> None:
    machine = FakeMachine(prefixes + tail)
    for name in REGISTERS:
        setattr(machine.regs, name, DATA + 0x800)
    machine.regs.rcx, machine.regs.rflags = rcx, rflags
    before = bytes(machine.pages[CODE])
    outcome = emulate_store(machine, DATA + 0x800, machine.update)
    assert len(machine.calls) <= 512
    assert machine.pages[CODE] == before
    if outcome is Outcome.UNHANDLEABLE:
        assert machine.regs.rip == CODE
