"""Privileged instructions of a kernel that runs in ring 3: each faults with #GP(0), and is done here as Xen would.

hlt, popf, lgdt, invlpg and the rest are not among them: the guest has hypercalls for what they do, and gets the #GP.

Ref: AMD64 Architecture Programmer's Manual (APM), volume 3, chapters 3 and 4
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.pv.emulate.cpuid_prefix import load_cpuid
from xenpy.pv.emulate.decode import REGISTERS, TWO_BYTE, Instruction, decode, get_register, linear, with_register
from xenpy.pv.emulate.machine import (
    MAX_INSTRUCTION,
    WORD_MASK,
    GuestFault,
    Machine,
    Outcome,
    Rflags,
    Vector,
    load,
    retire,
    store,
)
from xenpy.pv.emulate.msr import MSR_TSC_AUX

if TYPE_CHECKING:
    from collections.abc import Callable

_CR0_TS: Final = 1 << 3
_CR4_TSD: Final = 1 << 2
_CR4_DE: Final = 1 << 3
_XSETBV: Final = (2, 1)
_RDTSCP: Final = (7, 1)
"""ModRM.reg and ModRM.rm of instructions behind 0f 01."""
_MAX_REPETITIONS: Final = 1024
"""Elements of a rep ins or rep outs done at once; then the guest comes back for more, so that events get in between."""
_LOW: Final = (1 << 32) - 1


def _require_kernel(machine: Machine) -> None:
    if not machine.in_kernel:
        raise GuestFault(Vector.GP)


def _iopl_covers(machine: Machine) -> bool:
    """Tell whether the virtual IOPL covers the caller: the kernel is in ring 1, or in 0 if it asked for that.

    Ref: xen/include/public/xen.h, VMASST_TYPE_architectural_iopl
    """
    ring = 3 if not machine.in_kernel else 0 if machine.architectural_iopl else 1
    return machine.iopl >= ring


def _require_iopl(machine: Machine) -> None:
    if not _iopl_covers(machine):
        raise GuestFault(Vector.GP)


def _require_ports(machine: Machine, port: int, size: int) -> None:
    if not (_iopl_covers(machine) or machine.bitmap_permits(port, size)):
        raise GuestFault(Vector.GP)


def _edx_eax(machine: Machine) -> int:
    return (machine.regs.rdx & _LOW) << 32 | machine.regs.rax & _LOW


def _set_edx_eax(machine: Machine, value: int) -> None:
    machine.regs.rax = value & _LOW
    machine.regs.rdx = value >> 32 & _LOW


# -- ports ------------------------------------------------------------------------------------------------------------


def _port_size(instruction: Instruction) -> int:
    return min(instruction.size, 4)


def _port(machine: Machine, instruction: Instruction) -> int:
    """Return the port that in and out name: opcodes e4 to e7 by a byte, ec to ef in dx."""
    return machine.regs.rdx & 0xFFFF if instruction.opcode & 8 else instruction.immediate & 0xFF


def _in(machine: Machine, instruction: Instruction) -> None:
    port, size = _port(machine, instruction), _port_size(instruction)
    _require_ports(machine, port, size)
    value = machine.port_in(port, size)
    name, merged = with_register(machine.regs, 0, size, value, has_rex=False)
    setattr(machine.regs, name, merged)


def _out(machine: Machine, instruction: Instruction) -> None:
    port, size = _port(machine, instruction), _port_size(instruction)
    _require_ports(machine, port, size)
    machine.port_out(port, size, get_register(machine.regs, 0, size, has_rex=False))


def _string_port(machine: Machine, instruction: Instruction, rip: int) -> Outcome | GuestFault:
    """Do ins or outs, as often as its prefix says but for `_MAX_REPETITIONS` at a time; `rip` is where it ends."""
    regs = machine.regs
    port, size = regs.rdx & 0xFFFF, _port_size(instruction)
    _require_ports(machine, port, size)
    mask = (1 << 8 * instruction.address_size) - 1
    step = -size if regs.rflags & Rflags.DF else size
    outs = instruction.opcode & 2
    start = regs.rip
    for _ in range(_MAX_REPETITIONS):
        left = 0
        if instruction.repeat:
            left = (regs.rcx & mask) - 1
            if left < 0:
                return retire(machine, rip)
        if outs:
            source_gva = linear(instruction, regs.rsi, machine.fs_base, machine.gs_base)
            machine.port_out(port, size, load(machine, source_gva, size))
            regs.rsi = regs.rsi + step & mask
        else:
            store(machine, regs.rdi & mask, size, machine.port_in(port, size))
            regs.rdi = regs.rdi + step & mask
        if instruction.repeat:
            regs.rcx = left
        outcome = retire(machine, start if left else rip)
        if outcome is not Outcome.DONE or not left:
            return outcome
    return Outcome.DONE


# -- the rest ---------------------------------------------------------------------------------------------------------


def _cli_sti(machine: Machine, _: Instruction) -> None:
    """Do nothing, as Xen: were upcalls masked here, the popf that is to unmask them would not come to us."""
    _require_iopl(machine)


def _clts(machine: Machine, _: Instruction) -> None:
    _require_kernel(machine)
    machine.write_cr(0, machine.read_cr(0) & ~_CR0_TS)


def _wbinvd(machine: Machine, _: Instruction) -> None:
    """Do nothing: no device sees this memory past the caches."""
    _require_kernel(machine)


def _mov_from_cr(machine: Machine, instruction: Instruction) -> None:
    _require_kernel(machine)
    if instruction.reg not in (0, 2, 3, 4):
        raise GuestFault(Vector.GP)
    setattr(machine.regs, REGISTERS[instruction.rm], machine.read_cr(instruction.reg))


def _mov_to_cr(machine: Machine, instruction: Instruction) -> None:
    _require_kernel(machine)
    if instruction.reg not in (0, 2, 3, 4):
        raise GuestFault(Vector.GP)
    machine.write_cr(instruction.reg, getattr(machine.regs, REGISTERS[instruction.rm]))


def _debug_register(machine: Machine, instruction: Instruction) -> int:
    """Return the number of the debug register meant; DR4 and DR5 are DR6 and DR7 unless CR4.DE forbids them."""
    _require_kernel(machine)
    index = instruction.reg
    if index > 7 or (index in (4, 5) and machine.read_cr(4) & _CR4_DE):
        raise GuestFault(Vector.UD)
    return index + 2 if index in (4, 5) else index


def _mov_from_dr(machine: Machine, instruction: Instruction) -> None:
    setattr(machine.regs, REGISTERS[instruction.rm], machine.read_dr(_debug_register(machine, instruction)))


def _mov_to_dr(machine: Machine, instruction: Instruction) -> None:
    machine.write_dr(_debug_register(machine, instruction), getattr(machine.regs, REGISTERS[instruction.rm]))


def _rdmsr(machine: Machine, _: Instruction) -> None:
    _require_kernel(machine)
    _set_edx_eax(machine, machine.rdmsr(machine.regs.rcx & _LOW))


def _wrmsr(machine: Machine, _: Instruction) -> None:
    _require_kernel(machine)
    machine.wrmsr(machine.regs.rcx & _LOW, _edx_eax(machine))


def _rdtsc(machine: Machine, _: Instruction) -> None:
    if not machine.in_kernel and machine.read_cr(4) & _CR4_TSD:
        raise GuestFault(Vector.GP)
    _set_edx_eax(machine, machine.rdtsc())


def _cpuid(machine: Machine, _: Instruction) -> None:
    load_cpuid(machine)


def _group_01(machine: Machine, instruction: Instruction) -> bool:
    """Do xsetbv or rdtscp; tell whether it was one of them."""
    selector = (instruction.reg & 7, instruction.rm & 7)
    if instruction.memory is not None or instruction.repeat or instruction.word_size == 2:
        return False
    if selector == _XSETBV:
        _require_kernel(machine)
        machine.xsetbv(machine.regs.rcx & _LOW, _edx_eax(machine))
        return True
    if selector == _RDTSCP:
        aux = machine.rdmsr(MSR_TSC_AUX)
        _rdtsc(machine, instruction)
        machine.regs.rcx = aux & _LOW
        return True
    return False


_HANDLERS: Final[dict[int, Callable[[Machine, Instruction], bool | None]]] = {
    **dict.fromkeys((0xE4, 0xE5, 0xEC, 0xED), _in),
    **dict.fromkeys((0xE6, 0xE7, 0xEE, 0xEF), _out),
    0xFA: _cli_sti,
    0xFB: _cli_sti,
    TWO_BYTE | 0x01: _group_01,
    TWO_BYTE | 0x06: _clts,
    TWO_BYTE | 0x09: _wbinvd,
    TWO_BYTE | 0x20: _mov_from_cr,
    TWO_BYTE | 0x21: _mov_from_dr,
    TWO_BYTE | 0x22: _mov_to_cr,
    TWO_BYTE | 0x23: _mov_to_dr,
    TWO_BYTE | 0x30: _wrmsr,
    TWO_BYTE | 0x31: _rdtsc,
    TWO_BYTE | 0x32: _rdmsr,
    TWO_BYTE | 0xA2: _cpuid,
}
_STRING_PORTS: Final = frozenset((0x6C, 0x6D, 0x6E, 0x6F))


def emulate_privileged(machine: Machine) -> Outcome | GuestFault:
    """Do the instruction at RIP, which faulted with #GP(0); return how it ended, a GuestFault being what to deliver.

    The caller keeps to itself a #GP whose error code is not 0: no instruction of these causes one.
    """
    regs = machine.regs
    instruction = decode(machine.read_code(regs.rip, MAX_INSTRUCTION), long_mode=machine.long_mode)
    if instruction is None or instruction.lock:
        return Outcome.UNHANDLEABLE
    rip = regs.rip + instruction.length & WORD_MASK
    try:
        if instruction.opcode in _STRING_PORTS:
            return _string_port(machine, instruction, rip)
        handler = _HANDLERS.get(instruction.opcode)
        if handler is None or handler(machine, instruction) is False:
            return Outcome.UNHANDLEABLE
    except GuestFault as fault:
        return fault
    return retire(machine, rip)
