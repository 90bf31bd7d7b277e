"""The assembler against binutils: a table of every instruction, with all registers and all shapes of memory operands."""

from __future__ import annotations

import random
import shutil
import subprocess
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from xenpy.asm import Assembler, Mem, mem, registers
from xenpy.asm.registers import (
    Control,
    Debug,
    Reg,
    Register,
    Segment,
    al,
    ax,
    cl,
    cs,
    dx,
    eax,
    fs,
    gs,
    rax,
    rbx,
    rcx,
    rdi,
    rsp,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLOT = 16  # one instruction of at most 15 bytes, then INT3
INT3 = 0xCC
PTR = {1: "byte ptr ", 2: "word ptr ", 4: "dword ptr ", 8: "qword ptr ", 16: "xmmword ptr ", 0: ""}

REGS = {size: [r for r in vars(registers).values() if isinstance(r, Reg) and r.size == size] for size in (1, 2, 4, 8)}
SEGMENTS = [r for r in vars(registers).values() if isinstance(r, Segment)]
SPECIAL = [r for r in vars(registers).values() if isinstance(r, Control | Debug)]
INDICES = [r for r in REGS[8] if r is not rsp]
DISPS = (0, 1, -1, 127, -128, 128, -129, 0x12345678, -0x80000000, 0x7FFFFFFF)
IMMS = {
    1: (0, 1, 5, -1, 0x7F, -0x80, 0xFF),
    2: (0, 1, -1, 0x7F, 0x80, -0x80, -0x81, 0x1234, 0xFFFF, 0xFF7F),
    4: (0, 1, -1, 0x7F, 0x80, -0x80, -0x81, 0x12345678, 0xFFFFFFFF, 0xFFFFFF7F, -0x80000000),
    8: (0, 1, -1, 0x7F, 0x80, -0x80, -0x81, 0x7FFFFFFF, -0x80000000, 0xFFFFFFFF80000000, 0xFFFFFFFFFFFFFFFF),
}
CONDITIONS = (
    "o",
    "no",
    "b",
    "c",
    "ae",
    "nc",
    "e",
    "z",
    "ne",
    "nz",
    "be",
    "a",
    "s",
    "ns",
    "p",
    "np",
    "l",
    "ge",
    "le",
    "g",
)
ARITHMETIC = ("add", "or_", "adc", "sbb", "and_", "sub", "xor", "cmp")
PLAIN = (
    "clc", "stc", "cld", "std", "cli", "sti", "clac", "stac", "pushfq", "popfq", "nop", "pause", "hlt", "ud2", "int3", "iretq", "syscall",
    "sysretq", "swapgs", "cpuid", "rdtsc", "rdmsr", "wrmsr", "xgetbv", "mfence", "lfence", "ret",
)  # fmt: skip


class Place(NamedTuple):
    """A memory operand of ours beside binutils' notation of it."""

    operand: Mem
    text: str


class Case(NamedTuple):
    """One instruction: how we write it, how binutils does."""

    method: str
    operands: tuple[object, ...]
    size: int
    locked: bool
    text: str


def bases() -> list[Place]:
    return [Place(mem(base, disp), f"[{base} + {disp}]") for base, disp in product(REGS[8], DISPS)]


def indexed() -> list[Place]:
    rng = random.Random(1)
    found = [
        Place(mem(scale=(i, f), disp=d), f"[{i}*{f} + {d}]") for i, f, d in product(INDICES, (2, 4, 8), (0, 5, -999))
    ]
    for base, index, factor in product(REGS[8], INDICES, (1, 2, 4, 8)):
        disp = rng.choice(DISPS)
        found.append(Place(mem(base, disp, scale=(index, factor)), f"[{base} + {index}*{factor} + {disp}]"))
    return found


SPECIAL_PLACES = [
    Place(mem(rip="base"), "[rip + base]"),
    Place(mem(rip="base", disp=24), "[rip + base + 24]"),
    Place(mem(rip="end", disp=-24, seg=gs), "gs:[rip + end - 24]"),
    Place(mem(rip=0x100), "[rip + base + 0x100]"),
    Place(mem(disp=0x1234), "[0x1234]"),
    Place(mem(disp=0, seg=gs), "gs:[0]"),
    Place(mem(disp=0xFFFFFFFF81000000), "[0xffffffff81000000]"),
    Place(mem(disp=-16, seg=fs), "fs:[-16]"),
    Place(mem(rbx, 8, seg=fs), "fs:[rbx + 8]"),
    Place(mem(rsp, scale=(rcx, 8), seg=gs), "gs:[rsp + rcx*8]"),
    Place(mem(rdi, seg=cs), "cs:[rdi]"),
]
SOME = SPECIAL_PLACES + [
    Place(mem(base, disp), f"[{base} + {disp}]") for base, disp in product(REGS[8], (0, 100, 1000))
]


def case(
    method: str, *operands: object, size: int = 0, ptr: int | None = None, locked: bool = False, text: str = ""
) -> Case:
    """Make a case; `ptr` is the size that binutils is told where we need none."""
    if not text:
        width = ptr if ptr is not None else size or next((op.size for op in operands if isinstance(op, Reg)), 0)
        written = [PTR[width] + op.text if isinstance(op, Place) else str(op) for op in operands]
        text = ("lock " if locked else "") + method.strip("_") + " " + ", ".join(written)
    return Case(method, operands, size, locked, text)


def sizes(*chosen: int) -> Iterator[tuple[int, Reg, Place]]:
    """Pair each register of each size with a place, and each place with some register."""
    for size in chosen or (1, 2, 4, 8):
        for n in range(max(len(REGS[size]), len(SOME))):
            yield size, REGS[size][n % len(REGS[size])], SOME[n * 7 % len(SOME)]


def moves() -> Iterator[Case]:
    for size in (1, 2, 4, 8):
        yield from (case("mov", a, b) for a, b in product(REGS[size], REGS[size]))
        for reg, imm in product(REGS[size], IMMS[size]):
            if size < 8 or not 0 <= imm < 1 << 32:
                yield case("mov", reg, imm)
    for n, imm in product(
        range(16), (0, 1, 0x80, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    ):  # the shorter form clears the upper half
        yield case("mov", REGS[8][n], imm, text=f"mov {REGS[4][n]}, {imm}")
    yield from (
        case("mov", reg, imm) for reg, imm in product(REGS[8], (1 << 32, -(1 << 31) - 1, 1 << 63, (1 << 63) - 1))
    )
    for place in (*bases(), *indexed()):
        yield case("mov", REGS[8][len(place.text) % 16], place)
    for size, reg, place in sizes():
        yield case("mov", reg, place)
        yield case("mov", place, reg)
        yield case("mov", place, IMMS[size][len(place.text) % 7], size=size)
    for reg, special in product(REGS[8], SPECIAL):
        yield case("mov", reg, special)
        yield case("mov", special, reg)
    for segment in SEGMENTS:
        yield from (case("mov", reg, segment) for reg in REGS[2] + REGS[4])
        yield from (
            case("mov", wide, segment, text=f"mov {reg}, {segment}") for wide, reg in zip(REGS[8], REGS[4], strict=True)
        )
        yield from (case("mov", place, segment, ptr=2) for place in SOME)
        if segment is not cs:
            yield from (case("mov", segment, reg) for reg in REGS[2] + REGS[4])
            yield from (case("mov", segment, place, ptr=2) for place in SOME)


def extensions() -> Iterator[Case]:
    for method in ("movzx", "movsx"):
        for small, large in ((1, 2), (1, 4), (1, 8), (2, 4), (2, 8)):
            yield from (case(method, a, b) for a, b in product(REGS[large], REGS[small]))
            yield from (case(method, REGS[large][n % 16], p, size=small) for n, p in enumerate(SOME))
    yield from (case("movsxd", a, b) for a, b in product(REGS[8], REGS[4]))
    for size, reg, place in sizes(2, 4, 8):
        yield case("lea", reg, place, ptr=0)
        if size == 8:
            yield case("movsxd", reg, place, ptr=4)


def arithmetic() -> Iterator[Case]:
    for method, size in product([*ARITHMETIC, "test"], (1, 2, 4, 8)):
        yield from (case(method, reg, imm) for reg, imm in product(REGS[size], IMMS[size]))
        yield from (case(method, a, b) for a, b in product(REGS[size][::3], REGS[size]))
        yield from (case(method, p, imm, size=size) for p, imm in product(SPECIAL_PLACES, IMMS[size]))
    for size, reg, place in sizes():
        for method in (*ARITHMETIC, "test"):
            yield case(method, place, reg)
            yield case(method, reg, place)
        for method in ARITHMETIC[:-1]:
            yield case(method, place, reg, locked=True)
            yield case(method, place, 1, size=size, locked=True)
        for method in ("inc", "dec", "neg", "not_", "mul", "div"):
            yield case(method, reg)
            yield case(method, place, size=size)
            if method not in ("mul", "div"):
                yield case(method, place, size=size, locked=True)
        for method in ("shl", "shr", "sar", "rol", "ror"):
            for count in (0, 1, 2, 7, 8 * size - 1, cl):
                yield case(method, reg, count, ptr=size)
                yield case(method, place, count, size=size)
    for method, size in product(("imul", "bsf", "bsr", *(f"cmov{cc}" for cc in CONDITIONS)), (2, 4, 8)):
        yield from (case(method, a, b) for a, b in product(REGS[size], REGS[size][::5]))
        yield from (case(method, REGS[size][n % 16], place) for n, place in enumerate(SOME))


def bits_and_exchanges() -> Iterator[Case]:
    for size, reg, place in sizes(2, 4, 8):
        for method in ("bt", "bts", "btr", "btc"):
            for bit in (0, 7, 8 * size - 1):
                yield case(method, reg, bit)
                yield case(method, place, bit, size=size)
            yield from (case(method, reg, other) for other in REGS[size][::5])
            yield case(method, place, reg)
            if method != "bt":
                yield case(method, place, reg, locked=True)
    for size, reg, place in sizes():
        for method in ("cmpxchg", "xadd", "xchg"):
            yield from (
                case(method, reg, other) for other in REGS[size] if (reg, other) != (rax, rax)
            )  # an XCHG that is NOP
            yield case(method, place, reg)
            yield case(method, place, reg, locked=True)
        yield case("xchg", reg, place)
    for place in SOME:
        yield case("cmpxchg16b", place, ptr=16)
        yield case("cmpxchg16b", place, ptr=16, locked=True)


def control() -> Iterator[Case]:
    yield from (case(method, text=method) for method in PLAIN)
    yield from (case(f"rep_{op}", text=f"rep {op}") for op in ("stosb", "stosq", "movsb", "movsq"))
    yield from (case("push", imm) for imm in IMMS[8] if imm < 1 << 31)
    for method in ("push", "pop", "jmp", "call"):
        yield from (case(method, reg) for reg in REGS[8])
        yield from (case(method, place, ptr=8) for place in SOME)
    for method in (*(f"j{cc}" for cc in CONDITIONS), "jmp", "call"):
        yield case(method, "base")
        yield case(method, 0x40, text=f"{method} base + 0x40")
        yield case(method, "end", text=f"{{disp32}} {method} end")
    for method in (f"set{cc}" for cc in CONDITIONS):
        yield from (case(method, reg) for reg in REGS[1])
        yield from (case(method, place, ptr=1) for place in SOME)
    for data, port in product((al, ax, eax), (0, 0x42, 0xFF, dx)):
        yield case("in_", data, port)
        yield case("out", port, data)
    for place in SOME:
        yield from (case(method, place, ptr=0) for method in ("lgdt", "lidt", "invlpg"))
        yield from (case(method, place, ptr=2) for method in ("ltr", "lldt"))
    yield from (case(method, reg) for method, reg in product(("ltr", "lldt"), REGS[2]))
    yield from (case(f"{rw}{seg}base", reg) for rw, seg, reg in product(("rd", "wr"), ("fs", "gs"), REGS[4] + REGS[8]))


TABLES = {t.__name__: t for t in (moves, extensions, arithmetic, bits_and_exchanges, control)}


@pytest.fixture
def binutils(tmp_path: Path) -> Binutils:
    for tool in ("as", "objcopy"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} (Debian: binutils)")
    return Binutils(tmp_path)


class Binutils:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def assemble(self, lines: list[str]) -> bytes:
        source, linked, image = (self._directory / f"golden.{suffix}" for suffix in ("s", "o", "bin"))
        source.write_text("\n".join((".intel_syntax noprefix", *lines, "")))
        done = subprocess.run(("as", "--64", "-o", linked, source), capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr[:2000]
        subprocess.run(("objcopy", "-O", "binary", "-j", ".text", linked, image), check=True)
        return image.read_bytes()


def emit(a: Assembler, each: Case) -> None:
    operands = [op.operand if isinstance(op, Place) else op for op in each.operands]
    keywords = {"size": each.size} if each.size else {}
    getattr(a.lock if each.locked else a, each.method)(*operands, **keywords)


@pytest.mark.parametrize("table", TABLES)
def test_every_encoding_is_that_of_binutils(binutils: Binutils, table: str) -> None:
    cases = list(TABLES[table]())
    a = Assembler()
    a.label("base")
    for each in cases:
        emit(a, each)
        a.align(SLOT, INT3)
    a.label("end")
    ours = a.assemble()
    golden = binutils.assemble(["base:", *(f"{each.text}\n.p2align 4, {INT3}" for each in cases), "end:"])
    slots = [slice(at, at + SLOT) for at in range(0, SLOT * len(cases), SLOT)]
    wrong = [
        f"{each.text}: {ours[at].hex(' ').rstrip(' c')}, binutils {golden[at].hex(' ').rstrip(' c')}"
        for each, at in zip(cases, slots, strict=True)
        if ours[at] != golden[at]
    ]
    assert wrong == []
    assert len(ours) == len(golden) == SLOT * len(cases)


def test_registers_are_called_by_their_names() -> None:
    found = {name: r.name for name, r in vars(registers).items() if isinstance(r, Register)}
    assert all(name == called for name, called in found.items())
    assert len(found) == 4 * 16 + 6 + 5 + 6


def test_no_instruction_is_missing_from_the_tables() -> None:
    other = {"address", "align", "assemble", "data", "here", "label", "lock", "quad"}
    public = {name for name in dir(Assembler(0)) if not name.startswith("_")}
    seen = {each.method for table in TABLES.values() for each in table()}
    lockable = {each.method for table in TABLES.values() for each in table() if each.locked}
    assert public - other == seen
    assert {name for name in dir(Assembler(0).lock) if not name.startswith("_")} == lockable


@pytest.mark.parametrize("method", ["jmp", "jz", "jg"])
@pytest.mark.parametrize("gap", [0, 1, 120, 123, 124, 125, 126, 127, 128, 129, 130, 131, 300])
def test_jumps_over_a_gap(binutils: Binutils, method: str, gap: int) -> None:
    a = Assembler(0xFFFF808000200000)
    a.label("back")
    a.data(bytes(gap))
    getattr(a, method)("back")
    getattr(a, method)(a.address("back"))
    getattr(a, method)("ahead", short=gap < 128)
    a.data(bytes(gap))
    a.label("ahead")
    backwards, space = f"{method} back", f".zero {gap}"
    assert a.assemble() == binutils.assemble(["back:", space, backwards, backwards, f"{method} ahead", space, "ahead:"])


def test_data_and_addresses(binutils: Binutils) -> None:
    a = Assembler()
    a.label("base")
    a.data(b"Xen")
    a.align(8)
    a.quad("end", -1, 0xFFFF800000000000)
    a.lea(rax, mem(rip="end"))
    a.label("end")
    code = binutils.assemble(
        ['.ascii "Xen"', ".fill 5, 1, 0x90", ".quad 0x27, -1, 0xffff800000000000", "lea rax, [rip + end]", "end:"]
    )
    assert a.assemble() == code
    assert a.address("end") == len(code) == a.here
