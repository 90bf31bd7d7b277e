"""The code that runs in the guest on our behalf.

Everything is addressed relative to RIP, so that the same pages serve every vCPU's window.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from xenpy.asm import Assembler, Mem, mem
from xenpy.asm.registers import al, cr3, eax, r11, rax, rcx, rsi
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
    """Touch the State.WRITE_COUNT words, at least one, whose addresses are in the WRITES pages; load RAX, RCX and RSI; IRETQ."""
    writes_cr3: int
    writes_invlpg: int
    flush: int
    """Touch the words and call us at Port.FLUSHED; no frame is needed, RAX, RCX and RSI are lost."""


class Guest(NamedTuple):
    """What the code must know of its guest. Addresses are in the guest's virtual space unless they say gpa."""

    window_va: int
    state_va: int
    user_trap_va: int
    frames_va: int
    direct_va: int
    base_mfn: int
    nr_pages: int
    ram_start: int
    """gpa"""
    ram_end: int
    """gpa"""
    vcpus: int
    version: int
    """What XENVER_version answers."""
    ring3: bool
    """Whether SYSCALL leads to ring 3."""


class Fast(NamedTuple):
    """Labels of the code that works by itself in ring 3, as offsets from the window's start."""

    syscall_from_kernel: int
    keep_return: int
    """Where SYSCALL's return address is put on the stack, which may be none."""
    hypercall: int
    give_up: int
    hypercall_end: int
    iret: int
    iret_by_us: int
    iret_end: int
    iret_user: int
    user_fault: int
    bp_kernel: int
    bp_user: int
    pf_user: int
    from_call: int
    from_iret: int
    trap_entered: int
    trap_by_us: int
    trap_end: int
    traps: dict[int, tuple[int, int]]
    """The handlers of a kernel's exceptions that are emulated in the guest, and where each goes on in ring 3, by vectors."""


class Recovery(NamedTuple):
    """A stretch of code that accesses memory of the guest's: from `first` on, before `end`; where to go on when an access has faulted."""

    first: int
    end: int
    there: int


class Fast0(NamedTuple):
    """The code that works by itself in ring 0, in offsets from the window's start."""

    syscall_from_kernel: int
    syscall_from_user: int
    pf_kernel: int
    pf_user: int
    recoveries: tuple[Recovery, ...]
    iretqs: frozenset[int]
    """The IRETQ instructions that go where the guest wants to."""

    def recovery(self, offset: int) -> int | None:
        """Return where to go on when an instruction at `offset` has faulted at memory of the guest's; None if it has no business there."""
        return next((stretch.there for stretch in self.recoveries if stretch.first <= offset < stretch.end), None)


class Code(NamedTuple):
    """What goes into a window's code pages; offsets are from the window's start."""

    ring0: bytes
    kernel_entry: bytes
    user_entry: bytes
    exceptions: int
    """The first of 256 handlers, each of STUB_SIZE bytes: OUT to the port of the vector's number."""
    resume: Resume
    fast: Fast | None
    """None where SYSCALL leads to ring 0, or nothing fast is wanted."""
    fast0: Fast0 | None
    """None where SYSCALL leads to ring 3, or nothing fast is wanted."""
    syscall: int
    syscall32: int
    sysenter: int


@lru_cache(maxsize=8)
def assemble(guest: Guest, *, fast: bool) -> Code:
    """Return the code for a guest's first window; it runs as well in every other."""
    window = guest.window_va
    a = Assembler(window + Page.CODE * PAGE_SIZE)
    _exceptions(a)
    _resume(a, window)
    labels, labels0 = None, None
    if fast and guest.ring3:
        _emit_fast(a, guest)
    elif fast:
        labels0 = _emit_ring0(a, guest)
    code = a.assemble()
    if len(code) > CODE_PAGES * PAGE_SIZE:
        raise ValueError(f"the shim's code has {len(code)} bytes")
    if fast and guest.ring3:
        labels = _fast(a, guest)
    own = labels or labels0
    kernel = _entry(window, Port.HYPERCALL, own.syscall_from_kernel if own else None)
    user = _entry(window, Port.SYSCALL, labels0.syscall_from_user if labels0 else None, traps=labels is not None)
    resume = Resume(*(a.address(f"resume_{name}") - window for name in Resume._fields))
    offsets = (user.address(name) - window for name in ("syscall", "syscall32", "sysenter"))
    exceptions = a.address("exceptions") - window
    return Code(code, kernel.assemble(), user.assemble(), exceptions, resume, labels, labels0, *offsets)


def _fast(a: Assembler, guest: Guest) -> Fast:
    from xenpy.shim.traps import NAMES, vectors

    def offset(label: str) -> int:
        return a.address(label) - guest.window_va

    traps = {v: (offset(f"{NAMES[v]}_kernel"), offset(f"trap_{NAMES[v]}")) for v in vectors(guest.vcpus)}
    return Fast._make([*map(offset, Fast._fields[:-1]), traps])


def _emit_ring0(a: Assembler, guest: Guest) -> Fast0:
    from xenpy.shim.ring0 import IRETQS, RECOVERIES, Ring0

    Ring0(a, guest, a.address("exceptions") + _PF * STUB_SIZE).emit()

    def offset(label: str) -> int:
        return a.address(label) - guest.window_va

    recoveries = tuple(Recovery(*map(offset, labels)) for labels in RECOVERIES)
    kernel, user = offset("syscall_from_kernel"), offset("syscall_from_user")
    return Fast0(kernel, user, offset("pf_kernel"), offset("pf_user"), recoveries, frozenset(map(offset, IRETQS)))


def _emit_fast(a: Assembler, guest: Guest) -> None:
    from xenpy.shim.fast import FastCalls
    from xenpy.shim.modes import Modes
    from xenpy.shim.traps import Traps

    modes = Modes(a, guest)
    a.align(16)
    a.label("syscall_from_kernel")
    a.cmp(eax, _IRET)
    a.jz("iret")
    a.label("keep_return")
    a.push(rcx)  # where SYSCALL goes on: as if it were a call
    FastCalls(a, guest).emit()
    a.label("hypercall_end")
    modes.emit_ring3()
    modes.emit_ring0()
    traps = Traps(a, guest)
    traps.emit_ring3()
    traps.emit_ring0(a.address("exceptions"), STUB_SIZE)
    for label, column, target in (("from_call", 8, "hypercall"), ("from_iret", 16, "iret")):
        a.align(16)
        a.label(label)
        if guest.vcpus == 1:
            a.jmp(target)
            continue
        callers = guest.window_va + Page.CALLERS * PAGE_SIZE
        a.push(rax)
        a.rdgsbase(rax)
        for vcpu_id in range(guest.vcpus):
            a.cmp(rax, mem(rip=callers + vcpu_id * _CALLER_SIZE))
            a.jnz(f"{label}_not_{vcpu_id}")
            a.pop(rax)
            a.jmp(mem(rip=callers + vcpu_id * _CALLER_SIZE + column))
            a.label(f"{label}_not_{vcpu_id}")
        a.pop(rax)
        if target == "iret":
            a.mov(eax, _IRET)
            a.syscall()
        else:
            a.push(rcx)
            a.push(r11)
            a.syscall()
            a.pop(r11)
            a.pop(rcx)
            a.ret()


_IRET: Final = 23
_PF: Final = 14
_CALLER_SIZE: Final = 32


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
        a.mov(rax, mem(rsi))
        # Not the value that was written: another processor may have changed the entry since.
        a.lock.or_(mem(rax), 0, size=4)
        a.add(rsi, 8)
        a.dec(rcx)
        a.jnz(name)

    def leave(*, lists: bool) -> None:
        if lists:
            a.mov(rcx, state(State.SAVED_RCX))
            a.mov(rsi, state(State.SAVED_RSI))
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


def _entry(window: int, port: Port, fast: int | None, *, traps: bool = False) -> Assembler:
    """Return where SYSCALL and SYSENTER lead. The kernel's and the user's tables show the same offsets.

    `fast` is the offset of the code that SYSCALL goes on with; `traps` has user mode's come to ring 0.
    """
    a = Assembler(window + Page.ENTRY * PAGE_SIZE)
    for name, call in (("syscall", port), ("syscall32", Port.SYSCALL32), ("sysenter", Port.SYSENTER)):
        a.align(16)
        a.label(name)
        if name == "syscall" and traps:
            a.int3()
        elif name == "syscall" and fast is not None:
            a.jmp(window + fast)
        a.label(f"call_{name}")
        a.out(call, eax)
        a.jmp(f"call_{name}")
    return a
