"""The instructions that a LOCK prefix may precede.

Ref: AMD64 APM volume 3, chapter 3, and section 1.2.5 (lock prefix)
"""

from __future__ import annotations

from xenpy.asm.encoder import Encoder, fits, immediate, operation, signed
from xenpy.asm.operands import AssemblerError, Mem
from xenpy.asm.registers import Reg


class Lockable(Encoder):
    """Arithmetic, logic, bits and exchanges, whose destination comes first."""

    def _arithmetic(self, name: str, number: int, dst: Reg | Mem, src: Reg | Mem | int, size: int = 0) -> None:
        """Combine `dst` with `src`; `size` is for an immediate and memory."""
        width = self._width(name, size, dst, src)
        wide = width > 1
        opcode = number << 3
        if isinstance(src, Reg):
            self._modrm(bytes((opcode | wide,)), src.code, dst, width, rex=src.rex)
        elif isinstance(src, int):
            imm = immediate(name, src, width)
            if wide and fits(signed(name, src, width), 1):
                self._modrm(b"\x83", number, dst, width, imm[:1])
            elif isinstance(dst, Reg) and dst.code == 0:
                self._short(opcode | 4 | wide, dst, width, imm)
            else:
                self._modrm(b"\x81" if wide else b"\x80", number, dst, width, imm)
        elif isinstance(dst, Reg):
            self._modrm(bytes((opcode | 2 | wide,)), dst.code, src, width, rex=dst.rex)
        else:
            raise AssemblerError(f"{name} {dst}, {src}: both operands are in memory")

    add = operation(_arithmetic, "add", 0)
    or_ = operation(_arithmetic, "or", 1)
    adc = operation(_arithmetic, "adc", 2)
    sbb = operation(_arithmetic, "sbb", 3)
    and_ = operation(_arithmetic, "and", 4)
    sub = operation(_arithmetic, "sub", 5)
    xor = operation(_arithmetic, "xor", 6)

    def _unary(self, name: str, number: int, dst: Reg | Mem, size: int = 0) -> None:
        """Change `dst`; `size` is for memory. `number` is the opcode's low byte for bytes and its extension."""
        width = self._width(name, size, dst)
        self._modrm(bytes((number >> 8 | (width > 1),)), number & 7, dst, width)

    inc = operation(_unary, "inc", 0xFE00)
    dec = operation(_unary, "dec", 0xFE01)
    not_ = operation(_unary, "not", 0xF602)
    neg = operation(_unary, "neg", 0xF603)

    def _bit(self, name: str, number: int, dst: Reg | Mem, bit: Reg | int, size: int = 0) -> None:
        """Copy a bit to CF and change it; one named by a register may lie beyond the operand in memory. `size` is for an immediate."""
        width = self._wide(name, size, dst, bit)
        if isinstance(bit, Reg):
            self._modrm(bytes((0x0F, 0x83 | number << 3)), bit.code, dst, width)
        elif 0 <= bit < 8 * width:
            self._modrm(b"\x0f\xba", number, dst, width, bytes((bit,)))
        else:
            raise AssemblerError(f"{name} {dst}, {bit}: there are {8 * width} bits")

    bts = operation(_bit, "bts", 5)
    btr = operation(_bit, "btr", 6)
    btc = operation(_bit, "btc", 7)

    def _exchange(self, name: str, number: int, dst: Reg | Mem, src: Reg) -> None:
        """Exchange or compare `dst` with the register `src`."""
        width = self._width(name, 0, dst, src)
        self._modrm(bytes((0x0F, number | (width > 1))), src.code, dst, width, rex=src.rex)

    cmpxchg = operation(_exchange, "cmpxchg", 0xB0)
    xadd = operation(_exchange, "xadd", 0xC0)

    def xchg(self, dst: Reg | Mem, src: Reg | Mem) -> None:
        """Exchange two operands, one of them a register."""
        if not isinstance(src, Reg):
            dst, src = src, dst
        if not isinstance(src, Reg):
            raise AssemblerError(f"xchg {dst}, {src}: both operands are in memory")
        width = self._width("xchg", 0, dst, src)
        if isinstance(dst, Reg) and width > 1 and 0 in (dst.code, src.code) and not (dst is src and width == 4):
            self._short(0x90, dst if src.code == 0 else src, width)  # but 90 alone is NOP, which keeps the upper half
        else:
            self._modrm(b"\x87" if width > 1 else b"\x86", src.code, dst, width, rex=src.rex)

    def cmpxchg16b(self, dst: Mem) -> None:
        """Compare rdx:rax with 16 aligned bytes, and store rcx:rbx there if they are equal."""
        self._modrm(b"\x0f\xc7", 1, dst, 8)
