"""Stores to page tables against the processor itself: the same instruction, operands and flags, and the same outcome."""

from __future__ import annotations

import os
import random
import struct
from typing import TYPE_CHECKING, Any

import pytest
from emulate_rig import CODE, MASK, PAGE, FakeMachine, assemble

from xenpy import libc
from xenpy.framepool import FramePool
from xenpy.pv.emulate import Outcome, emulate_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CF, PF, AF, ZF, SF, OF = (1 << bit for bit in (0, 2, 4, 6, 7, 11))
STATUS = CF | PF | AF | ZF | SF | OF
INTERRUPTS_ON = 0x202
"""RFLAGS.IF, and the bit that is always set."""
LOGIC = STATUS & ~AF
"""The flags that and, or and xor define."""

# The operand is at [rdi] unless the instruction says otherwise; rdi points into the middle of the area. r14 and r15 are the harness's.
SIZES = {"byte": ("cl", 1), "word": ("cx", 2), "dword": ("ecx", 4), "qword": ("rcx", 8)}
CASES: list[tuple[str, int]] = [
    *[(f"{op} {size} ptr [rdi], {SIZES[size][0]}", STATUS) for op in ("add", "adc", "sub", "sbb") for size in SIZES],
    *[(f"{op} {size} ptr [rdi], {SIZES[size][0]}", LOGIC) for op in ("and", "or", "xor") for size in SIZES],
    *[(f"{op} {size} ptr [rdi], 0x71", STATUS) for op in ("add", "adc", "sub", "sbb") for size in SIZES],
    *[(f"{op} {size} ptr [rdi], -7", LOGIC) for op in ("and", "or", "xor") for size in SIZES],
    *[(f"{op} {size} ptr [rdi], -0x5000000", STATUS) for op in ("adc", "sub") for size in ("dword", "qword")],
    *[(f"lock {op} {size} ptr [rdi]", STATUS) for op in ("inc", "dec", "not", "neg") for size in SIZES],
    *[(f"{op} {size} ptr [rdi]", STATUS) for op in ("inc", "dec", "not", "neg") for size in SIZES],
    *[(f"lock {op} {size} ptr [rdi], {SIZES[size][0]}", STATUS) for op in ("cmpxchg", "xadd") for size in SIZES],
    *[(f"xchg {size} ptr [rdi], {SIZES[size][0]}", STATUS) for size in SIZES],
    *[(f"mov {size} ptr [rdi], {SIZES[size][0]}", STATUS) for size in SIZES],
    *[(f"mov {size} ptr [rdi], 0x12", STATUS) for size in SIZES],
    *[(f"lock {op} {size} ptr [rdi], {SIZES[size][0]}", CF | ZF)
      for op in ("bts", "btr", "btc") for size in ("word", "dword", "qword")],
    *[(f"{op} {size} ptr [rdi], {bit}", CF | ZF)
      for op in ("bts", "btr", "btc") for size in ("word", "dword", "qword") for bit in (0, 7, 15, 77)],
    ("mov word ptr [rdi], 0x1234", STATUS), ("mov dword ptr [rdi], 0x12345678", STATUS),
    ("mov qword ptr [rdi], -0x12345678", STATUS), ("movnti [rdi], rcx", STATUS), ("movnti [rdi], ecx", STATUS),
    ("xchg [rdi], ah", STATUS), ("xadd [rdi], bh", STATUS), ("mov [rdi], dh", STATUS), ("xadd [rdi], sil", STATUS),
    ("cmpxchg [rdi], ch", STATUS), ("add [rdi], r9", STATUS), ("lock xadd [rdi], eax", STATUS),
    ("lock cmpxchg [rdi], rax", STATUS), ("xchg [rdi], rdi", STATUS), ("xadd [rdi], di", STATUS),
    ("lock cmpxchg8b [rdi]", STATUS), ("cmpxchg8b [rdi]", STATUS),
    ("stosb", STATUS), ("stosw", STATUS), ("stosd", STATUS), ("stosq", STATUS),
    ("movsb", STATUS), ("movsw", STATUS), ("movsd", STATUS), ("movsq", STATUS),
    ("mov ecx, 9\n rep stosq", STATUS), ("mov ecx, 13\n rep stosb", STATUS), ("mov ecx, 5\n rep movsq", STATUS),
    ("std\n mov ecx, 5\n rep movsq", STATUS), ("std\n mov ecx, 6\n rep stosw", STATUS),
]  # fmt: skip
FILE = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13")
FLAGS_SLOT = len(FILE)
AREA_SIZE = 2048
SAVED = ("rbx", "rbp", "r12", "r13", "r14", "r15")
PROLOGUE = "\n".join(
    [*(f"push {name}" for name in SAVED), "mov r15, rdi", f"push qword ptr [r15 + {8 * FLAGS_SLOT}]", "popfq"]
    + [f"mov {name}, [r15 + {8 * slot}]" for slot, name in enumerate(FILE)]
)
EPILOGUE = "\n".join(
    ["pushfq", f"pop qword ptr [r15 + {8 * FLAGS_SLOT}]", "cld"]
    + [f"mov [r15 + {8 * slot}], {name}" for slot, name in enumerate(FILE)]
    + [*(f"pop {name}" for name in reversed(SAVED)), "ret"]
)
OPERANDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
ROUNDS = 60


class Native:
    """Runs instructions in this process: a page of registers, then `AREA_SIZE` bytes that operands lie in."""

    def __init__(self, directory: Path) -> None:
        self._prologue, self._epilogue, *code = assemble(directory, [PROLOGUE, EPILOGUE, *(each for each, _ in CASES)])
        self.code = {each: text for (each, _), text in zip(CASES, code, strict=True)}
        self._functions: dict[str, Callable[[int, int, int], int]] = {}
        self._pool = FramePool(1)
        frame = self._pool.allocate()
        self.view, self.hva = self._pool.view(frame), self._pool.hva(frame)
        self.area = self.hva + 4096 - AREA_SIZE
        self._map(list(self.code))

    def _map(self, cases: list[str]) -> None:
        text = bytearray()
        starts = []
        for case in cases:
            starts.append(len(text))
            text += self._prologue + self.code[case] + self._epilogue
        fd = os.memfd_create("xenpy-test")
        os.write(fd, text)
        base = libc.map_memory(0, len(text), libc.PROT_READ | libc.PROT_EXEC, libc.MAP_PRIVATE, fd)
        os.close(fd)
        self._code = base, len(text)
        for case, start in zip(cases, starts, strict=True):
            self._functions[case] = libc.native_function(base + start, "native_word_op")

    def run(self, case: str, regs: dict[str, int], rflags: int, area: bytes) -> tuple[dict[str, int], int, bytes]:
        struct.pack_into(f"<{FLAGS_SLOT + 1}Q", self.view, 0, *(regs[name] for name in FILE), rflags)
        self.view[-AREA_SIZE:] = area
        self._functions[case](self.hva, 0, 0)
        *values, flags = struct.unpack_from(f"<{FLAGS_SLOT + 1}Q", self.view)
        return dict(zip(FILE, values, strict=True)), flags, bytes(self.view[-AREA_SIZE:])

    def close(self) -> None:
        libc.unmap_memory(*self._code)
        self.view.release()
        self._pool.close()


@pytest.fixture(scope="module")
def native(tmp_path_factory: Any) -> Iterator[Native]:
    native = Native(tmp_path_factory.mktemp("native"))
    yield native
    native.close()


def emulated(
    code: bytes, regs: dict[str, int], rflags: int, area_gva: int, area: bytes
) -> tuple[dict[str, int], int, bytes]:
    machine = FakeMachine(code)
    machine.pages[area_gva & -PAGE] = bytearray(PAGE - AREA_SIZE) + area
    for name, value in regs.items():
        setattr(machine.regs, name, value)
    machine.regs.rflags = rflags
    outcome = emulate_store(machine, area_gva, machine.update)
    assert outcome is Outcome.DONE
    assert machine.regs.rip == CODE + len(code)
    return {name: getattr(machine.regs, name) for name in FILE}, machine.regs.rflags, machine.read(area_gva, AREA_SIZE)


def without_setup(case: str, code: bytes, regs: dict[str, int]) -> tuple[bytes, int]:
    """Return the last instruction of a case, and RFLAGS.DF; what comes before it is done by hand: `std`, and `mov ecx`."""
    direction = 0
    for line in case.split("\n")[:-1]:
        if line == "std":
            direction, code = 1 << 10, code[1:]
        else:
            regs["rcx"], code = int(line.rpartition(" ")[2]), code[5:]
    return code, direction


@pytest.mark.parametrize(("case", "flags"), CASES, ids=[case.replace("\n", ";") for case, _ in CASES])
def test_as_the_processor_does_it(native: Native, case: str, flags: int) -> None:
    chance = random.Random(case)
    for turn in range(ROUNDS):
        regs = {name: chance.choice(OPERANDS) if turn % 2 else chance.getrandbits(64) for name in FILE}
        regs |= {"rdi": native.area + AREA_SIZE // 2, "rsi": native.area + 64}
        if case.startswith(("bt", "lock bt")):
            regs["rcx"] = chance.randrange(-4096, 4096) & MASK  # bits from rdi, on both sides of it but within the area
        operand = chance.choice(OPERANDS)
        if turn % 3 == 0:  # so that cmpxchg and cmpxchg8b find what they expect
            operand = regs["rdx"] << 32 & MASK | regs["rax"] & 0xFFFF_FFFF if "8b" in case else regs["rax"]
        area = chance.randbytes(AREA_SIZE // 2) + operand.to_bytes(8, "little") + chance.randbytes(AREA_SIZE // 2 - 8)
        status = chance.getrandbits(12) & STATUS | INTERRUPTS_ON
        expected, expected_flags, expected_area = native.run(case, regs, status, area)
        code, direction = without_setup(case, native.code[case], regs)
        found, found_flags, found_area = emulated(code, regs, status | direction, native.area, area)
        assert found == expected
        assert found_flags & flags == expected_flags & flags
        assert found_area == expected_area
