"""The frame table: references and types of a PV guest's frames, one atomic word each, and the entries of L1 tables.

Ref: `layout` for the word
"""

from __future__ import annotations

from time import monotonic, sleep
from typing import TYPE_CHECKING, Final

from xenpy.abi._libc import ffi
from xenpy.atomics import clear_bit, cmpxchg64, set_bit
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.entries import ENTRIES, INVALID_MFN, L1_DISALLOWED, frame_of
from xenpy.pv.mmu.layout import (
    COUNT_MASK,
    LOCKED,
    LOCKED_BIT,
    ONE_REF,
    ONE_TYPED,
    OWNED,
    REFS_FULL,
    TYPE_MASK,
    TYPE_SHIFT,
    VALIDATED,
    FrameType,
    refs_of,
)
from xenpy.pv.mmu.native import NativeEntries
from xenpy.pv.mmu.protocols import Mappable
from xenpy.pv.paging import PTE_RW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenpy.memory import GuestMemory
    from xenpy.pv.mmu.protocols import Store

_WRITABLE: Final = int(FrameType.WRITABLE) << TYPE_SHIFT
_AVAILABLE: Final = OWNED | REFS_FULL
_WORDS_SHIFT: Final = PAGE_SHIFT - 3


_ALL_BITS: Final = (1 << 64) - 1
_PATIENCE_S: Final = 20
"""So long does nobody hold a frame, on however busy a host."""


def _ignore(_mfn: int) -> None:
    """Do nothing with a frame that has become free, or is stuck."""


class FrameTable:
    """References and types of the frames `base` to `base + len(words)`.

    `words` holds 64-bit words; `mappable` speaks for all other frames, which are never counted nor typed. `on_free` hears of a frame
    that the guest gave up earlier and whose last reference has now gone. `mismatches` counts references that were given back but not
    held: only a guest that writes through stale translations gets there.
    """

    def __init__(
        self,
        memory: GuestMemory,
        words: memoryview,
        base: int,
        store: Store,
        mappable: Callable[[int], int],
    ) -> None:
        self.memory = memory
        self.words = words[:]
        self.base = base
        self.end = base + len(words)
        self.store = store
        self.mappable = mappable
        self.on_free: Callable[[int], None] = _ignore
        self.on_stuck: Callable[[int], None] = _ignore
        self.mismatches = 0
        with ffi.from_buffer(words) as array:  # `words` itself keeps the memory where it is
            first_hva = int(ffi.cast("uintptr_t", array))
        self._hva = first_hva - base * 8
        self._native = NativeEntries(first_hva, base, len(words))

    # -- words --------------------------------------------------------------------------------------------------------

    def word(self, mfn: int) -> int:
        """Return the word of a frame, 0 for one that is not RAM of this guest."""
        return int(self.words[mfn - self.base]) if self.base <= mfn < self.end else 0

    def exchange(self, mfn: int, old: int, new: int) -> bool:
        """Replace the word of a frame if it still is `old`."""
        return cmpxchg64(self._hva + mfn * 8, old, new) == old

    def change(self, mfn: int, *, set_: int = 0, clear: int = 0) -> int:
        """Set and clear bits of the word of a frame at once; return what it was."""
        while True:
            word = self.word(mfn)
            if self.exchange(mfn, word, word & ~clear | set_):
                return word

    def lock(self, mfn: int) -> None:
        """Take the LOCKED bit of a frame."""
        while set_bit(self._hva + mfn * 8, LOCKED_BIT):
            self.await_unlocked(mfn)

    def unlock(self, mfn: int) -> None:
        """Release the LOCKED bit of a frame."""
        clear_bit(self._hva + mfn * 8, LOCKED_BIT)

    def await_unlocked(self, mfn: int) -> bool:
        """Tell whether a frame was LOCKED, after waiting until it is not.

        In-guest code holds one for less than a microsecond of its vCPU's time. A kernel that can write to the words could lock one for
        ever, which `on_stuck` hears of.
        """
        if not self.word(mfn) & LOCKED:
            return False
        deadline = monotonic() + _PATIENCE_S
        while self.word(mfn) & LOCKED:
            sleep(0)
            if monotonic() > deadline:
                self.on_stuck(mfn)
                self.unlock(mfn)
        return True

    # -- references ---------------------------------------------------------------------------------------------------

    def get(self, mfn: int) -> bool:
        """Take a reference to a frame of the guest's; tell whether there is such a frame and it has one left."""
        if not self.base <= mfn < self.end:
            return False
        while True:
            word = self.words[mfn - self.base]
            if word & _AVAILABLE != OWNED:
                return False
            if self.exchange(mfn, word, word + ONE_REF):
                return True

    def put(self, mfn: int) -> None:
        """Give back a reference."""
        while True:
            word = self.words[mfn - self.base]
            if refs_of(word) <= word & COUNT_MASK:
                self.mismatches += 1
                return
            if self.exchange(mfn, word, word - ONE_REF):
                self._freed(mfn, word - ONE_REF)
                return

    def get_writable(self, mfn: int) -> bool:
        """Take a reference to a frame of the guest's as writable memory; tell whether it may be that now."""
        if not self.base <= mfn < self.end:
            return False
        while True:
            word = self.words[mfn - self.base]
            if word & _AVAILABLE != OWNED:
                return False
            new = word + ONE_TYPED
            if word & TYPE_MASK != _WRITABLE:
                if word & COUNT_MASK:
                    return False
                new = new & ~(TYPE_MASK | VALIDATED) | _WRITABLE
            if self.exchange(mfn, word, new):
                return True

    def put_writable(self, mfn: int) -> None:
        """Give back a reference to a frame as writable memory."""
        while True:
            word = self.words[mfn - self.base]
            if word & TYPE_MASK != _WRITABLE or not word & COUNT_MASK:
                self.mismatches += 1
                return
            if self.drop_typed(mfn, word):
                return

    def drop_typed(self, mfn: int, word: int) -> bool:
        """Take one use as its type off the word of a frame if it still is `word`; the last one leaves it without type."""
        new = (
            word - ONE_TYPED & _ALL_BITS
        )  # a word that the guest has written may say that it has fewer references than uses
        if not new & COUNT_MASK:
            new &= ~(TYPE_MASK | VALIDATED)
        if not self.exchange(mfn, word, new):
            return False
        self._freed(mfn, new)
        return True

    def _freed(self, mfn: int, word: int) -> None:
        if not word & OWNED and not refs_of(word):
            self.on_free(mfn)

    # -- L1 entries ---------------------------------------------------------------------------------------------------

    def get_l1_entry(self, entry: int, *, io: bool = False) -> None:
        """Take the references that a present L1 entry holds; `io` says that it should map I/O space.

        Raises XenError: EINVAL for bits that are not allowed, EBUSY for a frame that cannot be mapped so, EPERM for one that is not the
        guest's.
        """
        if io or not self._native.get_one(entry):
            self.get_unusual(entry, io=io)

    def get_unusual(self, entry: int, *, io: bool = False) -> None:
        """Do what `get_l1_entry` does without machine code, which leaves to us what it does not know."""
        if entry & L1_DISALLOWED:
            raise XenError(Errno.EINVAL, f"L1 entry {entry:#x} has bits that are not allowed")
        mfn = frame_of(entry)
        if self.base <= mfn < self.end:
            if io or not (self.get_writable(mfn) if entry & PTE_RW else self.get(mfn)):
                raise XenError(Errno.EBUSY, f"mfn {mfn:#x} cannot be mapped by entry {entry:#x}")
            return
        access = self.mappable(mfn)
        if not access:
            raise XenError(Errno.EINVAL if mfn == INVALID_MFN else Errno.EPERM, f"mfn {mfn:#x} is not the guest's")
        if io or (access == Mappable.READ_ONLY and entry & PTE_RW):
            raise XenError(Errno.EBUSY, f"mfn {mfn:#x} cannot be mapped by entry {entry:#x}")

    def put_l1_entry(self, entry: int) -> None:
        """Give back the references of a present L1 entry."""
        if not self._native.put_one(entry):
            self.put_unusual(entry)

    def put_unusual(self, entry: int) -> None:
        """Do what `put_l1_entry` does without machine code."""
        mfn = frame_of(entry)
        if self.base <= mfn < self.end:
            if entry & PTE_RW:
                self.put_writable(mfn)
            else:
                self.put(mfn)

    # -- whole tables -------------------------------------------------------------------------------------------------

    def get_l1_entries(self, table: int, *, fresh: bool) -> None:
        """Take the references of all entries of an L1 table and adjust them; `fresh` says that it never was a table before.

        Raises XenError, having taken none.
        """
        copy = self._copy_of(table)
        slot = copy.get(0, held=False)
        while slot < ENTRIES:
            try:
                self.get_unusual(copy.entries[slot])
            except XenError:
                self._put_copied(slot)
                raise
            slot = copy.get(slot, held=True)
        if fresh:
            self._entries(table)[:] = copy.entries
        else:
            self.write_entries(table, copy.listed(), fresh=False)

    def put_l1_entries(self, table: int) -> None:
        """Give back the references of all entries of an L1 table."""
        self._copy_of(table)
        self._put_copied(ENTRIES)

    def _put_copied(self, end: int) -> None:
        copy = self._native
        slot = copy.put(0, end)
        while slot < end:
            self.put_unusual(copy.entries[slot])
            slot = copy.put(slot + 1, end)

    def present(self, table: int) -> list[tuple[int, int]]:
        """Return the (slot, entry) pairs of a table that are present."""
        copy = self._copy_of(table)
        copy.list_present()
        return copy.listed()

    def _copy_of(self, table: int) -> NativeEntries:
        self._native.fill(self._entries(table))
        return self._native

    def _entries(self, table: int) -> memoryview:
        first = table << _WORDS_SHIFT
        return self.memory.u64[first : first + ENTRIES]

    def write_entries(self, table: int, changes: Iterable[tuple[int, int]], *, fresh: bool) -> None:
        """Write (slot, value) pairs into a frame; nothing shadows a `fresh` one yet."""
        first = table << _WORDS_SHIFT
        words = self.memory.u64
        if fresh:
            for slot, value in changes:
                words[first + slot] = value
        else:
            for slot, value in changes:
                self.store(first + slot << 3, value)
