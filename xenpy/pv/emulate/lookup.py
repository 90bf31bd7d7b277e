"""Loads from the machine-to-physical map where Xen has it, for hosts on which the map cannot be there.

Xen's headers give its address as a number, and small kernels take it from there rather than ask XENMEM_machphys_mapping.

Ref: xen/include/public/arch-x86/xen-x86_64.h, __MACH2PHYS_VIRT_START; AMD64 Architecture Programmer's Manual, volume 3, MOV, MOVZX
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.pv.emulate.decode import TWO_BYTE, decode, memory_gva, with_register
from xenpy.pv.emulate.machine import MAX_INSTRUCTION, GuestFault, Machine, Outcome, retire

if TYPE_CHECKING:
    from collections.abc import Callable

MACH2PHYS: Final = 0xFFFF_8000_0000_0000
"""Where Xen has the map: its first word is that of machine frame 0."""
_MOV: Final = frozenset((0x8A, 0x8B))
_MOVZX: Final = {TWO_BYTE | 0xB6: 1, TWO_BYTE | 0xB7: 2}
"""Opcode -> bytes that are read; the register is set whole."""


def emulate_load(machine: Machine, fault_gva: int, read: Callable[[int, int], int | None]) -> Outcome | GuestFault:
    """Do the load by which the guest kernel met `fault_gva`: `read(gva, size)` is what is there, None if nothing is."""
    regs = machine.regs
    code = machine.read_code(regs.rip, MAX_INSTRUCTION) if machine.in_kernel and machine.long_mode else b""
    instruction = decode(code)
    if instruction is None or instruction.memory is None:
        return Outcome.UNHANDLEABLE
    if instruction.opcode in _MOV:
        size = width = instruction.size
    elif instruction.opcode in _MOVZX:
        size, width = _MOVZX[instruction.opcode], instruction.word_size
    else:
        return Outcome.UNHANDLEABLE
    gva = memory_gva(instruction, instruction.memory, regs, machine.fs_base, machine.gs_base)
    value = read(gva, size) if gva == fault_gva else None
    if value is None:
        return Outcome.UNHANDLEABLE
    name, whole = with_register(regs, instruction.reg, width, value, has_rex=instruction.has_rex)
    setattr(regs, name, whole)
    return retire(machine, regs.rip + instruction.length)
