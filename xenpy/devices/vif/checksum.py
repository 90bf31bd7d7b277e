"""Checksums of the Internet protocols, on whole buffers at a time.

The ones' complement sum of 16-bit words is the buffer, read as one big-endian number, modulo 0xFFFF: Python's long
arithmetic takes it at memory speed, without a step of the interpreter for each word.

Ref: RFC 1071
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_MODULUS: Final = 0xFFFF
_BYTE: Final = 256
"""Multiplying by it swaps the bytes of a sum, because 2**16 is 1 modulo 0xFFFF."""


def ones_sum(parts: Iterable[bytes | bytearray | memoryview], start: int = 0) -> int:
    """Return the sum of 16-bit words of the concatenated parts, the last padded to even length, added to `start`.

    The result is 1 to 0xFFFF: with the ambiguity of zero taken out, it is what adding words and carries gives for any
    data that are not all zeroes.
    """
    total = 0
    odd = False
    for part in parts:
        value = int.from_bytes(part, "big") % _MODULUS
        if len(part) & 1:
            value *= _BYTE  # as if padded
        total += value * _BYTE if odd else value
        odd ^= bool(len(part) & 1)
    return (total + start) % _MODULUS or _MODULUS


def checksum(parts: Iterable[bytes | bytearray | memoryview], start: int = 0) -> int:
    """Return the checksum of the concatenated parts: the complement of `ones_sum`."""
    return _MODULUS - ones_sum(parts, start)
