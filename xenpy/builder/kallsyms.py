"""The symbols that a Linux kernel carries for itself, CONFIG_KALLSYMS, found in its image.

They are in read-only data, without a header: names in a code of 256 tokens, a marker for every 256th of them, the tokens' texts and where
each begins, and each symbol's distance from a base. What the tables say of each other tells where they are.

Ref: linux/scripts/kallsyms.c, linux/kernel/kallsyms.c
"""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenpy.builder.kernel import KernelImage

_TOKENS: Final = 256
_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
"""Tokens that stand for themselves in every kernel, in the order of their numbers."""
_MARKED: Final = 256
"""There is a marker for every so many names."""
_FEWEST, _MOST = 1_000, 2_000_000
_LONG: Final = 0x80
"""A name of so many tokens has its length in two bytes, seven bits in the first. Ref: Linux 6.1"""
_KERNEL_BASE: Final = 0xFFFF_FFFF_0000_0000
_WORDS: Final = 8
_BASE_REACH: Final = 16
_UNITS: Final = 4


class Symbol(NamedTuple):
    """A symbol: its type as nm(1) has it, its address and its name."""

    type: str
    gva: int
    name: str


def find_symbols(kernel: KernelImage) -> list[Symbol]:
    """Return the symbols of a Linux kernel, by address. Raises ConfigError if it carries none."""
    data = bytes(kernel.data)
    for tokens_at in _token_tables(data):
        table = _tokens(data, tokens_at)
        if table is None:
            continue
        tokens, index_end = table
        found = _names(data, tokens_at, tokens)
        if found is None:
            continue
        count_at, count, names = found
        addresses = _addresses(data, count_at, index_end, count)
        if addresses is not None:
            return sorted(
                (Symbol(name[0], gva, name[1:]) for gva, name in zip(addresses, names, strict=True) if name),
                key=lambda symbol: symbol.gva,
            )
    raise ConfigError(
        f"{kernel.path}: no kallsyms in it: a Linux kernel with CONFIG_KALLSYMS has its symbols in itself"
    )


def _token_tables(data: bytes) -> Iterator[int]:
    """Yield where token tables may begin: so many strings in front of those of the digits."""
    at = data.find(_DIGITS)
    while at >= 0:
        start = at
        for _ in range(ord("0") + 1):
            start = data.rfind(b"\0", 0, start) if start > 0 else -1
        # The last of these zeros ends what is in front of the table: it is padding, up to where the table is aligned.
        if start >= 0:
            yield start + 1
        at = data.find(_DIGITS, at + 1)


def _tokens(data: bytes, start: int) -> tuple[list[bytes], int] | None:
    """Return the tokens of a table and where the index behind it ends, if there is one."""
    tokens, places, at = [], array("H"), start
    for _ in range(_TOKENS):
        end = data.find(b"\0", at)
        if end < 0 or at - start >= 1 << 16:
            return None
        places.append(at - start)
        tokens.append(data[at:end])
        at = end + 1
    index = places.tobytes()
    found = data.find(index, at, at + len(index) + _WORDS)
    return (tokens, found + len(index)) if found >= 0 else None


def _names(data: bytes, end: int, tokens: Sequence[bytes]) -> tuple[int, int, list[str]] | None:
    """Return where the number of names is, the number, and the names, which end in front of `end`."""
    texts = [token.decode("ascii", "replace") for token in tokens]
    first = end % _UNITS
    numbers = memoryview(data)[first : first + (end - first) // _UNITS * _UNITS].cast("I")
    for index in range(len(numbers) - 1, 0, -1):
        count = numbers[index]
        at = first + index * _UNITS
        if not _FEWEST <= count <= _MOST or count * 2 > end - at:
            continue
        for padding in (_UNITS, _WORDS):  # the names are aligned as words of the kernel's are
            if _has_markers(data, at + padding, count, end):
                return at, count, list(_decode(data, at + padding, count, texts))
    return None


def _lengths(data: bytes, at: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield (place, number of tokens) of names."""
    for _ in range(count):
        length = data[at]
        at += 1
        if length & _LONG:
            length = length & _LONG - 1 | data[at] << 7
            at += 1
        yield at, length
        at += length


def _has_markers(data: bytes, start: int, count: int, end: int) -> bool:
    """Tell whether names begin at a place: markers follow them that say where every 256th is."""
    places, last = array("I", [0]), start
    try:
        for number, (at, length) in enumerate(_lengths(data, start, count), 1):
            if not length or at + length > end:
                return False
            last = at + length
            if number % _MARKED == 0 and number < count:
                places.append(last - start)
                if number == _MARKED and data.find(places.tobytes(), last, end) < 0:
                    return False  # most that cannot be go here, soon
    except IndexError:
        return False
    return data.find(places.tobytes(), last, min(end, last + _WORDS + places.itemsize * len(places))) >= 0


def _decode(data: bytes, start: int, count: int, texts: Sequence[str]) -> Iterator[str]:
    for at, length in _lengths(data, start, count):
        yield "".join(map(texts.__getitem__, data[at : at + length]))


def _addresses(data: bytes, count_at: int, index_end: int, count: int) -> list[int] | None:
    """Return the symbols' addresses: their table is behind the tokens' index, or, up to Linux 6.3, in front of the number of names."""
    size = count * _UNITS
    behind = -(-index_end // _WORDS) * _WORDS
    base_behind = -(-(behind + size) // _WORDS) * _WORDS
    places = [(behind, base_behind)]
    for base_at in range(count_at - _WORDS, count_at - _BASE_REACH - 1, -_WORDS):
        places.extend((base_at - size - gap, base_at) for gap in (0, _UNITS))
    for offsets_at, base_at in places:
        base = int.from_bytes(data[base_at : base_at + _WORDS], "little")
        if offsets_at < 0 or base < _KERNEL_BASE:
            continue
        offsets = array("i", data[offsets_at : offsets_at + size])
        if len(offsets) == count and (addresses := _rebased(offsets, base)) is not None:
            return addresses
    return None


def _rebased(offsets: array[int], base: int) -> list[int] | None:
    """Return what offsets mean: negative ones are below the base, and others absolute, until Linux 6.15; then all are above the base."""
    negative = sum(offset < 0 for offset in offsets)
    if negative > len(offsets) // 2:
        return [base - 1 - offset if offset < 0 else offset for offset in offsets]
    addresses = [base + (offset & 0xFFFF_FFFF) for offset in offsets]
    ordered = sum(one <= next_ for one, next_ in pairwise(addresses))
    return addresses if ordered > len(addresses) // 2 else None
