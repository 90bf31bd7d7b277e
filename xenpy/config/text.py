"""Wording of messages and the numbers inside strings, shared by every parser of the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.config.grammar import Position

_SHOWN = 60  # characters of a wrong value that a message repeats
_MAX_NUMBER = 32  # characters: a 64-bit number in octal has 22

_DIGITS = {8: frozenset("01234567"), 10: frozenset("0123456789"), 16: frozenset("0123456789abcdefABCDEF")}


def fail(position: Position, message: str) -> ConfigError:
    """Return the error `file:line: message`, to be raised by the caller."""
    return ConfigError(f"{position}: {message}")


def quote(text: str) -> str:
    """Quote the user's text for a message: shortened, and with nothing in it that a terminal would act on."""
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return '"' + "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown) + '"'


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean '...'?` for the known word closest to `word`, or nothing when none is close."""
    from difflib import get_close_matches

    close = get_close_matches(word[:_SHOWN], known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def parse_integer(text: str) -> int | None:
    """Parse a number as C's strtol with base 0: blanks, sign, then 0x hexadecimal, 0 octal or decimal.

    Returns None for anything else, trailing text included.
    Ref: xl.cfg(5), NUMBER
    """
    text = text.lstrip(" \t\n\v\f\r")
    if len(text) > _MAX_NUMBER:
        return None
    negative = text.startswith("-")
    digits = text[1:] if text[:1] in ("+", "-") else text
    if digits[:2] in ("0x", "0X"):
        base, digits = 16, digits[2:]
    else:
        base = 8 if digits[:1] == "0" else 10
    if not digits or not _DIGITS[base].issuperset(digits):
        return None
    value = int(digits, base)
    return -value if negative else value
