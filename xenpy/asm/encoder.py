"""What all instructions are made of: prefixes, opcode, ModRM, immediate, and places to fill in when the labels are known.

Ref: AMD64 APM volume 3, chapter 1 (instruction encoding); prefixes come in the order that binutils gives them
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from xenpy.asm.operands import AssemblerError
from xenpy.asm.registers import Reg

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.asm.operands import Mem

OPERAND_16: Final = 0x66
REP: Final = 0xF3
_LOCK: Final = 0xF0
_REX: Final = 0x40
_REX_W: Final = 8
_DIRECT: Final = 0xC0  # ModRM.mod: a register, not memory
_SIZES: Final = (1, 2, 4, 8)
NO_PREFIX: Final = 4
"""The operand size that needs neither a prefix nor REX.W, hence also that of instructions whose size is implied."""


class Fixup(NamedTuple):
    """A place in the code that gets the address of `target`, a label or a VA, once labels are known.

    `position`, `width` and `end` are in bytes; the value is relative to `end`, the offset of the next instruction, or absolute if that
    is None. `displacement` is added.
    """

    position: int
    width: int
    target: str | int
    end: int | None
    displacement: int
    user: str


@dataclass(slots=True)
class Section:
    """Code under construction at the VA `origin`, its labels' VAs, and what remains to be filled in."""

    origin: int
    code: bytearray = field(default_factory=bytearray)
    labels: dict[str, int] = field(default_factory=dict)
    fixups: list[Fixup] = field(default_factory=list)


class Encoder:
    """Appends instructions to a section; one made with `lock` puts the LOCK prefix before each."""

    def __init__(self, section: Section, *, lock: bool = False) -> None:
        self._section = section
        self._code = section.code
        self._lock = lock

    def _width(self, name: str, size: int, dst: Reg | Mem, src: Reg | Mem | int = 0) -> int:
        """Return the operand size in bytes, which is the registers' own, or `size` where there is none."""
        if self._lock and isinstance(dst, Reg):
            raise AssemblerError(f"lock {name} {dst}: only a destination in memory can be locked")
        found = size
        if isinstance(dst, Reg):
            found = found or dst.size
            if dst.size != found:
                raise AssemblerError(f"{name} {dst}: is not of {found} bytes")
        if isinstance(src, Reg):
            found = found or src.size
            if src.size != found:
                raise AssemblerError(f"{name} {dst}, {src}: {src} is not of {found} bytes")
        if found not in _SIZES:
            raise AssemblerError(f"{name} {dst}: size= must say 1, 2, 4 or 8 bytes, not {size}")
        return found

    def _wide(self, name: str, size: int, dst: Reg | Mem, src: Reg | Mem | int = 0) -> int:
        """Return the operand size of an instruction that has no form for bytes."""
        width = self._width(name, size, dst, src)
        if width == 1:
            raise AssemblerError(f"{name} {dst}: has no form for bytes")
        return width

    def _modrm(self, opcode: bytes, reg: int, rm: Reg | Mem, size: int, imm: bytes = b"", rex: int = 0) -> None:
        """Append an instruction with a ModRM byte.

        `reg` is a register's number or the opcode's extension, `rex` what `reg` demands of the REX prefix by its name. The size gives the
        operand-size prefix and REX.W; the forms for bytes differ in their opcode.
        """
        code = self._code
        if isinstance(rm, Reg):
            rex |= rm.rex | rm.code >> 3
            modrm = _DIRECT | rm.code & 7
        else:
            rex |= rm.rex
            modrm = rm.modrm
            if rm.prefix:
                code.append(rm.prefix)
        if size == 2:
            code.append(OPERAND_16)
        elif size == 8:
            rex |= _REX_W
        if self._lock:
            code.append(_LOCK)
        rex |= reg >> 1 & 4
        if rex:
            code.append(_REX | rex)
        code += opcode
        code.append(modrm | (reg & 7) << 3)
        if not isinstance(rm, Reg):
            code += rm.tail
            if rm.target is not None:
                at = len(code)
                disp = int.from_bytes(rm.tail, "little", signed=True)
                self._section.fixups.append(Fixup(at - 4, 4, rm.target, at + len(imm), disp, rm.text))
        code += imm

    def _short(self, opcode: int, reg: Reg, size: int, imm: bytes = b"") -> None:
        """Append an instruction that has its register in the low three bits of the opcode, as accumulator forms do."""
        code = self._code
        if size == 2:
            code.append(OPERAND_16)
        rex = reg.rex | reg.code >> 3 | (_REX_W if size == 8 else 0)
        if rex:
            code.append(_REX | rex)
        code.append(opcode | reg.code & 7)
        code += imm


def signed(name: str, value: int, size: int) -> int:
    """Return an immediate of `size` bytes, which may be written signed or unsigned, as a signed number. Raises AssemblerError."""
    bits = 8 * size
    if not -(1 << bits - 1) <= value < 1 << bits:
        raise AssemblerError(f"{name}: {value:#x} does not fit {bits} bits")
    return value - (1 << bits) if value >> bits - 1 > 0 else value


def immediate(name: str, value: int, size: int) -> bytes:
    """Return an immediate as it follows an instruction of operand size `size`: 8 bytes are cut to 4 and sign-extended.

    Raises AssemblerError.
    """
    number = signed(name, value, size)
    if size == 8:
        size = 4
        if not fits(number, 4):
            raise AssemblerError(f"{name}: {value:#x} is not the sign extension of 32 bits")
    return number.to_bytes(size, "little", signed=True)


def fits(value: int, size: int) -> bool:
    """Tell whether a signed number fits `size` bytes."""
    return -(1 << 8 * size - 1) <= value < 1 << 8 * size - 1


_P = ParamSpec("_P")
_Self = TypeVar("_Self", bound=Encoder)


def operation(
    form: Callable[Concatenate[_Self, str, int, _P], None], name: str, number: int
) -> Callable[Concatenate[_Self, _P], None]:
    """Make the method of one instruction from a form that several share; `number` is what tells them apart."""

    def emit(self: _Self, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        form(self, name, number, *args, **kwargs)

    emit.__name__ = emit.__qualname__ = name
    emit.__doc__ = form.__doc__
    return emit


def plain(opcode: str) -> Callable[[Encoder], None]:
    """Make the method of an instruction without operands from its bytes in hexadecimal."""
    encoded = bytes.fromhex(opcode)

    def emit(self: Encoder) -> None:
        self._code += encoded

    emit.__doc__ = f"Append the bytes {opcode}."
    return emit
