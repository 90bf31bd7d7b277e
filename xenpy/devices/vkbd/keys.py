"""The keys of an American keyboard that characters are typed with.

Ref: linux/input-event-codes.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_LEFTSHIFT: Final = 42
_ROWS: Final = (
    (2, "1234567890-=", "!@#$%^&*()_+"),
    (16, "qwertyuiop[]", "QWERTYUIOP{}"),
    (30, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (43, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
)
"""First code of a row of neighbours; what they type; what they type with Shift."""

KEYS: Final[Mapping[str, tuple[int, bool]]] = {
    **{char: (first + place, False) for first, plain, _ in _ROWS for place, char in enumerate(plain)},
    **{char: (first + place, True) for first, _, shifted in _ROWS for place, char in enumerate(shifted)},
    " ": (57, False),
    "\n": (28, False),
    "\t": (15, False),
    "\b": (14, False),
    "\x1b": (1, False),
}
"""Character -> keycode, and whether with Shift."""


def strokes(text: str) -> list[tuple[int, bool]]:
    """Return the keycodes that type a text, each with whether it is pressed (or released). Raises ConfigError."""
    events: list[tuple[int, bool]] = []
    for char in text:
        if char not in KEYS:
            raise ConfigError(f"no key types {char!r}")
        code, shift = KEYS[char]
        stroke = [(code, True), (code, False)]
        events += [(KEY_LEFTSHIFT, True), *stroke, (KEY_LEFTSHIFT, False)] if shift else stroke
    return events
