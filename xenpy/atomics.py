"""Atomic operations on guest memory.

A guest changes event words, pending bits and grant flags with LOCK-prefixed instructions while we change them too; a read-modify-write
in Python would lose its update. Without a C extension the same instructions come from a page of hand-assembled code.
"""

from __future__ import annotations

from typing import Final

from xenpy import libc

# Each follows the System V convention: rdi = address of the word, rsi and rdx = operands, result in rax.
_CODE: Final = {
    # mov eax, esi; lock cmpxchg [rdi], dx; movzx eax, ax; ret
    "cmpxchg16": bytes.fromhex("89f0 f0660fb117 0fb7c0 c3"),
    # mov eax, esi; lock cmpxchg [rdi], edx; ret
    "cmpxchg32": bytes.fromhex("89f0 f00fb117 c3"),
    # mov rax, rsi; lock cmpxchg [rdi], rdx; ret
    "cmpxchg64": bytes.fromhex("4889f0 f0480fb117 c3"),
    # xchg [rdi], esi; mov eax, esi; ret
    "xchg32": bytes.fromhex("8737 89f0 c3"),
    # xchg [rdi], sil; movzx eax, sil; ret
    "xchg8": bytes.fromhex("408637 400fb6c6 c3"),
    # lock bts [rdi], rsi; setc al; movzx eax, al; ret -- the bit number may lie beyond the first word
    "set_bit": bytes.fromhex("f0480fab37 0f92c0 0fb6c0 c3"),
    # lock btr [rdi], rsi; setc al; movzx eax, al; ret
    "clear_bit": bytes.fromhex("f0480fb337 0f92c0 0fb6c0 c3"),
    # A signal handler (rdi = number, rsi = siginfo): mov rax, [rsi + 24]; test rax, rax; jz 1f;
    # mov byte [rax], 1; 1: ret -- 24 is si_value's offset, and a value of 0 comes from somebody else
    "kick_handler": bytes.fromhex("488b4618 4885c0 7403 c60001 c3"),
}


def _assemble() -> dict[str, int]:
    """Map the routines executable and return their addresses."""
    text = bytearray()
    offsets: dict[str, int] = {}
    for name, code in _CODE.items():
        offsets[name] = len(text)
        text += code
        text += b"\xcc" * (-len(text) % 16)
    base = libc.map_code("xenpy-atomics", bytes(text))
    return {name: base + offset for name, offset in offsets.items()}


_routines: Final = _assemble()
_SIGNATURE: Final = "native_word_op"

_cmpxchg16 = libc.native_function(_routines["cmpxchg16"], _SIGNATURE)
_cmpxchg32 = libc.native_function(_routines["cmpxchg32"], _SIGNATURE)
_cmpxchg64 = libc.native_function(_routines["cmpxchg64"], _SIGNATURE)
_xchg32 = libc.native_function(_routines["xchg32"], _SIGNATURE)
_xchg8 = libc.native_function(_routines["xchg8"], _SIGNATURE)
_set_bit = libc.native_function(_routines["set_bit"], _SIGNATURE)
_clear_bit = libc.native_function(_routines["clear_bit"], _SIGNATURE)

KICK_HANDLER: Final = _routines["kick_handler"]
"""Address of the handler of the signal that kicks a vCPU out of the guest: it sets the byte that the signal's value points to."""


def cmpxchg16(hva: int, expected: int, new: int) -> int:
    """Store `new` in the 16-bit word at `hva` if it holds `expected`; return what it held."""
    return int(_cmpxchg16(hva, expected, new))


def cmpxchg32(hva: int, expected: int, new: int) -> int:
    """Store `new` in the 32-bit word at `hva` if it holds `expected`; return what it held."""
    return int(_cmpxchg32(hva, expected, new)) & 0xFFFFFFFF


def cmpxchg64(hva: int, expected: int, new: int) -> int:
    """Store `new` in the 64-bit word at `hva` if it holds `expected`; return what it held."""
    return int(_cmpxchg64(hva, expected, new))


def xchg32(hva: int, new: int) -> int:
    """Store `new` in the 32-bit word at `hva`; return what it held."""
    return int(_xchg32(hva, new, 0)) & 0xFFFFFFFF


def xchg8(hva: int, new: int) -> int:
    """Store `new` in the byte at `hva`; return what it held."""
    return int(_xchg8(hva, new, 0))


def set_bit(hva: int, bit: int) -> bool:
    """Set a bit of the bitmap that starts at `hva`; tell whether it was set. The bitmap's words must be 8-byte aligned."""
    return bool(_set_bit(hva, bit, 0))


def clear_bit(hva: int, bit: int) -> bool:
    """Clear a bit of the bitmap that starts at `hva`; tell whether it was set. The bitmap's words must be 8-byte aligned."""
    return bool(_clear_bit(hva, bit, 0))
