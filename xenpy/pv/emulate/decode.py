"""Taking apart the few instructions that a PV guest has emulated.

Ref: AMD64 Architecture Programmer's Manual (APM), volume 3, chapter 1 and appendix A
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from xenpy.pv.emulate.machine import MAX_INSTRUCTION, WORD_MASK

if TYPE_CHECKING:
    from xenpy.pv.emulate.machine import Registers

REGISTERS: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""Names by the number that ModRM, SIB and REX give them."""
RSP: Final = 4

TWO_BYTE: Final = 0x0F00
"""What stands above the second opcode byte of an instruction that starts with 0f."""
REP: Final = 0xF3
_REPNE: Final = 0xF2
_LOCK: Final = 0xF0
_OPERAND_SIZE: Final = 0x66
_ADDRESS_SIZE: Final = 0x67
_SEGMENTS: Final = {0x26: "", 0x2E: "", 0x36: "", 0x3E: "", 0x64: "fs", 0x65: "gs"}
"""Segment prefixes; the segments without a name have base 0, in long mode by nature, else because Xen's are flat."""

_REX_W, _REX_R, _REX_X, _REX_B = 8, 4, 2, 1


class Immediate(Enum):
    """What follows ModRM."""

    NONE = 0
    BYTE = 1
    WORD = 2
    """2 bytes with a 16-bit operand, else 4; sign-extended."""
    OFFSET = 3
    """An address, in the size of addresses."""


@dataclass(frozen=True, slots=True)
class _Form:
    modrm: bool = False
    immediate: Immediate = Immediate.NONE


_PLAIN: Final = _Form()
_MODRM: Final = _Form(modrm=True)
_MODRM_BYTE: Final = _Form(modrm=True, immediate=Immediate.BYTE)
_MODRM_WORD: Final = _Form(modrm=True, immediate=Immediate.WORD)
_IMMEDIATE: Final = _Form(immediate=Immediate.BYTE)
_MOFFS: Final = _Form(immediate=Immediate.OFFSET)

_FORMS: Final[dict[int, _Form]] = {
    **{base | width: _MODRM for base in range(0x00, 0x38, 8) for width in (0, 1)},  # add ... xor: register to memory
    **dict.fromkeys((0x86, 0x87, 0x88, 0x89, 0xF6, 0xF7, 0xFE, 0xFF), _MODRM),  # xchg, mov, not/neg, inc/dec
    **dict.fromkeys((0x8A, 0x8B, TWO_BYTE | 0xB6, TWO_BYTE | 0xB7), _MODRM),  # mov from memory, movzx
    **dict.fromkeys((0x80, 0x83, 0xC6), _MODRM_BYTE),
    **dict.fromkeys((0x81, 0xC7), _MODRM_WORD),
    **dict.fromkeys((0xA2, 0xA3), _MOFFS),
    **dict.fromkeys((0xA4, 0xA5, 0xAA, 0xAB), _PLAIN),  # movs, stos
    **dict.fromkeys((0x6C, 0x6D, 0x6E, 0x6F, 0xEC, 0xED, 0xEE, 0xEF), _PLAIN),  # ins, outs, in, out
    **dict.fromkeys((0xE4, 0xE5, 0xE6, 0xE7), _IMMEDIATE),  # in, out
    **dict.fromkeys((0xFA, 0xFB), _PLAIN),  # cli, sti
    **dict.fromkeys((TWO_BYTE | low for low in (0x06, 0x09, 0x30, 0x31, 0x32, 0xA2)), _PLAIN),
    **dict.fromkeys((TWO_BYTE | low for low in (0x01, 0x20, 0x21, 0x22, 0x23)), _MODRM),
    **dict.fromkeys((TWO_BYTE | low for low in (0xAB, 0xB3, 0xBB, 0xB0, 0xB1, 0xC0, 0xC1, 0xC3, 0xC7)), _MODRM),
    TWO_BYTE | 0xBA: _MODRM_BYTE,
}
_REGISTER_ONLY: Final = frozenset(TWO_BYTE | low for low in (0x20, 0x21, 0x22, 0x23))
"""mov to and from control and debug registers take ModRM.mod for 3, whatever it is. Ref: APM, volume 3, MOV CRn"""


@dataclass(frozen=True, slots=True)
class Memory:
    """A memory operand: numbers of registers, and a displacement that RIP-relative operands count from the next instruction."""

    base: int | None = None
    index: int | None = None
    scale: int = 1
    displacement: int = 0
    rip_relative: bool = False


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `opcode` has TWO_BYTE added behind an 0f; `word_size` is the operand's in bytes unless the opcode means bytes."""

    opcode: int
    length: int
    word_size: int
    address_size: int
    has_rex: bool
    lock: bool
    repeat: int
    segment: str
    reg: int
    rm: int
    memory: Memory | None
    immediate: int

    @property
    def size(self) -> int:
        """Return the operand size of an opcode whose lowest bit tells words from bytes."""
        return self.word_size if self.opcode & 1 else 1


class _Truncated(Exception):
    """The instruction goes on beyond the bytes there are."""


class _Reader:
    """The bytes of one instruction, from front to back."""

    def __init__(self, code: bytes) -> None:
        self._code = code[:MAX_INSTRUCTION]
        self.offset = 0

    def byte(self) -> int:
        """Return the next byte."""
        if self.offset >= len(self._code):
            raise _Truncated
        self.offset += 1
        return self._code[self.offset - 1]

    def signed(self, size: int) -> int:
        """Return the next `size` bytes as a signed number."""
        end = self.offset + size
        if end > len(self._code):
            raise _Truncated
        value = int.from_bytes(self._code[self.offset : end], "little", signed=True)
        self.offset = end
        return value


def _memory(reader: _Reader, mod: int, rm: int, rex: int, *, long_mode: bool) -> Memory:
    """Read SIB and displacement of a memory operand. Ref: APM, volume 3, 1.4"""
    base: int | None = rm | (rex & _REX_B) << 3
    index: int | None = None
    scale = 1
    rip_relative = False
    if rm == RSP:
        sib = reader.byte()
        scale = 1 << (sib >> 6)
        index = sib >> 3 & 7 | (rex & _REX_X) << 2
        if index == RSP:
            index = None
        base = sib & 7 | (rex & _REX_B) << 3
        if sib & 7 == 5 and mod == 0:
            base, mod = None, 2
    elif rm == 5 and mod == 0:
        base, mod, rip_relative = None, 2, long_mode
    displacement = reader.signed((0, 1, 4)[mod])
    return Memory(base, index, scale, displacement, rip_relative)


def _decode(reader: _Reader, *, long_mode: bool) -> Instruction | None:
    lock = short_operand = other_address = False
    repeat = 0
    segment = ""
    while True:
        opcode = reader.byte()
        if opcode == _LOCK:
            lock = True
        elif opcode in (REP, _REPNE):
            repeat = opcode
        elif opcode == _OPERAND_SIZE:
            short_operand = True
        elif opcode == _ADDRESS_SIZE:
            other_address = True
        elif opcode in _SEGMENTS:
            # In long mode the prefixes of the other segments are as good as absent: they do not undo FS or GS.
            segment = _SEGMENTS[opcode] or (segment if long_mode else "")
        else:
            break
    rex = 0
    if long_mode and opcode >> 4 == 4:
        rex, opcode = opcode, reader.byte()
    if opcode == 0x0F:
        opcode = TWO_BYTE | reader.byte()
    form = _FORMS.get(opcode)
    if form is None or (other_address and not long_mode):  # 16-bit addressing: no PV guest's kernel or libc has it
        return None
    word_size = 8 if rex & _REX_W else 2 if short_operand else 4
    address_size = 8 if long_mode and not other_address else 4
    reg = rm = 0
    memory = None
    if form.modrm:
        modrm = reader.byte()
        mod = 3 if opcode in _REGISTER_ONLY else modrm >> 6
        reg = modrm >> 3 & 7 | (rex & _REX_R) << 1
        rm = modrm & 7 | (rex & _REX_B) << 3
        if mod != 3:
            memory = _memory(reader, mod, modrm & 7, rex, long_mode=long_mode)
    immediate = 0
    if form.immediate is Immediate.OFFSET:
        memory = Memory(displacement=reader.signed(address_size))
    elif form.immediate is not Immediate.NONE:
        immediate = reader.signed(1 if form.immediate is Immediate.BYTE else min(word_size, 4))
    return Instruction(
        opcode, reader.offset, word_size, address_size, bool(rex), lock, repeat, segment, reg, rm, memory, immediate
    )


@lru_cache(maxsize=512)
def decode(code: bytes, *, long_mode: bool = True) -> Instruction | None:
    """Take apart the instruction that `code` starts with; None for one that nothing here emulates, or a truncated one.

    Few places of a kernel fault over and over, so what they hold is remembered.
    """
    try:
        return _decode(_Reader(code), long_mode=long_mode)
    except _Truncated:
        return None


def linear(instruction: Instruction, gva: int, fs_base: int, gs_base: int) -> int:
    """Return the linear address of an offset into the segment that the instruction names."""
    base = {"fs": fs_base, "gs": gs_base}.get(instruction.segment, 0)
    return (gva & (1 << 8 * instruction.address_size) - 1) + base & WORD_MASK


def memory_gva(instruction: Instruction, memory: Memory, regs: Registers, fs_base: int, gs_base: int) -> int:
    """Return the linear address of a memory operand."""
    offset = memory.displacement
    if memory.base is not None:
        offset += int(getattr(regs, REGISTERS[memory.base]))
    if memory.index is not None:
        offset += int(getattr(regs, REGISTERS[memory.index])) * memory.scale
    if memory.rip_relative:
        offset += regs.rip + instruction.length
    return linear(instruction, offset, fs_base, gs_base)


def _byte_of(number: int, *, has_rex: bool) -> tuple[str, int]:
    """Return the register that holds a byte register, and the byte's bit position: without REX, 4 to 7 are ah, ch, dh, bh."""
    if not has_rex and 4 <= number < 8:
        return REGISTERS[number - 4], 8
    return REGISTERS[number], 0


def get_register(regs: Registers, number: int, size: int, *, has_rex: bool) -> int:
    """Return a register of `size` bytes."""
    name, shift = _byte_of(number, has_rex=has_rex) if size == 1 else (REGISTERS[number], 0)
    return int(getattr(regs, name)) >> shift & (1 << 8 * size) - 1


def with_register(regs: Registers, number: int, size: int, value: int, *, has_rex: bool) -> tuple[str, int]:
    """Return the name and the new 64-bit value of a register of which `size` bytes are set: 4 clear the upper half, 1 and 2 keep it."""
    name, shift = _byte_of(number, has_rex=has_rex) if size == 1 else (REGISTERS[number], 0)
    mask = (1 << 8 * size) - 1
    if size >= 4:
        return name, value & mask
    return name, int(getattr(regs, name)) & ~(mask << shift) | (value & mask) << shift
