"""Moves, comparisons, shifts and the stack: the instructions without LOCK that user mode has too.

Ref: AMD64 APM volume 3, chapter 3
"""

from __future__ import annotations

from xenpy.asm.encoder import NO_PREFIX, Encoder, fits, immediate, operation, signed
from xenpy.asm.lockable import Lockable
from xenpy.asm.operands import AssemblerError, Mem
from xenpy.asm.registers import Control, Debug, Reg, Register, Segment, cl, cs


class Moves(Encoder):
    """MOV and its kin."""

    def mov(self, dst: Register | Mem, src: Register | Mem | int, size: int = 0) -> None:
        """Move; an immediate takes the shortest form that has the same effect. `size` is for an immediate to memory.

        Control and debug registers move from and to 64-bit registers, segment registers from and to any register but bytes, and memory.
        """
        if isinstance(dst, Reg | Mem) and isinstance(src, Reg | Mem | int):
            self._move(dst, src, size)
        elif isinstance(dst, Segment) and isinstance(src, Reg | Mem):
            if dst is cs or (isinstance(src, Reg) and src.size == 1):
                raise AssemblerError(f"mov {dst}, {src}: no such instruction")
            self._modrm(b"\x8e", dst.code, src, NO_PREFIX)
        elif isinstance(src, Segment) and isinstance(dst, Reg | Mem):
            cut = (
                isinstance(dst, Reg) and self._wide("mov", size, dst) == 2
            )  # 4 bytes clear the rest, memory gets 2 anyway
            self._modrm(b"\x8c", src.code, dst, 2 if cut else NO_PREFIX)
        elif isinstance(dst, Reg) and isinstance(src, Control | Debug) and dst.size == 8:
            self._modrm(b"\x0f\x20" if isinstance(src, Control) else b"\x0f\x21", src.code, dst, NO_PREFIX)
        elif isinstance(src, Reg) and isinstance(dst, Control | Debug) and src.size == 8:
            self._modrm(b"\x0f\x22" if isinstance(dst, Control) else b"\x0f\x23", dst.code, src, NO_PREFIX)
        else:
            raise AssemblerError(f"mov {dst}, {src}: no such instruction")

    def _move(self, dst: Reg | Mem, src: Reg | Mem | int, size: int) -> None:
        width = self._width("mov", size, dst, src)
        wide = width > 1
        if isinstance(src, Reg):
            self._modrm(b"\x89" if wide else b"\x88", src.code, dst, width, rex=src.rex)
        elif isinstance(src, Mem):
            if isinstance(dst, Mem):
                raise AssemblerError(f"mov {dst}, {src}: both operands are in memory")
            self._modrm(b"\x8b" if wide else b"\x8a", dst.code, src, width, rex=dst.rex)
        elif isinstance(dst, Mem):
            self._modrm(b"\xc7" if wide else b"\xc6", 0, dst, width, immediate("mov", src, width))
        elif width < 8:
            self._short(0xB8 if wide else 0xB0, dst, width, immediate("mov", src, width))
        elif 0 <= src < 1 << 32:  # a 32-bit move clears the upper half
            self._short(0xB8, dst, NO_PREFIX, src.to_bytes(4, "little"))
        else:
            number = signed("mov", src, 8)
            if fits(number, 4):
                self._modrm(b"\xc7", 0, dst, 8, number.to_bytes(4, "little", signed=True))
            else:
                self._short(0xB8, dst, 8, number.to_bytes(8, "little", signed=True))

    def _extend(self, name: str, number: int, dst: Reg, src: Reg | Mem, size: int = 0) -> None:
        """Move one or two bytes to a larger register; `size` is that of a source in memory."""
        width = self._width(name, size, src)
        if not width < dst.size or width > 2:
            raise AssemblerError(f"{name} {dst}, {src}: extends 1 or 2 bytes to more, not {width} to {dst.size}")
        self._modrm(bytes((0x0F, number | (width > 1))), dst.code, src, dst.size)

    movzx = operation(_extend, "movzx", 0xB6)
    movsx = operation(_extend, "movsx", 0xBE)

    def movsxd(self, dst: Reg, src: Reg | Mem) -> None:
        """Move 4 bytes to a 64-bit register with sign extension."""
        if dst.size != 8:
            raise AssemblerError(f"movsxd {dst}, {src}: the destination must be a 64-bit register")
        self._width("movsxd", 4, src)
        self._modrm(b"\x63", dst.code, src, 8)

    def lea(self, dst: Reg, src: Mem) -> None:
        """Load the address of a memory operand."""
        self._modrm(b"\x8d", dst.code, src, self._wide("lea", 0, dst))

    def push(self, src: Reg | Mem | int) -> None:
        """Push 8 bytes; an immediate is sign-extended."""
        if isinstance(src, int):
            imm = immediate("push", src, 8)
            self._code += b"\x6a" + imm[:1] if fits(signed("push", src, 8), 1) else b"\x68" + imm
        elif isinstance(src, Reg):
            self._width("push", 8, src)
            self._short(0x50, src, NO_PREFIX)
        else:
            self._modrm(b"\xff", 6, src, NO_PREFIX)

    def pop(self, dst: Reg | Mem) -> None:
        """Pop 8 bytes."""
        if isinstance(dst, Reg):
            self._width("pop", 8, dst)
            self._short(0x58, dst, NO_PREFIX)
        else:
            self._modrm(b"\x8f", 0, dst, NO_PREFIX)


class Computing(Lockable):
    """Arithmetic and tests that LOCK may not precede."""

    cmp = operation(Lockable._arithmetic, "cmp", 7)
    bt = operation(Lockable._bit, "bt", 4)
    mul = operation(Lockable._unary, "mul", 0xF604)
    div = operation(Lockable._unary, "div", 0xF606)

    def test(self, dst: Reg | Mem, src: Reg | Mem | int, size: int = 0) -> None:
        """Set the flags from the AND of two operands; `size` is for an immediate and memory."""
        if isinstance(src, Mem):
            if isinstance(dst, Mem):
                raise AssemblerError(f"test {dst}, {src}: both operands are in memory")
            self.test(src, dst, size)
            return
        width = self._width("test", size, dst, src)
        wide = width > 1
        if isinstance(src, Reg):
            self._modrm(b"\x85" if wide else b"\x84", src.code, dst, width, rex=src.rex)
        elif isinstance(dst, Reg) and dst.code == 0:
            self._short(0xA8 | wide, dst, width, immediate("test", src, width))
        else:
            self._modrm(b"\xf7" if wide else b"\xf6", 0, dst, width, immediate("test", src, width))

    def _shift(self, name: str, number: int, dst: Reg | Mem, count: Reg | int, size: int = 0) -> None:
        """Shift or rotate by an immediate or by cl; `size` is for memory."""
        width = self._width(name, size, dst)
        wide = width > 1
        if count is cl:
            self._modrm(b"\xd3" if wide else b"\xd2", number, dst, width)
        elif count == 1:
            self._modrm(b"\xd1" if wide else b"\xd0", number, dst, width)
        elif isinstance(count, int) and 0 <= count < 8 * width:
            self._modrm(b"\xc1" if wide else b"\xc0", number, dst, width, bytes((count,)))
        else:
            raise AssemblerError(f"{name} {dst}, {count}: the count is cl or 0 to {8 * width - 1}")

    rol = operation(_shift, "rol", 0)
    ror = operation(_shift, "ror", 1)
    shl = operation(_shift, "shl", 4)
    shr = operation(_shift, "shr", 5)
    sar = operation(_shift, "sar", 7)

    def _to_register(self, name: str, number: int, dst: Reg, src: Reg | Mem) -> None:
        """Compute a register of 2, 4 or 8 bytes from another operand of its size."""
        self._modrm(bytes((0x0F, number)), dst.code, src, self._wide(name, 0, dst, src))

    imul = operation(_to_register, "imul", 0xAF)
    bsf = operation(_to_register, "bsf", 0xBC)
    bsr = operation(_to_register, "bsr", 0xBD)
