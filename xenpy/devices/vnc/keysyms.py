"""The keys that a viewer names, by X's keysyms or by the scan codes of a PC's keyboard, as Linux's codes.

Ref: X11/keysymdef.h, linux/input-event-codes.h, rfbproto.rst (QEMU Extended Key Event Message)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.devices.vkbd.keys import KEYS

if TYPE_CHECKING:
    from collections.abc import Mapping

_FUNCTION: Final = {0xFFBE + number: 59 + number for number in range(10)} | {0xFFC8: 87, 0xFFC9: 88}
_KEYPAD: Final = dict(zip(range(0xFFB0, 0xFFBA), (82, 79, 80, 81, 75, 76, 77, 71, 72, 73), strict=True))
_NAMED: Final = {
    0xFF08: 14,  # BackSpace
    0xFF09: 15,  # Tab
    0xFE20: 15,  # ISO_Left_Tab
    0xFF0D: 28,  # Return
    0xFF13: 119,  # Pause
    0xFF14: 70,  # Scroll_Lock
    0xFF15: 99,  # Sys_Req
    0xFF61: 99,  # Print
    0xFF1B: 1,  # Escape
    0xFF50: 102,  # Home
    0xFF51: 105,  # Left
    0xFF52: 103,  # Up
    0xFF53: 106,  # Right
    0xFF54: 108,  # Down
    0xFF55: 104,  # Page_Up
    0xFF56: 109,  # Page_Down
    0xFF57: 107,  # End
    0xFF63: 110,  # Insert
    0xFFFF: 111,  # Delete
    0xFF67: 127,  # Menu
    0xFF7F: 69,  # Num_Lock
    0xFF8D: 96,  # KP_Enter
    0xFF95: 71,  # KP_Home
    0xFF96: 75,  # KP_Left
    0xFF97: 72,  # KP_Up
    0xFF98: 77,  # KP_Right
    0xFF99: 80,  # KP_Down
    0xFF9A: 73,  # KP_Page_Up
    0xFF9B: 81,  # KP_Page_Down
    0xFF9C: 79,  # KP_End
    0xFF9D: 76,  # KP_Begin
    0xFF9E: 82,  # KP_Insert
    0xFF9F: 83,  # KP_Delete
    0xFFAA: 55,  # KP_Multiply
    0xFFAB: 78,  # KP_Add
    0xFFAD: 74,  # KP_Subtract
    0xFFAE: 83,  # KP_Decimal
    0xFFAF: 98,  # KP_Divide
    0xFFE1: 42,  # Shift_L
    0xFFE2: 54,  # Shift_R
    0xFFE3: 29,  # Control_L
    0xFFE4: 97,  # Control_R
    0xFFE5: 58,  # Caps_Lock
    0xFFE7: 125,  # Meta_L
    0xFFE8: 126,  # Meta_R
    0xFFE9: 56,  # Alt_L
    0xFFEA: 100,  # Alt_R
    0xFE03: 100,  # ISO_Level3_Shift
    0xFFEB: 125,  # Super_L
    0xFFEC: 126,  # Super_R
}
_CHARACTERS: Final = {ord(char): code for char, (code, _) in KEYS.items() if char.isprintable()}
KEYSYMS: Final[Mapping[int, int]] = _CHARACTERS | _FUNCTION | _KEYPAD | _NAMED
"""Keysym -> code. Shift is a key that the viewer presses by itself, so characters are where an American keyboard has them."""

_SAME: Final = 0x58
"""Scan codes up to this one, F12's, are Linux's codes."""
_EXTENDED: Final = {
    0x9C: 96,  # keypad Enter
    0x9D: 97,  # right Control
    0xB5: 98,  # keypad /
    0xB7: 99,  # Print
    0xB8: 100,  # right Alt
    0xC6: 119,  # Pause
    0xC7: 102,  # Home
    0xC8: 103,  # Up
    0xC9: 104,  # Page Up
    0xCB: 105,  # Left
    0xCD: 106,  # Right
    0xCF: 107,  # End
    0xD0: 108,  # Down
    0xD1: 109,  # Page Down
    0xD2: 110,  # Insert
    0xD3: 111,  # Delete
    0xDB: 125,  # left Meta
    0xDC: 126,  # right Meta
    0xDD: 127,  # Menu
}


def code_of_keysym(keysym: int) -> int | None:
    """Return the code of the key that types a keysym on an American keyboard."""
    return KEYSYMS.get(keysym)


def code_of_scancode(scancode: int) -> int | None:
    """Return the code of a key by its scan code, whose top bit says that it is one of those after 0xE0."""
    return scancode if 0 < scancode <= _SAME else _EXTENDED.get(scancode)
