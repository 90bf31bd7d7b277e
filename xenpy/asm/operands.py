"""Memory operands, and the error that every misuse of the assembler raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpy.asm.registers import Reg, Segment

_SIB: Final = 4  # ModRM.rm: a SIB byte follows; SIB.index: none
_NO_BASE: Final = 5  # with ModRM.mod 0: a 32-bit displacement stands for the base, or for rip if there is no SIB byte
_DISP8, _DISP32 = 0x40, 0x80  # ModRM.mod
_SCALES: Final = {1: 0x00, 2: 0x40, 4: 0x80, 8: 0xC0}


class AssemblerError(ValueError):
    """Code that cannot be assembled: a mistake of the source, so the message names the instruction, its operands or the label."""


class Mem:
    """A memory operand, encoded but for ModRM.reg and the displacement of a rip-relative one. Made by `mem`.

    `prefix` is a segment override or 0, `rex` the X and B bits, `tail` what follows the ModRM byte, `target` the label or VA of a
    rip-relative operand.
    """

    __slots__ = ("modrm", "prefix", "rex", "tail", "target", "text")

    def __init__(self, prefix: int, rex: int, modrm: int, tail: bytes, target: str | int | None, text: str) -> None:
        self.prefix = prefix
        self.rex = rex
        self.modrm = modrm
        self.tail = tail
        self.target = target
        self.text = text

    def __repr__(self) -> str:
        return self.text


def mem(
    base: Reg | None = None,
    disp: int = 0,
    *,
    scale: tuple[Reg, int] | None = None,
    rip: str | int | None = None,
    seg: Segment | None = None,
) -> Mem:
    """Return the memory operand at `base + index * factor + disp`, where `scale` is `(index, factor)`.

    With `rip`, a label or a VA, it is that place plus `disp`, addressed relatively. `disp` alone is an absolute address, of which 32
    bits are kept and sign-extended. Raises AssemblerError.

    Ref: AMD64 APM volume 3, section 1.4 (ModRM and SIB), 1.7.1 (rip-relative)
    """
    text = _describe(base, disp, scale, rip, seg)
    prefix = seg.prefix if seg else 0
    offset = disp - (1 << 64) if disp >> 63 == 1 else disp  # an address of the upper half
    if not -(1 << 31) <= offset < 1 << 31:
        raise AssemblerError(f"{text}: the displacement does not fit 32 bits")
    displacement = offset.to_bytes(4, "little", signed=True)
    if rip is not None:
        if base or scale:
            raise AssemblerError(f"{text}: rip takes neither base nor index")
        return Mem(prefix, 0, _NO_BASE, displacement, rip, text)
    rex, index = _index(scale, text)
    if base is None:
        return Mem(prefix, rex, _SIB, bytes((index | _NO_BASE,)) + displacement, None, text)
    if base.size != 8:
        raise AssemblerError(f"{text}: the base must be a 64-bit register")
    low = base.code & 7
    rex |= base.code >> 3
    if offset == 0 and low != _NO_BASE:
        mode, displacement = 0, b""
    elif -128 <= offset < 128:
        mode, displacement = _DISP8, displacement[:1]
    else:
        mode = _DISP32
    if scale is None and low != _SIB:
        return Mem(prefix, rex, mode | low, displacement, None, text)
    return Mem(prefix, rex, mode | _SIB, bytes((index | low,)) + displacement, None, text)


def _index(scale: tuple[Reg, int] | None, text: str) -> tuple[int, int]:
    """Return REX.X and the SIB byte without its base."""
    if scale is None:
        return 0, _SIB << 3
    index, factor = scale
    if index.size != 8 or index.code == _SIB:
        raise AssemblerError(f"{text}: the index must be a 64-bit register other than rsp")
    if factor not in _SCALES:
        raise AssemblerError(f"{text}: the index is multiplied by 1, 2, 4 or 8")
    return index.code >> 2 & 2, _SCALES[factor] | (index.code & 7) << 3


def _describe(
    base: Reg | None, disp: int, scale: tuple[Reg, int] | None, rip: str | int | None, seg: Segment | None
) -> str:
    terms = [base.name] if base else []
    if rip is not None:
        terms.append(f"rip:{rip}" if isinstance(rip, str) else f"rip:{rip:#x}")
    if scale:
        terms.append(f"{scale[0].name}*{scale[1]}")
    if disp or not terms:
        terms.append(f"{disp:#x}")
    return f"{seg.name}:[{' + '.join(terms)}]" if seg else f"[{' + '.join(terms)}]"
