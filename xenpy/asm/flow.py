"""Jumps, calls, and the instructions that depend on a condition.

Ref: AMD64 APM volume 3, chapter 3 (Jcc, CMOVcc, SETcc, JMP, CALL), table A-2 (condition codes)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.asm.encoder import NO_PREFIX, Fixup, fits, operation, plain
from xenpy.asm.moves import Computing

if TYPE_CHECKING:
    from xenpy.asm.operands import Mem
    from xenpy.asm.registers import Reg

_NEAR_JCC: Final = 0x10
"""What a short jump's opcode lacks to the second byte of the near one."""


class Flow(Computing):
    """Jumps are short where the target is known to be near, so backwards; a jump forwards is near unless it says `short`."""

    def jmp(self, target: str | int | Reg | Mem, *, short: bool = False) -> None:
        """Jump to a label, a VA, or what a 64-bit register or memory holds."""
        if isinstance(target, str | int):
            self._branch("jmp", b"\xeb", b"\xe9", target, short=short)
        else:
            self._indirect("jmp", 4, target)

    def call(self, target: str | int | Reg | Mem) -> None:
        """Call a label, a VA, or what a 64-bit register or memory holds."""
        if isinstance(target, str | int):
            self._branch("call", b"", b"\xe8", target, short=False)
        else:
            self._indirect("call", 2, target)

    ret = plain("c3")

    def _indirect(self, name: str, number: int, target: Reg | Mem) -> None:
        self._width(name, 8, target)
        self._modrm(b"\xff", number, target, NO_PREFIX)

    def _branch(self, name: str, near: bytes, far: bytes, target: str | int, *, short: bool) -> None:
        section = self._section
        code = section.code
        known = section.labels.get(target) if isinstance(target, str) else target
        if near and not short and known is not None:
            short = fits(known - (section.origin + len(code) + len(near) + 1), 1)
        width = 1 if short else 4
        code += near if short else far
        at = len(code)
        section.fixups.append(Fixup(at, width, target, at + width, 0, name))
        code += bytes(width)

    def _jump(self, name: str, number: int, target: str | int, *, short: bool = False) -> None:
        """Jump to a label or a VA if the condition holds."""
        self._branch(name, bytes((number,)), bytes((0x0F, number + _NEAR_JCC)), target, short=short)

    jo = operation(_jump, "jo", 0x70)
    jno = operation(_jump, "jno", 0x71)
    jb = operation(_jump, "jb", 0x72)
    jc = operation(_jump, "jc", 0x72)
    jae = operation(_jump, "jae", 0x73)
    jnc = operation(_jump, "jnc", 0x73)
    je = operation(_jump, "je", 0x74)
    jz = operation(_jump, "jz", 0x74)
    jne = operation(_jump, "jne", 0x75)
    jnz = operation(_jump, "jnz", 0x75)
    jbe = operation(_jump, "jbe", 0x76)
    ja = operation(_jump, "ja", 0x77)
    js = operation(_jump, "js", 0x78)
    jns = operation(_jump, "jns", 0x79)
    jp = operation(_jump, "jp", 0x7A)
    jnp = operation(_jump, "jnp", 0x7B)
    jl = operation(_jump, "jl", 0x7C)
    jge = operation(_jump, "jge", 0x7D)
    jle = operation(_jump, "jle", 0x7E)
    jg = operation(_jump, "jg", 0x7F)

    def _set(self, name: str, number: int, dst: Reg | Mem) -> None:
        """Set a byte to whether the condition holds."""
        self._modrm(bytes((0x0F, number)), 0, dst, self._width(name, 1, dst))

    seto = operation(_set, "seto", 0x90)
    setno = operation(_set, "setno", 0x91)
    setb = operation(_set, "setb", 0x92)
    setc = operation(_set, "setc", 0x92)
    setae = operation(_set, "setae", 0x93)
    setnc = operation(_set, "setnc", 0x93)
    sete = operation(_set, "sete", 0x94)
    setz = operation(_set, "setz", 0x94)
    setne = operation(_set, "setne", 0x95)
    setnz = operation(_set, "setnz", 0x95)
    setbe = operation(_set, "setbe", 0x96)
    seta = operation(_set, "seta", 0x97)
    sets = operation(_set, "sets", 0x98)
    setns = operation(_set, "setns", 0x99)
    setp = operation(_set, "setp", 0x9A)
    setnp = operation(_set, "setnp", 0x9B)
    setl = operation(_set, "setl", 0x9C)
    setge = operation(_set, "setge", 0x9D)
    setle = operation(_set, "setle", 0x9E)
    setg = operation(_set, "setg", 0x9F)

    cmovo = operation(Computing._to_register, "cmovo", 0x40)
    cmovno = operation(Computing._to_register, "cmovno", 0x41)
    cmovb = operation(Computing._to_register, "cmovb", 0x42)
    cmovc = operation(Computing._to_register, "cmovc", 0x42)
    cmovae = operation(Computing._to_register, "cmovae", 0x43)
    cmovnc = operation(Computing._to_register, "cmovnc", 0x43)
    cmove = operation(Computing._to_register, "cmove", 0x44)
    cmovz = operation(Computing._to_register, "cmovz", 0x44)
    cmovne = operation(Computing._to_register, "cmovne", 0x45)
    cmovnz = operation(Computing._to_register, "cmovnz", 0x45)
    cmovbe = operation(Computing._to_register, "cmovbe", 0x46)
    cmova = operation(Computing._to_register, "cmova", 0x47)
    cmovs = operation(Computing._to_register, "cmovs", 0x48)
    cmovns = operation(Computing._to_register, "cmovns", 0x49)
    cmovp = operation(Computing._to_register, "cmovp", 0x4A)
    cmovnp = operation(Computing._to_register, "cmovnp", 0x4B)
    cmovl = operation(Computing._to_register, "cmovl", 0x4C)
    cmovge = operation(Computing._to_register, "cmovge", 0x4D)
    cmovle = operation(Computing._to_register, "cmovle", 0x4E)
    cmovg = operation(Computing._to_register, "cmovg", 0x4F)
