"""What emulation sees of a PV vCPU, and how it ends."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, Protocol

from xenpy.errors import XenError

WORD_MASK: Final = (1 << 64) - 1
_PAGE_SIZE: Final = 4096
MAX_INSTRUCTION: Final = 15
"""Bytes of the longest instruction. Ref: AMD64 Architecture Programmer's Manual (APM), volume 3, 1.1"""


class Vector(IntEnum):
    """Exceptions that emulation raises, of instructions or of IRET. Ref: APM, volume 2, 8.2"""

    DB = 1
    UD = 6
    NP = 11
    SS = 12
    GP = 13
    PF = 14


class Rflags:
    """Bits of RFLAGS, as plain numbers: an IntFlag costs a microsecond an operation. Ref: APM, volume 2, 3.1.6"""

    CF: Final = 1 << 0
    PF: Final = 1 << 2
    AF: Final = 1 << 4
    ZF: Final = 1 << 6
    SF: Final = 1 << 7
    TF: Final = 1 << 8
    DF: Final = 1 << 10
    OF: Final = 1 << 11
    RF: Final = 1 << 16


PF_WRITE: Final = 1 << 1
PF_USER: Final = 1 << 2
_DR6: Final = 6
_DR6_BS: Final = 1 << 14


class GuestFault(Exception):
    """An exception for the guest: its vector, its error code if the vector has one, and CR2 for a page fault."""

    def __init__(self, vector: int, error_code: int = 0, cr2: int = 0) -> None:
        super().__init__(vector, error_code, cr2)
        self.vector = vector
        self.error_code = error_code
        self.cr2 = cr2


class Outcome(Enum):
    """How emulation ended, unless with a GuestFault."""

    DONE = "done"
    """RIP is where the guest goes on: behind the instruction, or still at it while repetitions of it are left."""
    UNHANDLEABLE = "unhandleable"
    """Nothing has happened: this is not an instruction that Xen emulates, so the exception that brought it here is the guest's."""


class Registers(Protocol):
    """The general registers, as unsigned 64-bit numbers; `struct kvm_regs` is one."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int


class Machine(Protocol):
    """A vCPU in ring 3, with the state that Xen keeps for it. Hooks raise GuestFault for what the guest must not do."""

    @property
    def regs(self) -> Registers:
        """Return the live registers; emulation changes them only when an instruction, or a repetition of it, is complete."""

    @property
    def in_kernel(self) -> bool:
        """Tell whether the guest kernel runs, not its user mode."""

    @property
    def long_mode(self) -> bool:
        """Tell whether CS is a 64-bit segment, not a flat 32-bit one."""

    @property
    def fs_base(self) -> int:
        """Return the base of FS now in force."""

    @property
    def gs_base(self) -> int:
        """Return the base of GS now in force."""

    @property
    def iopl(self) -> int:
        """Return the virtual IOPL, 0 to 3."""

    @property
    def architectural_iopl(self) -> bool:
        """Tell whether the guest turned on VMASST_TYPE_architectural_iopl."""

    def bitmap_permits(self, port: int, size: int) -> bool:
        """Tell whether the bitmap of PHYSDEVOP_set_iobitmap permits `size` ports from `port` on."""

    def read_code(self, gva: int, size: int) -> bytes:
        """Return up to `size` bytes of code at `gva`, fewer in front of a page that cannot be read."""

    def read(self, gva: int, size: int) -> bytes:
        """Return memory as the guest's current mode reads it. Raises XenError(EFAULT)."""

    def write(self, gva: int, data: bytes) -> None:
        """Write memory as the guest's current mode may. Raises XenError(EFAULT)."""

    def read_cr(self, index: int) -> int:
        """Return CR0, CR2, CR3 or CR4 in the guest's view."""

    def write_cr(self, index: int, value: int) -> None:
        """Set CR0, CR2, CR3 or CR4; of CR0 only TS is the guest's."""

    def read_dr(self, index: int) -> int:
        """Return DR0 to DR3, DR6 or DR7."""

    def write_dr(self, index: int, value: int) -> None:
        """Set DR0 to DR3, DR6 or DR7."""

    def rdmsr(self, index: int) -> int:
        """Return an MSR; see `xenpy.pv.emulate.msr`."""

    def wrmsr(self, index: int, value: int) -> None:
        """Set an MSR; see `xenpy.pv.emulate.msr`."""

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Return eax, ebx, ecx and edx of a CPUID leaf."""

    def xsetbv(self, index: int, value: int) -> None:
        """Set an extended control register."""

    def rdtsc(self) -> int:
        """Return the guest's time-stamp counter."""

    def port_in(self, port: int, size: int) -> int:
        """Return what 1, 2 or 4 bytes of ports read as; see `xenpy.pv.emulate.ports`."""

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of ports."""


def retire(machine: Machine, rip: int) -> Outcome | GuestFault:
    """Go on at `rip` after an instruction or a repetition of one; return #DB if the guest steps through its code.

    A trap, unlike a fault, finds RIP behind the instruction and BS set in DR6.

    Ref: APM, volume 2, 13.1.4
    """
    regs = machine.regs
    regs.rip = rip & (WORD_MASK if machine.long_mode else 0xFFFF_FFFF)
    regs.rflags &= ~Rflags.RF
    if not regs.rflags & Rflags.TF:
        return Outcome.DONE
    machine.write_dr(_DR6, machine.read_dr(_DR6) | _DR6_BS)
    return GuestFault(Vector.DB)


def _pieces(gva: int, size: int) -> list[tuple[int, int]]:
    """Return the (offset, size) pieces of an access of up to a page that lie in one page each."""
    first = min(size, _PAGE_SIZE - gva % _PAGE_SIZE)
    return [(0, first), (first, size - first)] if first < size else [(0, size)]


def _page_fault(machine: Machine, gva: int, *, write: bool) -> GuestFault:
    code = (PF_WRITE if write else 0) | (0 if machine.in_kernel else PF_USER)
    return GuestFault(Vector.PF, code, gva)


def load(machine: Machine, gva: int, size: int) -> int:
    """Return an operand of 1 to 8 bytes. Raises GuestFault(#PF) with the first address that cannot be read."""
    data = b""
    for offset, length in _pieces(gva, size):
        piece = gva + offset & WORD_MASK
        try:
            data += machine.read(piece, length)
        except XenError as error:
            raise _page_fault(machine, piece, write=False) from error
    return int.from_bytes(data, "little")


def store(machine: Machine, gva: int, size: int, value: int) -> None:
    """Write an operand of 1 to 8 bytes. Raises GuestFault(#PF) with the first address that cannot be written."""
    data = value.to_bytes(size, "little")
    for offset, length in _pieces(gva, size):
        piece = gva + offset & WORD_MASK
        try:
            machine.write(piece, data[offset : offset + length])
        except XenError as error:
            raise _page_fault(machine, piece, write=True) from error
