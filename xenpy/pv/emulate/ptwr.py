"""Stores to page tables that the guest may only read: the instruction is done for it, entry by entry.

Linux writes its own last-level page tables as if they were plain memory, with whatever the compiler or its atomics emit. The store
faults, and what it would have written goes the way of an mmu_update instead. As in Xen a store must lie within one entry; push, call
and vector stores are not emulated.

Ref: xen/include/public/xen.h, VMASST_TYPE_writable_pagetables; AMD64 Architecture Programmer's Manual (APM), volume 3, chapter 3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy.errors import XenError
from xenpy.pv.emulate import arithmetic
from xenpy.pv.emulate.decode import (
    TWO_BYTE,
    Instruction,
    decode,
    get_register,
    linear,
    memory_gva,
    with_register,
)
from xenpy.pv.emulate.machine import MAX_INSTRUCTION, WORD_MASK, GuestFault, Machine, Outcome, Rflags, load, retire

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.emulate.arithmetic import Operation
    from xenpy.pv.emulate.machine import Registers

ENTRY_SIZE: Final = 8
_PAGE_SHIFT: Final = 12
_MAX_REPETITIONS: Final = 512
"""Elements of a rep stos or rep movs done at once: a page of entries. The guest faults again for more."""
_MAX_ATTEMPTS: Final = 16
"""Tries to change an entry that processors keep changing; then the guest, not we, must try again."""


@dataclass(frozen=True, slots=True)
class Effect:
    """What a store leaves: the `new` content of its memory, RFLAGS, and 64-bit registers by name."""

    new: int
    rflags: int
    registers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Store:
    """One store of `size` bytes at `gva`, or one repetition of a string instruction.

    `effect` takes what the memory holds, or for movs what is at `source_gva`. RIP then becomes `next_rip`, which is that of the
    instruction itself while repetitions are left.
    """

    gva: int
    size: int
    effect: Callable[[int], Effect]
    next_rip: int
    source_gva: int | None = None


@dataclass(frozen=True, slots=True)
class _Site:
    """An instruction with a memory operand, where it stands."""

    instruction: Instruction
    regs: Registers
    fs_base: int
    gs_base: int

    @property
    def next_rip(self) -> int:
        return self.regs.rip + self.instruction.length & WORD_MASK

    def operand_gva(self) -> int | None:
        """Return where the memory operand is, or None if it is a register."""
        memory = self.instruction.memory
        if memory is None:
            return None
        return memory_gva(self.instruction, memory, self.regs, self.fs_base, self.gs_base)

    def register(self, number: int, size: int) -> int:
        return get_register(self.regs, number, size, has_rex=self.instruction.has_rex)

    def with_register(self, number: int, size: int, value: int) -> tuple[str, int]:
        return with_register(self.regs, number, size, value, has_rex=self.instruction.has_rex)

    def binary(self, operation: Operation, size: int, source: int, *, gva: int | None = None) -> Store | None:
        """Return a store of `operation`(what is there, `source`)."""
        gva = self.operand_gva() if gva is None else gva
        if gva is None:
            return None
        rflags = self.regs.rflags

        def effect(old: int) -> Effect:
            return Effect(*operation(old, source, 8 * size, rflags))

        return Store(gva, size, effect, self.next_rip)

    def immediate(self, size: int) -> int:
        return self.instruction.immediate & (1 << 8 * size) - 1


def _alu_register(site: _Site) -> Store | None:
    opcode, size = site.instruction.opcode, site.instruction.size
    return site.binary(arithmetic.ALU[opcode >> 3], size, site.register(site.instruction.reg, size))


def _alu_immediate(site: _Site) -> Store | None:
    number, size = site.instruction.reg & 7, site.instruction.size
    if number >= len(arithmetic.ALU):
        return None
    return site.binary(arithmetic.ALU[number], size, site.immediate(size))


def _mov_register(site: _Site) -> Store | None:
    size = site.instruction.size
    return site.binary(arithmetic.mov, size, site.register(site.instruction.reg, size))


def _mov_accumulator(site: _Site) -> Store | None:
    size = site.instruction.size
    return site.binary(arithmetic.mov, size, site.register(0, size))


def _mov_immediate(site: _Site) -> Store | None:
    size = site.instruction.size
    return site.binary(arithmetic.mov, size, site.immediate(size)) if site.instruction.reg & 7 == 0 else None


def _movnti(site: _Site) -> Store | None:
    size = site.instruction.word_size
    if size == 2 or site.instruction.repeat:
        return None
    return site.binary(arithmetic.mov, size, site.register(site.instruction.reg, size))


_UNARY: Final = {
    0xF6: {2: arithmetic.not_, 3: arithmetic.neg},
    0xFE: {0: arithmetic.inc, 1: arithmetic.dec},
}
"""Operations by the opcode's byte form and ModRM.reg."""


def _unary(site: _Site) -> Store | None:
    operation = _UNARY[site.instruction.opcode & ~1].get(site.instruction.reg & 7)
    return site.binary(operation, site.instruction.size, 0) if operation else None


_BIT_REGISTER: Final = {
    TWO_BYTE | 0xAB: arithmetic.bts,
    TWO_BYTE | 0xB3: arithmetic.btr,
    TWO_BYTE | 0xBB: arithmetic.btc,
}
_BIT_IMMEDIATE: Final = {5: arithmetic.bts, 6: arithmetic.btr, 7: arithmetic.btc}


def _bit_register(site: _Site) -> Store | None:
    """Return bts, btr or btc with the bit number in a register, which counts from the operand in both directions."""
    gva = site.operand_gva()
    if gva is None:
        return None
    instruction = site.instruction
    size = instruction.word_size
    bits = 8 * size
    number = site.register(instruction.reg, size)
    number -= (number >> bits - 1) << bits
    gva = gva + number // bits * size & WORD_MASK
    return site.binary(_BIT_REGISTER[instruction.opcode], size, number % bits, gva=gva)


def _bit_immediate(site: _Site) -> Store | None:
    operation = _BIT_IMMEDIATE.get(site.instruction.reg & 7)
    size = site.instruction.word_size
    return site.binary(operation, size, site.instruction.immediate % (8 * size)) if operation else None


def _exchange(site: _Site, operation: Operation) -> Store | None:
    """Return a store of `operation`(what is there, the register) that also loads the register with what was there."""
    gva, size = site.operand_gva(), site.instruction.size
    if gva is None:
        return None
    source = site.register(site.instruction.reg, size)
    rflags = site.regs.rflags

    def effect(old: int) -> Effect:
        new, flags = operation(old, source, 8 * size, rflags)
        return Effect(new, flags, (site.with_register(site.instruction.reg, size, old),))

    return Store(gva, size, effect, site.next_rip)


def _xchg(site: _Site) -> Store | None:
    return _exchange(site, arithmetic.mov)


def _xadd(site: _Site) -> Store | None:
    return _exchange(site, arithmetic.add)


def _cmpxchg(site: _Site) -> Store | None:
    gva, size = site.operand_gva(), site.instruction.size
    if gva is None:
        return None
    expected, replacement = site.register(0, size), site.register(site.instruction.reg, size)
    rflags = site.regs.rflags

    def effect(old: int) -> Effect:
        _, flags = arithmetic.sub(expected, old, 8 * size, rflags)
        if old == expected:
            return Effect(replacement, flags)
        return Effect(old, flags, (site.with_register(0, size, old),))

    return Store(gva, size, effect, site.next_rip)


def _cmpxchg8b(site: _Site) -> Store | None:
    gva, instruction = site.operand_gva(), site.instruction
    if gva is None or instruction.reg & 7 != 1 or instruction.word_size == 8:  # the last is cmpxchg16b: two entries
        return None
    regs, low = site.regs, (1 << 32) - 1
    expected = (regs.rdx & low) << 32 | regs.rax & low
    replacement = (regs.rcx & low) << 32 | regs.rbx & low
    rflags = regs.rflags

    def effect(old: int) -> Effect:
        if old == expected:
            return Effect(replacement, rflags | Rflags.ZF)
        return Effect(old, rflags & ~Rflags.ZF, (("rax", old & low), ("rdx", old >> 32)))

    return Store(gva, ENTRY_SIZE, effect, site.next_rip)


def _string(site: _Site) -> Store | None:
    """Return the next element of a stos or movs."""
    instruction, regs = site.instruction, site.regs
    size, width = instruction.size, instruction.address_size
    mask = (1 << 8 * width) - 1
    step = -size if regs.rflags & Rflags.DF else size
    moves = instruction.opcode < 0xAA
    advanced = [("rdi", regs.rdi + step & mask)]
    if moves:
        advanced.append(("rsi", regs.rsi + step & mask))
    next_rip = site.next_rip
    if instruction.repeat:
        left = (regs.rcx & mask) - 1
        if left < 0:
            return None
        advanced.append(("rcx", left))
        next_rip = regs.rip if left else next_rip
    value, rflags = site.register(0, size), regs.rflags

    def effect(source: int) -> Effect:
        return Effect(source if moves else value, rflags, tuple(advanced))

    source_gva = linear(instruction, regs.rsi, site.fs_base, site.gs_base) if moves else None
    return Store(regs.rdi & mask, size, effect, next_rip, source_gva)


_MOVES: Final[dict[int, Callable[[_Site], Store | None]]] = {
    0x88: _mov_register, 0x89: _mov_register,
    0xA2: _mov_accumulator, 0xA3: _mov_accumulator,
    0xC6: _mov_immediate, 0xC7: _mov_immediate,
    TWO_BYTE | 0xC3: _movnti,
    0xA4: _string, 0xA5: _string, 0xAA: _string, 0xAB: _string,
}  # fmt: skip
_READ_MODIFY_WRITE: Final[dict[int, Callable[[_Site], Store | None]]] = {
    **{number << 3 | width: _alu_register for number in range(len(arithmetic.ALU)) for width in (0, 1)},
    0x80: _alu_immediate, 0x81: _alu_immediate, 0x83: _alu_immediate,
    0x86: _xchg, 0x87: _xchg,
    0xF6: _unary, 0xF7: _unary, 0xFE: _unary, 0xFF: _unary,
    **dict.fromkeys(_BIT_REGISTER, _bit_register),
    TWO_BYTE | 0xBA: _bit_immediate,
    TWO_BYTE | 0xB0: _cmpxchg, TWO_BYTE | 0xB1: _cmpxchg,
    TWO_BYTE | 0xC0: _xadd, TWO_BYTE | 0xC1: _xadd,
    TWO_BYTE | 0xC7: _cmpxchg8b,
}  # fmt: skip
"""These may have a LOCK prefix; others with one are invalid."""


def decode_store(regs: Registers, code: bytes, fault_gva: int, *, fs_base: int = 0, gs_base: int = 0) -> Store | None:
    """Return the store that the 64-bit instruction at the start of `code` makes.

    None if it makes none that is emulated, or one that is not naturally aligned within the page of `fault_gva`.
    """
    instruction = decode(code)
    if instruction is None:
        return None
    build = _READ_MODIFY_WRITE.get(instruction.opcode)
    if build is None and not instruction.lock:
        build = _MOVES.get(instruction.opcode)
    if build is None:
        return None
    store = build(_Site(instruction, regs, fs_base, gs_base))
    if store is None or (store.gva ^ fault_gva) >> _PAGE_SHIFT or store.gva % store.size:
        return None
    return store


def _perform(machine: Machine, store: Store, update: Callable[[int, int, int], bool]) -> bool:
    """Do one store; tell whether it could be done before other processors changed the entry too often."""
    entry_gva = store.gva & -ENTRY_SIZE
    shift = (store.gva - entry_gva) * 8
    mask = (1 << 8 * store.size) - 1
    source = None if store.source_gva is None else load(machine, store.source_gva, store.size)
    for _ in range(_MAX_ATTEMPTS):
        entry = load(machine, entry_gva, ENTRY_SIZE)
        effect = store.effect(entry >> shift & mask if source is None else source)
        new = entry & ~(mask << shift) | effect.new << shift
        if new == entry or update(entry_gva, entry, new):
            machine.regs.rflags = effect.rflags
            for name, value in effect.registers:
                setattr(machine.regs, name, value)
            return True
    return False


def emulate_store(machine: Machine, fault_gva: int, update: Callable[[int, int, int], bool]) -> Outcome | GuestFault:
    """Do the store by which the guest kernel met a read-only page table at `fault_gva`.

    `update(entry_gva, old, new)` puts `new` in the 8-byte entry at `entry_gva` if it still holds `old`, and tells whether it did; it
    raises XenError for an entry that the guest must not have, and then the page fault is the guest's.
    """
    regs = machine.regs
    start = regs.rip
    outcome: Outcome | GuestFault = Outcome.UNHANDLEABLE
    code = machine.read_code(start, MAX_INSTRUCTION) if machine.in_kernel and machine.long_mode else b""
    for _ in range(_MAX_REPETITIONS):
        store = decode_store(regs, code, fault_gva, fs_base=machine.fs_base, gs_base=machine.gs_base)
        if store is None:
            break
        try:
            if not _perform(machine, store, update):
                return Outcome.DONE
        except XenError:
            break
        except GuestFault as fault:
            return fault
        outcome = retire(machine, store.next_rip)
        if outcome is not Outcome.DONE or regs.rip != start:
            break
    return outcome
