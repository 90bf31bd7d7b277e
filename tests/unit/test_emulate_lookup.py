"""Loads from the machine-to-physical map where Xen has it."""

from __future__ import annotations

import pytest
from emulate_rig import CODE, FakeMachine

from xenpy.pv.emulate import MACH2PHYS, Outcome, emulate_load

WORD = 0x1122_3344_8566_7788
OLD = 0xFFFF_FFFF_FFFF_FFFF


def read(gva: int, size: int) -> int | None:
    index, offset = divmod(gva - MACH2PHYS, 8)
    return WORD >> 8 * offset & (1 << 8 * size) - 1 if index == 5 else None


@pytest.mark.parametrize(
    ("code", "offset", "register", "value"),
    [
        ("498b04c1", 40, "rax", WORD),  # mov rax, [r9 + rax * 8]
        ("418b04c1", 40, "rax", 0x8566_7788),  # mov eax, ...: the upper half is cleared
        ("66418b0cc1", 40, "rcx", OLD - 0xFFFF + 0x7788),  # mov cx, ...: the rest is kept
        ("418a0cc1", 40, "rcx", OLD - 0xFF + 0x88),  # mov cl, ...
        ("410fb604c1", 40, "rax", 0x88),  # movzx eax, byte
        ("490fb74cc102", 42, "rcx", 0x8566),  # movzx rcx, word
        ("4d8b4cc100", 40, "r9", WORD),  # mov r9, [r9 + rax * 8 + 0]
    ],
)
def test_sets_the_register(code: str, offset: int, register: str, value: int) -> None:
    machine = FakeMachine(bytes.fromhex(code))
    machine.regs.r9, machine.regs.rax, machine.regs.rcx = MACH2PHYS, 5, OLD
    assert emulate_load(machine, MACH2PHYS + offset, read) is Outcome.DONE
    assert getattr(machine.regs, register) == value
    assert machine.regs.rip == CODE + len(code) // 2


@pytest.mark.parametrize(
    ("code", "rax", "in_kernel"),
    [
        ("498b04c1", 6, True),  # nothing is there
        ("498904c1", 5, True),  # a store
        ("493b04c1", 5, True),  # cmp: not emulated
        ("4989c8", 5, True),  # no memory operand
        ("498b04c1", 5, False),
    ],
)
def test_leaves_the_rest_to_the_guest(code: str, rax: int, in_kernel: bool) -> None:
    machine = FakeMachine(bytes.fromhex(code))
    machine.in_kernel = in_kernel
    machine.regs.r9, machine.regs.rax = MACH2PHYS, rax
    assert emulate_load(machine, MACH2PHYS + 8 * rax, read) is Outcome.UNHANDLEABLE
    assert (machine.regs.rip, machine.regs.rax) == (CODE, rax)
