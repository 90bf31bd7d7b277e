"""The registers of x86-64 by name; a general register's views of 8, 4, 2 and 1 bytes are four names: rax, eax, ax, al.

The old high bytes (ah, bh, ch, dh) are left out: they exclude a REX prefix, and nothing needs them.

Ref: AMD64 APM volume 3, section 1.4.1 (ModRM) and table 1-10 (register numbers)
"""

from __future__ import annotations

from typing import Final

_FORCED_REX: Final = 0x40
"""spl, bpl, sil and dil have the numbers of the old high bytes; any REX prefix tells them apart."""
_SPL, _DIL = 4, 7


class Register:
    """A register that MOV knows: its name and its number in ModRM, whose fourth bit goes to the REX prefix."""

    __slots__ = ("code", "name")

    def __init__(self, name: str, code: int) -> None:
        self.name = name
        self.code = code

    def __repr__(self) -> str:
        return self.name


class Reg(Register):
    """A general register seen with `size` bytes; `rex` holds what its name alone demands of the REX prefix."""

    __slots__ = ("rex", "size")

    def __init__(self, name: str, code: int, size: int) -> None:
        super().__init__(name, code)
        self.size = size
        self.rex = _FORCED_REX if size == 1 and _SPL <= code <= _DIL else 0


class Segment(Register):
    """A segment register; `prefix` is the byte that makes a memory operand use it."""

    __slots__ = ("prefix",)

    def __init__(self, name: str, code: int, prefix: int) -> None:
        super().__init__(name, code)
        self.prefix = prefix


class Control(Register):
    """A control register."""

    __slots__ = ()


class Debug(Register):
    """A debug register."""

    __slots__ = ()


def _views(names: str, size: int) -> list[Reg]:
    return [Reg(name, code, size) for code, name in enumerate(names.split())]


rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 = _views(
    "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15", 8
)
eax, ecx, edx, ebx, esp, ebp, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d = _views(
    "eax ecx edx ebx esp ebp esi edi r8d r9d r10d r11d r12d r13d r14d r15d", 4
)
ax, cx, dx, bx, sp, bp, si, di, r8w, r9w, r10w, r11w, r12w, r13w, r14w, r15w = _views(
    "ax cx dx bx sp bp si di r8w r9w r10w r11w r12w r13w r14w r15w", 2
)
al, cl, dl, bl, spl, bpl, sil, dil, r8b, r9b, r10b, r11b, r12b, r13b, r14b, r15b = _views(
    "al cl dl bl spl bpl sil dil r8b r9b r10b r11b r12b r13b r14b r15b", 1
)

es: Final = Segment("es", 0, 0x26)
cs: Final = Segment("cs", 1, 0x2E)
ss: Final = Segment("ss", 2, 0x36)
ds: Final = Segment("ds", 3, 0x3E)
fs: Final = Segment("fs", 4, 0x64)
gs: Final = Segment("gs", 5, 0x65)

cr0, cr2, cr3, cr4, cr8 = (Control(f"cr{code}", code) for code in (0, 2, 3, 4, 8))
dr0, dr1, dr2, dr3, dr6, dr7 = (Debug(f"dr{code}", code) for code in (0, 1, 2, 3, 6, 7))
