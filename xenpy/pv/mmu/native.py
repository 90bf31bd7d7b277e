"""Loops over all entries of a table as machine code: Python takes a millisecond for what these do in microseconds.

They work on a copy of the table, which the guest cannot change meanwhile, and on the words of the frame table. At an entry that is not
as nearly all are, they stop and leave it to the caller, undecided and untouched: it is refused, or concerns a frame that is not the
guest's RAM, or its frame may become free.

Ref: `layout` for the word, `entries` for the bits of entries, System V ABI for AMD64, section 3.2 (rdi, rsi, rdx, rax)
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy import libc
from xenpy.abi._libc import ffi
from xenpy.asm import Assembler, mem
from xenpy.asm.registers import Reg, cl, eax, ecx, edx, esi, r8, r9, r10, r10d, r11, rax, rcx, rdi, rdx, rsi
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.entries import ENTRIES, GUEST_KERNEL, L1_DISALLOWED
from xenpy.pv.mmu.layout import (
    COUNT_MASK,
    ONE_REF,
    OWNED,
    REFS_FIELD,
    REFS_FULL,
    REFS_SHIFT,
    TYPE_MASK,
    TYPE_SHIFT,
    VALIDATED,
    FrameType,
)
from xenpy.pv.paging import PTE_FRAME, PTE_GLOBAL, PTE_PRESENT, PTE_RW, PTE_USER

if TYPE_CHECKING:
    from collections.abc import Callable

_WRITABLE: Final = FrameType.WRITABLE << TYPE_SHIFT
_KEPT_UNTYPED: Final = ~(TYPE_MASK | VALIDATED)
_OWNED_BIT: Final = OWNED.bit_length() - 1
_FULL_BIT: Final = REFS_FULL.bit_length() - 1
_KERNEL_BIT: Final = GUEST_KERNEL.bit_length() - 1
_FRAME_TOP: Final = 64 - PTE_FRAME.bit_length()
"""How far a frame's number is from the top of an entry, in bits."""

# The area that the routines get in rdi, in words: where the frame table is, its first mfn and length; how many words are in the list;
# the copy; the list, of a slot and its entry each.
_WORDS, _BASE, _COUNT, _LISTED, _COPY = range(5)
_LIST: Final = _COPY + ENTRIES
_AREA_WORDS: Final = _LIST + 2 * ENTRIES
_WORD: Final = 8

_copied: Final = mem(rdi, _COPY * _WORD, scale=(rsi, _WORD))


class _Routines(NamedTuple):
    """Each gets the area's address and the slot to start at, and returns where it stopped; `_one` get an entry, and return 1 or 0."""

    get: Callable[[int, int, int], int]
    """The third argument tells whether the first entry's reference is held already."""
    put: Callable[[int, int, int], int]
    """The third argument is the slot to stop at."""
    get_one: Callable[[int, int, int], int]
    put_one: Callable[[int, int, int], int]
    list_present: Callable[[int, int, int], int]


class NativeEntries:
    """Entries of page tables, one at a time or a copied table of them, and the words of the frames that they name.

    The words of the frames `base` to `base + count` are at `words_hva`. `entries` is the copy of a table, of 64-bit words.
    """

    def __init__(self, words_hva: int, base: int, count: int) -> None:
        self._area = ffi.new("uint64_t[]", _AREA_WORDS)
        self._hva = int(ffi.cast("uintptr_t", self._area))
        self._area[_WORDS] = words_hva
        self._area[_BASE] = base
        self._area[_COUNT] = count
        area = memoryview(ffi.buffer(self._area)).cast("B").cast("Q")
        self.entries = area[_COPY:_LIST]
        self._list = area[_LIST:]
        self._routines = _routines()
        self._get_one, self._put_one = self._routines.get_one, self._routines.put_one

    def get_one(self, entry: int) -> bool:
        """Take the reference that a present L1 entry holds; return False, having done nothing, where the caller has to decide."""
        return self._get_one(self._hva, entry, 0) == 1

    def put_one(self, entry: int) -> bool:
        """Give back the reference that a present L1 entry holds; return False, having done nothing, where the caller has to do it."""
        return self._put_one(self._hva, entry, 0) == 1

    def fill(self, table: memoryview) -> None:
        """Copy a table of 64-bit words, and forget what is listed."""
        self.entries[:] = table
        self._area[_LISTED] = 0

    def get(self, slot: int, *, held: bool) -> int:
        """Take the references that L1 entries hold and adjust the entries of the copy, from a slot on; list those that change.

        `held` says that the reference of the first is held already. Return the slot of the first entry that the caller has to decide on,
        or ENTRIES.
        """
        return self._routines.get(self._hva, slot, held)

    def put(self, slot: int, end: int) -> int:
        """Give back the references that L1 entries hold, from a slot on; return where the caller has to do it, or `end`."""
        return self._routines.put(self._hva, slot, end)

    def list_present(self) -> None:
        """List the entries that are present."""
        self._routines.list_present(self._hva, 0, 0)

    def listed(self) -> list[tuple[int, int]]:
        """Return the (slot, entry) pairs that have been listed since `fill`."""
        words = self._list[: self._area[_LISTED]].tolist()
        return list(zip(words[::2], words[1::2], strict=True))


@cache
def _routines() -> _Routines:
    a = Assembler()
    for routine in (_get, _put, _get_one, _put_one, _list_present):
        a.align(16)
        routine(a)
    code = libc.map_code("xenpy-tables", a.assemble())
    return _Routines(*(libc.native_function(code + a.address(name), "native_word_op") for name in _Routines._fields))


def _get(a: Assembler) -> None:
    """Take the references that entries hold and adjust the entries, from slot rsi on; list those that change."""
    a.label("get")
    a.mov(r11, ONE_REF)
    a.mov(rcx, _copied)
    a.test(rdx, rdx)
    a.jnz("get_adjust")
    a.label("get_slot")
    a.mov(rcx, _copied)
    a.test(cl, PTE_PRESENT)
    a.jz("get_next")
    _take(a, "get", "get_stop")

    a.label("get_adjust")
    a.mov(rdx, rcx)
    a.test(cl, PTE_USER)
    a.jnz("get_user")
    a.or_(rcx, PTE_USER)
    a.bts(rcx, _KERNEL_BIT)
    a.label("get_user")
    a.bt(rcx, _KERNEL_BIT)
    a.jc("get_kernel")
    a.or_(rcx, PTE_GLOBAL)
    a.label("get_kernel")
    a.cmp(rcx, rdx)
    a.je("get_next")
    a.mov(_copied, rcx)
    _append(a)
    a.label("get_next")
    a.inc(esi)
    a.cmp(esi, ENTRIES)
    a.jb("get_slot")
    a.label("get_stop")
    a.mov(rax, rsi)
    a.ret()


def _put(a: Assembler) -> None:
    """Give back the references that entries hold, from slot rsi to slot rdx."""
    a.label("put")
    a.mov(r8, rdx)
    a.mov(r11, ONE_REF)
    a.label("put_slot")
    a.cmp(rsi, r8)
    a.jae("put_stop")
    a.mov(rcx, _copied)
    a.test(cl, PTE_PRESENT)
    a.jz("put_next")
    _give(a, "put", "put_next", "put_stop")
    a.label("put_next")
    a.inc(rsi)
    a.jmp("put_slot")
    a.label("put_stop")
    a.mov(rax, rsi)
    a.ret()


def _get_one(a: Assembler) -> None:
    """Take the reference that the entry rsi holds; return whether that could be done."""
    a.label("get_one")
    a.mov(rcx, rsi)
    a.mov(r11, ONE_REF)
    _take(a, "get_one", "get_one_refused")
    a.mov(eax, 1)
    a.ret()
    a.label("get_one_refused")
    a.xor(eax, eax)
    a.ret()


def _put_one(a: Assembler) -> None:
    """Give back the reference that the entry rsi holds; return whether that could be done."""
    a.label("put_one")
    a.mov(rcx, rsi)
    a.mov(r11, ONE_REF)
    _give(a, "put_one", "put_one_done", "put_one_refused")
    a.label("put_one_done")
    a.mov(eax, 1)
    a.ret()
    a.label("put_one_refused")
    a.xor(eax, eax)
    a.ret()


def _list_present(a: Assembler) -> None:
    """List the entries that are present, from slot rsi on."""
    a.label("list_present")
    a.mov(rcx, _copied)
    a.test(cl, PTE_PRESENT)
    a.jz("list_next")
    _append(a)
    a.label("list_next")
    a.inc(esi)
    a.cmp(esi, ENTRIES)
    a.jb("list_present")
    a.ret()


def _take(a: Assembler, name: str, refused: str) -> None:
    """Take the reference that the present entry rcx holds; rax, rdx, r9 and r10 are lost, r11 is ONE_REF."""
    a.test(ecx, L1_DISALLOWED)
    a.jnz(refused)
    _find_word(a, refused)
    a.label(f"{name}_retry")
    a.bt(rax, _OWNED_BIT)
    a.jnc(refused)
    a.bt(rax, _FULL_BIT)
    a.jc(refused)
    a.lea(rdx, mem(rax, scale=(r11, 1)))
    a.test(cl, PTE_RW)
    a.jz(f"{name}_exchange")
    a.inc(rdx)
    a.mov(r10d, eax)
    a.and_(r10d, TYPE_MASK)
    a.cmp(r10d, _WRITABLE)
    a.je(f"{name}_exchange")
    a.test(eax, COUNT_MASK)
    a.jnz(refused)
    a.mov(r10, _KEPT_UNTYPED)
    a.and_(rdx, r10)
    a.or_(rdx, _WRITABLE)
    a.label(f"{name}_exchange")
    a.lock.cmpxchg(mem(r9), rdx)
    a.jnz(f"{name}_retry")


def _give(a: Assembler, name: str, elsewhere: str, refused: str) -> None:
    """Give back the reference that the present entry rcx holds, likewise."""
    _find_word(a, elsewhere)
    a.label(f"{name}_retry")
    a.mov(rdx, rax)
    a.test(cl, PTE_RW)
    a.jnz(f"{name}_writable")
    _refs(a, rax)
    a.and_(edx, COUNT_MASK)
    a.cmp(r10d, edx)
    a.jbe(refused)  # none but those of the frame's type are held
    a.mov(rdx, rax)
    a.sub(rdx, r11)
    a.jmp(f"{name}_check")
    a.label(f"{name}_writable")
    a.mov(r10d, eax)
    a.and_(r10d, TYPE_MASK)
    a.cmp(r10d, _WRITABLE)
    a.jne(refused)
    a.test(eax, COUNT_MASK)
    a.jz(refused)
    a.sub(rdx, r11)
    a.dec(rdx)
    a.test(edx, COUNT_MASK)
    a.jnz(f"{name}_check")
    a.mov(r10, _KEPT_UNTYPED)
    a.and_(rdx, r10)
    a.label(f"{name}_check")
    a.bt(rdx, _OWNED_BIT)
    a.jc(f"{name}_exchange")
    _refs(a, rdx)
    a.test(r10d, r10d)
    a.jz(refused)  # the frame would be free
    a.label(f"{name}_exchange")
    a.lock.cmpxchg(mem(r9), rdx)
    a.jnz(f"{name}_retry")


def _find_word(a: Assembler, elsewhere: str) -> None:
    """Load r9 with the address of the word of entry rcx's frame and rax with the word; jump if the frame is not the guest's RAM."""
    a.mov(r9, rcx)
    a.shl(r9, _FRAME_TOP)
    a.shr(r9, _FRAME_TOP + PAGE_SHIFT)
    a.sub(r9, mem(rdi, _BASE * _WORD))
    a.cmp(r9, mem(rdi, _COUNT * _WORD))
    a.jae(elsewhere)
    a.shl(r9, 3)
    a.add(r9, mem(rdi, _WORDS * _WORD))
    a.mov(rax, mem(r9))


def _refs(a: Assembler, word: Reg) -> None:
    """Load r10d with the references that a word counts."""
    a.mov(r10, word)
    a.shr(r10, REFS_SHIFT)
    a.and_(r10d, REFS_FIELD)


def _append(a: Assembler) -> None:
    """Append slot rsi with entry rcx to the list."""
    a.mov(rax, mem(rdi, _LISTED * _WORD))
    a.mov(mem(rdi, _LIST * _WORD, scale=(rax, _WORD)), rsi)
    a.mov(mem(rdi, (_LIST + 1) * _WORD, scale=(rax, _WORD)), rcx)
    a.add(mem(rdi, _LISTED * _WORD), 2, size=_WORD)
