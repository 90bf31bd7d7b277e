"""The forced-emulation prefix, by which PV code asks for the CPUID that Xen shows it, whatever the processor answers.

Ref: xen/include/public/arch-x86/xen.h, XEN_EMULATE_PREFIX, XEN_CPUID
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.pv.emulate.machine import GuestFault, Outcome, retire

if TYPE_CHECKING:
    from xenpy.pv.emulate.machine import Machine

FORCED_CPUID: Final = b"\x0f\x0bxen\x0f\xa2"
"""ud2, the letters, and the only instruction that may follow."""


def load_cpuid(machine: Machine) -> None:
    """Set eax, ebx, ecx and edx as CPUID does. Raises GuestFault."""
    regs = machine.regs
    regs.rax, regs.rbx, regs.rcx, regs.rdx = machine.cpuid(regs.rax & 0xFFFF_FFFF, regs.rcx & 0xFFFF_FFFF)


def emulate_forced(machine: Machine) -> Outcome | GuestFault:
    """Do the CPUID behind the prefix that made this #UD; without one the #UD is the guest's, kernel or user."""
    regs = machine.regs
    if machine.read_code(regs.rip, len(FORCED_CPUID)) != FORCED_CPUID:
        return Outcome.UNHANDLEABLE
    try:
        load_cpuid(machine)
    except GuestFault as fault:
        return fault
    return retire(machine, regs.rip + len(FORCED_CPUID))
