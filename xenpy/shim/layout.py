"""Where the shim is: its part of a PV guest's virtual space, and what lies in it.

Of the virtual space that a 64-bit PV guest leaves to Xen the shim uses one level-4 slot. A kernel's tables show in it the
machine-to-physical map, the frame table, one window for each vCPU and a map of all the guest's RAM; those of user mode show the windows
only, and of them no more than the processor needs to get out of user mode.

Ref: xen/include/public/arch-x86/xen-x86_64.h
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final

SLOTS: Final = tuple(range(257, 272))
"""The level-4 slots that may hold the shim, in the order in which they are tried. Slot 256 cannot be used in user mode on every host."""
SLOT_SHIFT: Final = 39

M2P_OFFSET: Final = 0
"""The machine-to-physical map: 64-bit words by mfn, read-only."""
FRAMES_OFFSET: Final = 1 << 29
"""The frame table: 64-bit words by mfn from the guest's first on. Ref: xenpy.pv.mmu.layout"""
WINDOWS_OFFSET: Final = 1 << 30
WINDOW_SIZE: Final = 1 << 21
DIRECT_OFFSET: Final = 1 << 31
"""The guest's RAM."""
DIRECT_SIZE: Final = (1 << SLOT_SHIFT) - DIRECT_OFFSET
FRAMES_MAX: Final = (WINDOWS_OFFSET - FRAMES_OFFSET) // 8
POOL_OFFSET: Final = FRAMES_OFFSET - (1 << 22)
"""The hypervisor's own frames: shared_info and the grant table."""
M2P_MAX: Final = (POOL_OFFSET - M2P_OFFSET) // 8


@unique
class Page(IntEnum):
    """Pages of a vCPU's window."""

    GDT = 0
    """Sixteen: 14 of the guest's choice, Xen's own descriptors, an empty one."""
    IDT = 16
    TSS = 17
    STACK = 18
    """Of ring 0."""
    STATE = 19
    """What the in-guest code and we share; see State."""
    ENTRY = 20
    """Where SYSCALL leads. A kernel's tables show other code here than those of user mode."""
    CODE = 21
    """Ring 0's."""
    WRITES = 24
    """Addresses of page table entries that we have written and shadow page tables have not noticed: in-guest code touches them."""
    KERNEL_TABLE = 40
    """The level-1 table by which kernels see this window."""
    USER_TABLE = 41
    """That by which user mode sees it."""
    USER_IDT = 42
    """What user mode's tables show as IDT."""
    CALLERS = 43
    """Of the first window only: (GS base of the kernel, address of `hypercall`, address of `iret`, 0) for each vCPU."""
    RECORDS = 44
    """RECORDS_PAGES: what in-guest code has done, see xenpy.shim.recording."""
    LDT = 48
    """Sixteen, of the guest's choice."""
    END = 64


CODE_PAGES: Final = 3
RECORDS_PAGES: Final = 4
DEBUG_STACK_SIZE: Final = 1024
"""How much of the STACK page is for #DB alone, where SYSCALL leads to ring 0: it may come before ring 0 has loaded a stack of its own."""
WRITES_MAX: Final = (Page.KERNEL_TABLE - Page.WRITES) * 4096 // 8


@unique
class State(IntEnum):
    """64-bit words of the STATE page, by number."""

    MODE = 0
    """0: kernel, 1: user."""
    KERNEL_CR3 = 1
    USER_CR3 = 2
    NEW_CR3 = 3
    SAVED_RAX = 4
    SAVED_RCX = 5
    SAVED_RSI = 6
    USER_SS = 7
    """A selector that is known to be one that SS of ring 3 may hold."""
    WRITE_COUNT = 8
    INVLPG = 9
    KERNEL_SP = 10
    KERNEL_SS = 11
    OTHER_GS = 12
    """The GS base of the mode that does not run."""
    RETURN = 13
    """Where a hypercall that has come to us goes on."""
    VCPU_INFO = 14
    """Where in-guest code finds the vcpu_info; 0 has it leave to us what needs it."""
    SLOW = 15
    """Not 0 while in-guest code is to leave IRET to us."""
    SYSCALL_HANDLER = 16
    SYSCALL_MASKS = 17
    """1 if system calls start with events masked."""
    FAULT_HANDLER = 18
    FAULT_MASKS = 19
    CR2 = 20
    SCRATCH = 21
    LOADED_CR3 = 22
    """What CR3 holds while the kernel runs, where in-guest code knows that it is not KERNEL_CR3; 0 where it does not."""
    BASE_BEFORE = 23
    """What KERNEL_CR3 was before its last change."""
    USER_FRAME = 24
    """Five: IRETQ's frame for user mode."""
    BASES_IN_TURN = 29
    """How often in a row KERNEL_CR3 has changed back to BASE_BEFORE."""
    RECORD = 30
    """Where in-guest code writes down next what it has done; 0 has it not do that."""
    RECORDS_END = 31
    """Where there is no room any more."""
    STUB_FRAME = 32
    """Five: IRETQ's frame for the in-guest code that calls the kernel's page fault handler."""
    USER_CS64 = 37
    """A selector that is known to be of 64-bit code: to others IRET goes by us."""
    DATA_SEGMENTS = 38
    """DS, and ES 16 bits higher, as a kernel that calls IRET for others than that has loaded them."""
    OWED = 39
    """A base whose last reference in-guest code holds no more, but leaves to us to give back, who then take the table apart; 0 for none."""
    STALE = 40
    """Not 0 if an entry, other than CLEARED_ENTRY, has changed since CR3 was loaded of which the processor may hold a translation."""
    CLEARED_ENTRY = 41
    """Where in-guest code sees the one entry that has been cleared since CR3 was loaded; 0 for none."""
    CLEARED_VALUE = 42
    """What it held: a translation that the processor may hold."""
    PRIVATE_TABLE = 43
    """A level-1 table, by where in-guest code sees it, that only the loaded base leads to, of the two that a kernel changes between."""
    LATE_PORT = 44
    """A port whose events may reach us late, so that in-guest code only notes them; 0 for none."""
    SENT = 45
    """Not 0 if the guest has sent an event from LATE_PORT."""
    TRAP_RAX = 46
    TRAP_CR2 = 47
    TRAP_STUBS = 48
    """Fifteen: IRETQ's frames for the in-guest code that emulates what faulted with #UD, #GP, #PF."""
    TRAP_VECTOR = 63
    """Of what is emulated, and in the words behind this the exception's frame and error code."""
    TRAP_RIP = 64
    TRAP_CS = 65
    TRAP_RFLAGS = 66
    TRAP_RSP = 67
    TRAP_SS = 68
    TRAP_ERROR = 69
    TRAP_OPERAND = 70
    """Where the register is saved that a store is of."""
    TRAP_OPCODE = 71
    PORTS_ALLOWED = 72
    """Not 0 if the kernel may access I/O ports."""
    PCI_ADDRESS = 73
    """Of the first window: what the domain has written to the register by which PCI is configured."""
    CPUID_COUNT = 74
    """How many answers of CPUID there are."""
    NO_LEAF = 75
    """From this leaf of CPUID on, for the number in the next word, there is none: all registers are 0."""
    NO_LEAF_COUNT = 76
    CPUID = 77
    """Three for each of CPUID_LEAVES: EAX, and ECX or ANY_SUBLEAF 32 bits higher, as asked; then EAX, EBX, ECX, EDX, two a word."""


CPUID_LEAVES: Final = 64
"""So many answers in-guest code can keep."""
ANY_SUBLEAF: Final = 0xFFFF_FFFF


class Selector(IntEnum):
    """Selectors in the page of the GDT that is Xen's. Ref: xen/include/public/arch-x86/xen-x86_64.h for those of ring 3"""

    RING0_CS = 0xE008
    RING0_SS = 0xE010
    RING3_CS32 = 0xE023
    RING3_SS = 0xE02B
    RING3_CS64 = 0xE033
    TSS = 0xE040
    LDT = 0xE050


GDT_GUEST_PAGES: Final = 14
"""Ref: xen/include/public/arch-x86/xen.h, FIRST_RESERVED_GDT_PAGE"""
GDT_LIMIT: Final = 16 * 4096 - 1
LDT_PAGES: Final = 16
IO_PORTS: Final = range(0xE0, 0xE8)
"""What ring 3 may write to, where the entry code runs in ring 3."""


@unique
class Port(IntEnum):
    """Ports by which in-guest code calls us: four from each of them are accessed, which ring 3 may where it calls us too."""

    TRAP = 0xE0
    """An exception that in-guest code has looked at and leaves to us."""
    HYPERCALL = 0xE1
    SYSCALL = 0xE2
    SYSCALL32 = 0xE3
    SYSENTER = 0xE4
    FLUSHED = 0xE5
    """All listed words have been touched."""


def slot_base(slot: int) -> int:
    """Return the first address of a level-4 slot of the upper half."""
    return slot << SLOT_SHIFT | 0xFFFF_0000_0000_0000
