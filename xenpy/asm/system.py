"""Instructions of the privileged side, ports, strings, and all that have no operands.

Ref: AMD64 APM volume 3, chapters 3 and 4
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.asm.encoder import NO_PREFIX, REP, Encoder, operation, plain
from xenpy.asm.operands import AssemblerError
from xenpy.asm.registers import dx

if TYPE_CHECKING:
    from xenpy.asm.operands import Mem
    from xenpy.asm.registers import Reg

_PORT_MAX = 0xFF
"""An immediate port is a byte; others go in dx."""


class System(Encoder):
    """Descriptor tables, FS and GS bases, ports; `in_` has its underscore from Python's keyword."""

    def lgdt(self, src: Mem) -> None:
        """Load the GDT's limit and base from 10 bytes."""
        self._modrm(b"\x0f\x01", 2, src, NO_PREFIX)

    def lidt(self, src: Mem) -> None:
        """Load the IDT's limit and base from 10 bytes."""
        self._modrm(b"\x0f\x01", 3, src, NO_PREFIX)

    def invlpg(self, page: Mem) -> None:
        """Forget the translation of the page that an address lies in."""
        self._modrm(b"\x0f\x01", 7, page, NO_PREFIX)

    def _selector(self, name: str, number: int, src: Reg | Mem) -> None:
        """Load a selector from a 16-bit register or memory."""
        self._width(name, 2, src)
        self._modrm(b"\x0f\x00", number, src, NO_PREFIX)

    lldt = operation(_selector, "lldt", 2)
    ltr = operation(_selector, "ltr", 3)

    def _base(self, name: str, number: int, reg: Reg) -> None:
        """Read or write a segment's base with a register of 4 or 8 bytes."""
        if reg.size < NO_PREFIX:
            raise AssemblerError(f"{name} {reg}: the register must have 4 or 8 bytes")
        self._code.append(REP)
        self._modrm(b"\x0f\xae", number, reg, reg.size)

    rdfsbase = operation(_base, "rdfsbase", 0)
    rdgsbase = operation(_base, "rdgsbase", 1)
    wrfsbase = operation(_base, "wrfsbase", 2)
    wrgsbase = operation(_base, "wrgsbase", 3)

    def in_(self, dst: Reg, port: Reg | int) -> None:
        """Read a port, an immediate byte or dx, to al, ax or eax."""
        self._port("in", 0xE4, dst, port)

    def out(self, port: Reg | int, src: Reg) -> None:
        """Write al, ax or eax to a port, an immediate byte or dx."""
        self._port("out", 0xE6, src, port)

    def _port(self, name: str, opcode: int, data: Reg, port: Reg | int) -> None:
        opcode |= data.size > 1
        if data.code or data.size > NO_PREFIX:
            raise AssemblerError(f"{name} {data}: the data are in al, ax or eax")
        if isinstance(port, int) and 0 <= port <= _PORT_MAX:
            self._short(opcode, data, data.size, bytes((port,)))
        elif port is dx:
            self._short(opcode | 8, data, data.size)
        else:
            raise AssemblerError(f"{name} {port}: the port is dx or 0 to {_PORT_MAX:#x}")

    rep_stosb = plain("f3 aa")
    rep_stosq = plain("f3 48 ab")
    rep_movsb = plain("f3 a4")
    rep_movsq = plain("f3 48 a5")
    cld = plain("fc")
    std = plain("fd")
    cli = plain("fa")
    sti = plain("fb")
    clac = plain("0f 01 ca")
    stac = plain("0f 01 cb")
    pushfq = plain("9c")
    popfq = plain("9d")
    nop = plain("90")
    pause = plain("f3 90")
    hlt = plain("f4")
    ud2 = plain("0f 0b")
    clc = plain("f8")
    stc = plain("f9")
    int3 = plain("cc")
    iretq = plain("48 cf")
    syscall = plain("0f 05")
    sysretq = plain("48 0f 07")
    swapgs = plain("0f 01 f8")
    cpuid = plain("0f a2")
    rdtsc = plain("0f 31")
    rdmsr = plain("0f 32")
    wrmsr = plain("0f 30")
    xgetbv = plain("0f 01 d0")
    mfence = plain("0f ae f0")
    lfence = plain("0f ae e8")
