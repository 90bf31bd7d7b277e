"""The code that runs in the guest on our behalf.

Everything is addressed relative to RIP, so that the same pages serve every vCPU's window.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from xenpy.asm import Assembler, Mem, mem
from xenpy.asm.registers import al, cr3, eax, rax, rcx, rdi, rsi
from xenpy.memory import PAGE_SIZE
from xenpy.shim.layout import CODE_PAGES, Page, Port, State

STUB_SIZE: Final = 4
VECTORS: Final = 256


class Resume(NamedTuple):
    """Entries of ring 0 for going back to the guest, as offsets from the window's start. RSP points to IRETQ's frame."""

    plain: int
    """IRETQ."""
    cr3: int
    """Load State.NEW_CR3, then RAX from State.SAVED_RAX, IRETQ."""
    invlpg: int
    """Flush the translation of State.INVLPG, then likewise."""
    writes: int
    """Make the State.WRITE_COUNT entries (address, value) of the WRITES pages true, at least one; load RAX, RCX, RSI and RDI; IRETQ."""
    writes_cr3: int
    writes_invlpg: int
    flush: int
    """Make the entries true and call us at Port.FLUSHED; no frame is needed, RAX, RCX, RSI and RDI are lost."""


class Code(NamedTuple):
    """What goes into a window's code pages; offsets are from the window's start."""

    ring0: bytes
    kernel_entry: bytes
    user_entry: bytes
    exceptions: int
    """The first of 256 handlers, each of STUB_SIZE bytes: OUT to the port of the vector's number."""
    resume: Resume
    syscall: int
    syscall32: int
    sysenter: int


def assemble(window: int) -> Code:
    """Return the code for the window at an address; it runs as well in every other."""
    ring0 = Assembler(window + Page.CODE * PAGE_SIZE)
    _exceptions(ring0)
    _resume(ring0, window)
    code = ring0.assemble()
    if len(code) > CODE_PAGES * PAGE_SIZE:
        raise ValueError(f"the shim's code has {len(code)} bytes")
    kernel, user = (_entry(window, port) for port in (Port.HYPERCALL, Port.SYSCALL))
    resume = Resume(*(ring0.address(f"resume_{name}") - window for name in Resume._fields))
    offsets = (user.address(name) - window for name in ("syscall", "syscall32", "sysenter"))
    return Code(code, kernel.assemble(), user.assemble(), ring0.address("exceptions") - window, resume, *offsets)


def _exceptions(a: Assembler) -> None:
    a.label("exceptions")
    for vector in range(VECTORS):
        a.out(vector, al)
        a.data(b"\xeb\xfc")  # jmp to the OUT: whoever enters the guest without having dealt with it is called again


def _resume(a: Assembler, window: int) -> None:
    def state(word: State) -> Mem:
        return mem(rip=window + Page.STATE * PAGE_SIZE + word * 8)

    def load_cr3() -> None:
        a.mov(rax, state(State.NEW_CR3))
        a.mov(cr3, rax)

    def invalidate() -> None:
        a.mov(rax, state(State.INVLPG))
        a.invlpg(mem(rax))

    def write_entries(name: str) -> None:
        a.lea(rsi, mem(rip=window + Page.WRITES * PAGE_SIZE))
        a.mov(rcx, state(State.WRITE_COUNT))
        a.label(name)
        a.mov(rdi, mem(rsi))
        a.mov(rax, mem(rsi, 8))
        a.mov(mem(rdi), rax)
        a.add(rsi, 16)
        a.dec(rcx)
        a.jnz(name)

    def leave(*, lists: bool) -> None:
        if lists:
            a.mov(rcx, state(State.SAVED_RCX))
            a.mov(rsi, state(State.SAVED_RSI))
            a.mov(rdi, state(State.SAVED_RDI))
        a.mov(rax, state(State.SAVED_RAX))
        a.iretq()

    a.align(16)
    a.label("resume_plain")
    a.iretq()
    a.label("resume_cr3")
    load_cr3()
    leave(lists=False)
    a.label("resume_invlpg")
    invalidate()
    leave(lists=False)
    a.label("resume_writes")
    write_entries("next")
    leave(lists=True)
    a.label("resume_writes_cr3")
    write_entries("next_cr3")
    load_cr3()
    leave(lists=True)
    a.label("resume_writes_invlpg")
    write_entries("next_invlpg")
    invalidate()
    leave(lists=True)
    a.label("resume_flush")
    write_entries("next_flush")
    a.out(Port.FLUSHED, al)
    a.ud2()


def _entry(window: int, port: Port) -> Assembler:
    """Return where SYSCALL and SYSENTER lead. The kernel's and the user's tables show the same offsets."""
    a = Assembler(window + Page.ENTRY * PAGE_SIZE)
    for name, call in (("syscall", port), ("syscall32", Port.SYSCALL32), ("sysenter", Port.SYSENTER)):
        a.align(16)
        a.label(name)
        a.out(call, eax)
        a.jmp(name)
    return a
