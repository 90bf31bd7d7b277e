"""The assembler: all instructions, with labels and data among them."""

from __future__ import annotations

from typing import Final

from xenpy.asm.encoder import Fixup, Section, signed
from xenpy.asm.flow import Flow
from xenpy.asm.lockable import Lockable
from xenpy.asm.moves import Moves
from xenpy.asm.operands import AssemblerError
from xenpy.asm.system import System

_QUAD: Final = 8
_VA_SIZE: Final = 1 << 64
_NOP: Final = 0x90


class Assembler(Flow, Moves, System):
    """Assembles code that will run at the VA `origin`. Raises AssemblerError at the call that is wrong, or from `assemble`."""

    def __init__(self, origin: int = 0) -> None:
        section = Section(origin)
        super().__init__(section)
        self.lock: Final = Lockable(section, lock=True)
        """The instructions that can be locked, with a LOCK prefix each."""

    @property
    def here(self) -> int:
        """The VA of the next instruction."""
        return self._section.origin + len(self._code)

    def label(self, name: str) -> None:
        """Name the VA of the next instruction."""
        if name in self._section.labels:
            raise AssemblerError(f"{name}: duplicate label, at {self.here:#x} and {self._section.labels[name]:#x}")
        self._section.labels[name] = self.here

    def address(self, name: str) -> int:
        """Return the VA of a label that has been defined."""
        try:
            return self._section.labels[name]
        except KeyError:
            raise AssemblerError(f"{name}: unknown label") from None

    def data(self, content: bytes) -> None:
        """Append bytes as they are."""
        self._code += content

    def quad(self, *values: int | str) -> None:
        """Append words of 8 bytes: numbers, or the VAs of labels."""
        for value in values:
            if isinstance(value, str):
                at = len(self._code)
                self._section.fixups.append(Fixup(at, _QUAD, value, None, 0, "quad"))
                self._code += bytes(_QUAD)
            else:
                self._code += signed("quad", value, _QUAD).to_bytes(_QUAD, "little", signed=True)

    def align(self, boundary: int, fill: int = _NOP) -> None:
        """Append bytes until the VA is a multiple of `boundary`."""
        if boundary <= 0:
            raise AssemblerError(f"align {boundary}: must be positive")
        self._code += bytes((fill,)) * (-self.here % boundary)

    def assemble(self) -> bytes:
        """Return the code with its labels filled in; more may be appended afterwards."""
        code = bytearray(self._code)
        origin = self._section.origin
        for position, width, target, end, displacement, user in self._section.fixups:
            va = self._section.labels.get(target) if isinstance(target, str) else target
            if va is None:
                raise AssemblerError(f"{target}: unknown label, used by {user} near {origin + position:#x}")
            try:
                if end is None:
                    code[position : position + width] = (va % _VA_SIZE).to_bytes(width, "little")
                else:
                    distance = va + displacement - origin - end
                    code[position : position + width] = distance.to_bytes(width, "little", signed=True)
            except OverflowError:
                name = target if isinstance(target, str) else hex(target)
                reach = f"{8 * width} bits do not reach"
                raise AssemblerError(f"{name}: {reach} from {user} near {origin + position:#x}") from None
        return bytes(code)
