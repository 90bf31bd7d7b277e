"""Integer instructions: what they make of their operands, and of the flags.

Operands are unsigned numbers of `bits` bits; every function takes RFLAGS before and returns the result and RFLAGS after. Flags that
the manual leaves undefined come out as processors have them.

Ref: AMD64 Architecture Programmer's Manual, volume 1, 3.1.4 and volume 3, chapter 3
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.pv.emulate.machine import Rflags

if TYPE_CHECKING:
    from collections.abc import Callable

    Operation = Callable[[int, int, int, int], tuple[int, int]]
    """(destination, source, bits, rflags) -> (result, rflags)"""

_CF, _PF, _AF, _ZF, _SF, _OF = Rflags.CF, Rflags.PF, Rflags.AF, Rflags.ZF, Rflags.SF, Rflags.OF
_STATUS: Final = _CF | _PF | _AF | _ZF | _SF | _OF


def _flags(rflags: int, result: int, bits: int, carry: int, adjust: int, overflow: int) -> int:
    """Return RFLAGS with all six status flags set; `carry`, `adjust` and `overflow` are 0 or 1."""
    return (
        rflags & ~_STATUS
        | carry * _CF
        | (0 if (result & 0xFF).bit_count() & 1 else _PF)
        | adjust * _AF
        | (0 if result else _ZF)
        | (result >> bits - 1) * _SF
        | overflow * _OF
    )


def _sum(left: int, right: int, carry: int, bits: int, rflags: int) -> tuple[int, int]:
    total = left + right + carry
    result = total & (1 << bits) - 1
    adjust = (left ^ right ^ result) >> 4 & 1
    overflow = ((left ^ result) & (right ^ result)) >> bits - 1
    return result, _flags(rflags, result, bits, total >> bits, adjust, overflow)


def _difference(left: int, right: int, borrow: int, bits: int, rflags: int) -> tuple[int, int]:
    total = left - right - borrow
    result = total & (1 << bits) - 1
    adjust = (left ^ right ^ result) >> 4 & 1
    overflow = ((left ^ right) & (left ^ result)) >> bits - 1
    return result, _flags(rflags, result, bits, int(total < 0), adjust, overflow)


def add(left: int, right: int, bits: int, rflags: int) -> tuple[int, int]:
    """Add."""
    return _sum(left, right, 0, bits, rflags)


def adc(left: int, right: int, bits: int, rflags: int) -> tuple[int, int]:
    """Add with carry."""
    return _sum(left, right, rflags & _CF, bits, rflags)


def sub(left: int, right: int, bits: int, rflags: int) -> tuple[int, int]:
    """Subtract."""
    return _difference(left, right, 0, bits, rflags)


def sbb(left: int, right: int, bits: int, rflags: int) -> tuple[int, int]:
    """Subtract with borrow."""
    return _difference(left, right, rflags & _CF, bits, rflags)


def and_(left: int, right: int, bits: int, rflags: int) -> tuple[int, int]:
    """Take the bits that both have."""
    return left & right, _flags(rflags, left & right, bits, 0, 0, 0)


def or_(left: int, right: int, bits: int, rflags: int) -> tuple[int, int]:
    """Take the bits that either has."""
    return left | right, _flags(rflags, left | right, bits, 0, 0, 0)


def xor(left: int, right: int, bits: int, rflags: int) -> tuple[int, int]:
    """Take the bits that one of the two has."""
    return left ^ right, _flags(rflags, left ^ right, bits, 0, 0, 0)


def inc(left: int, _: int, bits: int, rflags: int) -> tuple[int, int]:
    """Add 1; CF stays."""
    result, flags = add(left, 1, bits, rflags)
    return result, flags & ~_CF | rflags & _CF


def dec(left: int, _: int, bits: int, rflags: int) -> tuple[int, int]:
    """Subtract 1; CF stays."""
    result, flags = sub(left, 1, bits, rflags)
    return result, flags & ~_CF | rflags & _CF


def not_(left: int, _: int, bits: int, rflags: int) -> tuple[int, int]:
    """Invert; flags stay."""
    return left ^ (1 << bits) - 1, rflags


def neg(left: int, _: int, bits: int, rflags: int) -> tuple[int, int]:
    """Subtract from 0."""
    return sub(0, left, bits, rflags)


def mov(_left: int, right: int, _bits: int, rflags: int) -> tuple[int, int]:
    """Take the source; flags stay."""
    return right, rflags


def _with_carry(word: int, bit: int, rflags: int) -> int:
    return rflags & ~_CF | (word >> bit & 1) * _CF


def bts(word: int, bit: int, _bits: int, rflags: int) -> tuple[int, int]:
    """Set a bit; CF is what it was, other flags stay."""
    return word | 1 << bit, _with_carry(word, bit, rflags)


def btr(word: int, bit: int, _bits: int, rflags: int) -> tuple[int, int]:
    """Clear a bit; CF is what it was, other flags stay."""
    return word & ~(1 << bit), _with_carry(word, bit, rflags)


def btc(word: int, bit: int, _bits: int, rflags: int) -> tuple[int, int]:
    """Invert a bit; CF is what it was, other flags stay."""
    return word ^ 1 << bit, _with_carry(word, bit, rflags)


ALU: Final[tuple[Operation, ...]] = (add, or_, adc, sbb, and_, sub, xor)
"""Operations by the number that bits 5:3 of the opcode, or ModRM.reg, give them; 7 is cmp, which stores nothing."""
