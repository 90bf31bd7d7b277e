"""Privileged instructions in ring 3: what each does, from where, and that nothing else is done."""

from __future__ import annotations

from typing import Any

import pytest
from emulate_rig import CODE, DATA, MASK, PAGE, RF, TF, FakeMachine
from hypothesis import given
from hypothesis import strategies as st

from xenpy.pv.emulate import GuestFault, Outcome, emulate_forced, emulate_privileged
from xenpy.pv.emulate.decode import REGISTERS

DF = 1 << 10
LOW = (1 << 32) - 1


def machine_at(code: str, **regs: int) -> FakeMachine:
    machine = FakeMachine(bytes.fromhex(code))
    for name, value in regs.items():
        setattr(machine.regs, name, value)
    return machine


def done(machine: FakeMachine, length: int) -> None:
    assert emulate_privileged(machine) is Outcome.DONE
    assert machine.regs.rip == CODE + length


def fault(machine: FakeMachine) -> tuple[int, int, int]:
    """Run an instruction that faults; return vector, error code and CR2."""
    before = dict(vars(machine.regs))
    outcome = emulate_privileged(machine)
    assert isinstance(outcome, GuestFault)
    assert vars(machine.regs) == before
    return outcome.vector, outcome.error_code, outcome.cr2


GP = (13, 0, 0)
UD = (6, 0, 0)

# -- ports ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "port", "size", "rax"),
    [
        ("e442", 0x42, 1, 0xFFFF_FFFF_FFFF_FF5A),
        ("66e542", 0x42, 2, 0xFFFF_FFFF_FFFF_5A5A),
        ("e542", 0x42, 4, 0x5A5A_5A5A),
        ("48ed", 0x123, 4, 0x5A5A_5A5A),
        ("ec", 0x123, 1, 0xFFFF_FFFF_FFFF_FF5A),
        ("66ed", 0x123, 2, 0xFFFF_FFFF_FFFF_5A5A),
        ("ed", 0x123, 4, 0x5A5A_5A5A),
    ],
)
def test_in(code: str, port: int, size: int, rax: int) -> None:
    machine = machine_at(code, rax=MASK, rdx=0xABCD_0123)
    machine.ports[port] = 0x5A5A_5A5A & (1 << 8 * size) - 1
    done(machine, len(code) // 2)
    assert machine.calls == [("in", port, size)]
    assert machine.regs.rax == rax


@pytest.mark.parametrize(
    ("code", "port", "size"),
    [("e680", 0x80, 1), ("66e780", 0x80, 2), ("e780", 0x80, 4), ("ee", 0x123, 1), ("66ef", 0x123, 2), ("ef", 0x123, 4)],
)
def test_out(code: str, port: int, size: int) -> None:
    machine = machine_at(code, rax=0x1122_3344_5566_7788, rdx=0x123)
    done(machine, len(code) // 2)
    assert machine.calls == [("out", port, size, 0x5566_7788 & (1 << 8 * size) - 1)]


def test_repeated_input_and_output() -> None:
    machine = machine_at("f3666d", rdi=DATA, rcx=3, rdx=0x99)  # rep insw
    machine.ports[0x99] = 0xBEEF
    done(machine, 3)
    assert machine.read(DATA, 8) == b"\xef\xbe" * 3 + bytes(2)
    assert (machine.regs.rdi, machine.regs.rcx) == (DATA + 6, 0)
    machine = machine_at("f36e", rsi=DATA + 2, rcx=3, rdx=0x99, rflags=DF | 2)  # rep outsb, downwards
    machine.poke(DATA, b"abc")
    done(machine, 2)
    assert [call[3] for call in machine.calls] == list(b"cba")
    assert (machine.regs.rsi, machine.regs.rcx) == (DATA - 1, 0)
    machine = machine_at("6d", rdi=DATA, rcx=3, rdx=0x99)  # insd, once
    done(machine, 1)
    assert (machine.regs.rdi, machine.regs.rcx) == (DATA + 4, 3)


def test_outs_heeds_a_segment_and_narrow_addresses() -> None:
    machine = machine_at("65676f", rsi=7 << 32 | 8, rdx=0x99)  # gs outsd with 32-bit addresses
    machine.gs_base = DATA
    machine.poke(DATA + 8, b"\x01\x02\x03\x04")
    done(machine, 3)
    assert machine.calls == [("out", 0x99, 4, 0x04030201)]
    assert machine.regs.rsi == 12


def test_no_repetitions_at_all() -> None:
    machine = machine_at("f36c", rdi=DATA, rdx=0x99)
    done(machine, 2)
    assert machine.calls == []


def test_many_repetitions_take_turns_with_events() -> None:
    machine = machine_at("f36e", rsi=DATA, rcx=1 << 40, rdx=0x80)
    done(machine, 0)
    assert 0 < len(machine.calls) == (1 << 40) - machine.regs.rcx <= 4096


@pytest.mark.parametrize(("in_kernel", "user"), [(True, 0), (False, 4)])
def test_memory_that_input_cannot_reach(in_kernel: bool, user: int) -> None:
    machine = machine_at("f36d", rdi=DATA + PAGE - 6, rcx=3, rdx=0x99)
    machine.iopl, machine.in_kernel = 3, in_kernel
    outcome = emulate_privileged(machine)
    assert isinstance(outcome, GuestFault)
    assert (outcome.vector, outcome.error_code, outcome.cr2) == (14, 2 | user, DATA + PAGE)
    assert (machine.regs.rcx, machine.regs.rdi, machine.regs.rip) == (2, DATA + PAGE - 2, CODE)
    machine = machine_at("6e", rsi=DATA + PAGE, rdx=0x99)
    assert fault(machine) == (14, 0, DATA + PAGE)


# -- virtual IOPL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["fa", "fb", "ec", "e680", "6c", "6e"])
@pytest.mark.parametrize(
    ("in_kernel", "architectural", "enough"), [(True, False, 1), (True, True, 0), (False, False, 3), (False, True, 3)]
)
@pytest.mark.parametrize("iopl", range(4))
def test_iopl(code: str, in_kernel: bool, architectural: bool, enough: int, iopl: int) -> None:
    machine = machine_at(code, rdi=DATA, rsi=DATA)
    machine.in_kernel, machine.architectural_iopl, machine.iopl = in_kernel, architectural, iopl
    if iopl >= enough:
        done(machine, len(code) // 2)
    else:
        assert fault(machine) == GP
        assert machine.calls == []


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("code", ["66ed", "ed", "e580", "ef", "6d", "6f"])
def test_ports_by_the_bitmap(code: str, in_kernel: bool) -> None:
    machine = machine_at(code, rdi=DATA, rsi=DATA, rdx=0x80)
    machine.iopl, machine.in_kernel = 0, in_kernel
    size = 2 if code.startswith("66") else 4
    machine.open_ports = set(range(0x80, 0x80 + size - 1))
    assert fault(machine) == GP
    assert machine.calls == []
    machine.open_ports.add(0x80 + size - 1)
    done(machine, len(code) // 2)
    assert len(machine.calls) == 1


@pytest.mark.parametrize("code", ["fa", "fb"])
def test_cli_and_sti_change_nothing(code: str) -> None:
    machine = machine_at(code, rflags=0x202)
    before = dict(vars(machine.regs), rip=CODE + 1)
    done(machine, 1)
    assert vars(machine.regs) == before


# -- control, debug and model-specific registers ----------------------------------------------------------------------


def test_control_registers() -> None:
    machine = machine_at("440f20d9")  # mov rcx, cr3 with REX.R would be cr11
    assert fault(machine) == GP
    machine = machine_at("410f20d9")  # mov r9, cr3
    done(machine, 4)
    assert machine.regs.r9 == 0x5000
    machine = machine_at("0f2218", rax=0x7000)  # mov cr3, rax, with a mod that means memory elsewhere
    done(machine, 3)
    assert machine.calls == [("cr", 3, 0x7000)]


def test_clts() -> None:
    machine = machine_at("0f06")
    done(machine, 2)
    assert machine.crs[0] == 0x8000_0033


@pytest.mark.parametrize("reg", [1, 5, 6, 7])
@pytest.mark.parametrize("opcode", [0x20, 0x22])
def test_control_registers_that_are_not_there(reg: int, opcode: int) -> None:
    assert fault(machine_at(f"0f{opcode:02x}{0xC0 | reg << 3:02x}")) == GP


def test_debug_registers() -> None:
    machine = machine_at("0f23f8", rax=0x455)  # mov dr7, rax
    done(machine, 3)
    assert machine.drs[7] == 0x455
    machine = machine_at("0f21eb")  # mov rbx, dr5
    machine.drs[7] = 0x400
    done(machine, 3)
    assert machine.regs.rbx == 0x400
    machine = machine_at("0f21eb")
    machine.crs[4] |= 8
    assert fault(machine) == UD
    assert fault(machine_at("440f21c0")) == UD


def test_model_specific_registers() -> None:
    machine = machine_at("0f32", rcx=5 << 32 | 0xC000_0100, rax=MASK, rdx=MASK)
    machine.msrs[0xC000_0100] = 0x7000_1234_5678
    done(machine, 2)
    assert (machine.regs.rdx, machine.regs.rax) == (0x7000, 0x1234_5678)
    machine = machine_at("0f30", rcx=0xC000_0100, rax=5 << 32 | 7, rdx=6 << 32 | 9)
    machine.msrs[0xC000_0100] = 0
    done(machine, 2)
    assert machine.msrs == {0xC000_0100: 9 << 32 | 7}
    assert fault(machine_at("0f32")) == GP
    assert fault(machine_at("0f30")) == GP


def test_xsetbv() -> None:
    machine = machine_at("0f01d1", rax=7, rdx=1)
    done(machine, 3)
    assert machine.calls == [("xsetbv", 0, 1 << 32 | 7)]
    assert fault(machine_at("0f01d1", rcx=1)) == GP


def test_wbinvd() -> None:
    done(machine_at("0f09"), 2)


# -- what user mode may do too ----------------------------------------------------------------------------------------


def test_time_stamp_counter() -> None:
    machine = machine_at("0f31")
    machine.in_kernel = False
    done(machine, 2)
    assert machine.regs.rdx << 32 | machine.regs.rax == machine.tsc
    machine = machine_at("0f01f9", rcx=MASK)  # rdtscp
    machine.msrs[0xC000_0103] = 0x3003
    machine.in_kernel = False
    done(machine, 3)
    assert machine.regs.rdx << 32 | machine.regs.rax == machine.tsc
    assert machine.regs.rcx == 0x3003


@pytest.mark.parametrize("code", ["0f31", "0f01f9"])
def test_a_kernel_that_keeps_the_time_stamp_counter_to_itself(code: str) -> None:
    machine = machine_at(code)
    machine.msrs[0xC000_0103] = 0
    machine.crs[4] |= 4
    machine.in_kernel = False
    assert fault(machine) == GP
    machine.in_kernel = True
    done(machine, len(code) // 2)


@pytest.mark.parametrize("in_kernel", [False, True])
def test_cpuid(in_kernel: bool) -> None:
    machine = machine_at("0fa2", rax=5 << 32 | 0xD, rcx=6 << 32 | 1)
    machine.in_kernel = in_kernel
    done(machine, 2)
    assert machine.calls == [("cpuid", 0xD, 1)]
    assert [getattr(machine.regs, name) for name in ("rax", "rbx", "rcx", "rdx")] == [1, 2, 3, LOW]


PRIVILEGED = ["0f06", "0f09", "0f20c0", "0f22c0", "0f21c0", "0f23c0", "0f30", "0f32", "0f01d1"]


@pytest.mark.parametrize("code", PRIVILEGED)
@pytest.mark.parametrize("long_mode", [True, False])
def test_user_mode_may_not(code: str, long_mode: bool) -> None:
    machine = machine_at(code)
    machine.in_kernel, machine.long_mode, machine.iopl = False, long_mode, 3
    assert fault(machine) == GP
    assert machine.calls == []


def test_code_of_32_bits() -> None:
    machine = machine_at("e480", rip=0xFFFF_FFFE)  # in at the end of the address space
    machine.pages[0xFFFF_F000] = bytearray(PAGE - 2) + bytes.fromhex("e480")
    machine.in_kernel, machine.long_mode, machine.iopl = False, False, 3
    assert emulate_privileged(machine) is Outcome.DONE
    assert machine.regs.rip == 0
    machine = machine_at("48ed")  # dec eax; in: not ours
    machine.long_mode = False
    assert emulate_privileged(machine) is Outcome.UNHANDLEABLE


# -- what is not emulated ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "f4", "9d", "0f08", "0f01d0", "0f01f8", "0f0138", "0f0110", "0f00d8", "0f78c0", "48cf", "cd80", "488907", "f00f06",
        "660f01d1", "f30f01f9", "0f", "", "66", "8ed8", "0f01", "0fae00", "e4", "67",
    ],
)  # fmt: skip
def test_other_instructions_are_the_guests_fault(code: str) -> None:
    machine = FakeMachine()
    machine.pages[CODE] = bytearray.fromhex(code)
    before = dict(vars(machine.regs))
    assert emulate_privileged(machine) is Outcome.UNHANDLEABLE
    assert (vars(machine.regs), machine.calls) == (before, [])


# -- stepping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "code"), [(emulate_privileged, "fa"), (emulate_forced, "0f0b78656e0fa2")])
def test_single_step(run: Any, code: str) -> None:
    machine = machine_at(code, rflags=TF | RF | 2)
    outcome = run(machine)
    assert isinstance(outcome, GuestFault)
    assert (outcome.vector, machine.regs.rip, machine.drs[6]) == (1, CODE + len(code) // 2, 1 << 14)
    assert machine.regs.rflags == TF | 2


# -- forced emulation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_kernel", [False, True])
def test_forced_cpuid(in_kernel: bool) -> None:
    machine = machine_at("0f0b78656e0fa2", rax=0x4000_0000, rcx=2)
    machine.in_kernel = in_kernel
    assert emulate_forced(machine) is Outcome.DONE
    assert (machine.calls, machine.regs.rip) == ([("cpuid", 0x4000_0000, 2)], CODE + 7)


@pytest.mark.parametrize("code", ["0f0b", "0f0b78656e", "0f0b78656e0f31", "0f0b78656e48", "0fa2", "0f0b78656f0fa2"])
def test_the_prefix_with_anything_else(code: str) -> None:
    machine = machine_at(code)
    assert emulate_forced(machine) is Outcome.UNHANDLEABLE
    assert (machine.calls, machine.regs.rip) == ([], CODE)


# -- any bytes --------------------------------------------------------------------------------------------------------


@given(
    prefixes=st.lists(st.sampled_from(b"\x66\x67\xf0\xf2\xf3\x65\x48\x4f\x0f"), max_size=4).map(bytes),
    tail=st.binary(max_size=12),
    values=st.lists(st.integers(0, MASK), min_size=16, max_size=16),
    rflags=st.integers(0, 0xFFFF),
    kernel=st.booleans(),
    wide=st.booleans(),
)
def test_no_bytes_are_an_exception(
    prefixes: bytes, tail: bytes, values: list[int], rflags: int, kernel: bool, wide: bool
) -> None:
    machine = FakeMachine(prefixes + tail)
    machine.iopl, machine.in_kernel, machine.long_mode = 3, kernel, wide
    for name, value in zip(REGISTERS, values, strict=True):
        setattr(machine.regs, name, value)
    machine.regs.rflags = rflags
    emulate_privileged(machine)
    emulate_forced(machine)
    assert all(0 <= getattr(machine.regs, name) <= MASK for name in (*REGISTERS, "rip"))
    assert CODE <= machine.regs.rip <= CODE + 22
