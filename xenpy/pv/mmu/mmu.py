"""The MMU of a PV domain: what hypercalls and the emulation of faulting stores do to page tables, types and the tables in use."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.audit import Difference, audit
from xenpy.pv.mmu.descriptors import fix_descriptor
from xenpy.pv.mmu.entries import (
    ACCESSED_DIRTY,
    ENTRIES,
    L1_DISALLOWED,
    ROOT_LEVEL,
    SIMILAR,
    UPPER_DISALLOWED,
    XEN_SLOTS,
    adjust_l1,
    adjust_upper,
    frame_of,
    is_guest_address,
)
from xenpy.pv.mmu.frames import FrameTable
from xenpy.pv.mmu.held import Held, no_checkpoint
from xenpy.pv.mmu.layout import OWNED, PINNED, VALIDATED, WAS_TABLE, FrameType, is_l1, is_table, type_of
from xenpy.pv.mmu.reservation import Reservation
from xenpy.pv.mmu.state import MmuState
from xenpy.pv.mmu.types import PageTypes
from xenpy.pv.paging import PTE_FRAME, PTE_PRESENT, PTE_PSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from xenpy.memory import GuestMemory
    from xenpy.pv.mmu.protocols import Checkpoint, Store

_WORD_MASK: Final = 7
_ALL_BITS: Final = (1 << 64) - 1


class Mmu(Held):
    """Page types and page-table updates of one PV domain.

    `words` is the frame table of the frames from `base` on and `m2p` the machine-to-physical table, indexed by mfn; `store`, `mappable`
    and `fill_hypervisor_slots` are those of `FrameTable` and `PageTypes`, and so is `types.flush`, to be set when vCPUs start. All
    methods expect the domain's lock, which the checkpoint that some take lets go for a moment.
    """

    def __init__(
        self,
        memory: GuestMemory,
        words: memoryview,
        base: int,
        m2p: memoryview,
        *,
        store: Store,
        mappable: Callable[[int], int],
        fill_hypervisor_slots: Callable[[int, bool], None],
    ) -> None:
        self.memory = memory
        self.m2p = m2p[:]
        frames = FrameTable(memory, words, base, store, mappable)
        super().__init__(frames, PageTypes(frames, fill_hypervisor_slots))
        self.reservation = Reservation(self)
        self._store = store

    # -- life ---------------------------------------------------------------------------------------------------------

    def adopt(self, tables: Mapping[int, int], pt_base_mfn: int, owned: int) -> None:
        """Take over a domain as its builder left it: the first `owned` frames are the guest's, and its L4 is pinned.

        `tables` are the page tables (mfn -> level) that were built. Raises ValueError when the L4 does not lead to all of them.
        """
        frames = self.frames
        self.reservation.start(owned)
        self.types.get(pt_base_mfn, ROOT_LEVEL, no_checkpoint)
        frames.change(pt_base_mfn, set_=PINNED)
        for mfn, level in tables.items():
            if type_of(frames.word(mfn)) != level:
                raise ValueError(f"mfn {mfn:#x} was built as L{level} but is {type_of(frames.word(mfn))}")

    def state(self) -> MmuState:
        """Return what is not in memory. Raises XenError(EBUSY) while a type changes."""
        tables = {vcpu_id: (of.gdt, of.ldt) for vcpu_id, of in self._descriptor_tables.items()}
        kernel, user = (dict(self._bases[kernel]) for kernel in (True, False))
        linear = self.types.linear()
        return MmuState(
            dict(self.held), kernel, user, tables, linear, *self.reservation.state(), self.frames.mismatches
        )

    def restore(self, state: MmuState) -> None:
        """Take over what `state` returned, of a domain with the same memory."""
        self.held = Counter(state.held)
        self._bases = {True: Counter(state.kernel_bases), False: Counter(state.user_bases)}
        for vcpu_id, (gdt, ldt) in state.descriptor_tables.items():
            self.tables_of(vcpu_id).gdt, self.tables_of(vcpu_id).ldt = gdt, ldt
        self.types.restore(state.linear)
        self.reservation.restore((state.fresh, state.returned))
        self.frames.mismatches = state.mismatches

    def audit(self) -> list[Difference]:
        """Return where the frame table differs from what the page tables say; for tests and debugging."""
        return audit(self)

    def destroy(self) -> None:
        """Let go of the memory that the caller supplied, and be called no more."""
        self.frames.words.release()
        self.m2p.release()

    # -- pinning ------------------------------------------------------------------------------------------------------

    def pin(self, mfn: int, level: int, checkpoint: Checkpoint) -> None:
        """Make a frame a page table and keep it one. Raises XenError: EINVAL, or what its entries deserve."""
        self.types.get(mfn, level, checkpoint)
        if self.frames.change(mfn, set_=PINNED) & PINNED:
            self.types.put(mfn, checkpoint)
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is pinned already")

    def unpin(self, mfn: int, checkpoint: Checkpoint) -> None:
        """Undo `pin`. Raises XenError(EINVAL) for a frame that is not pinned."""
        if not self.frames.word(mfn) & OWNED or not self.frames.change(mfn, clear=PINNED) & PINNED:
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is not pinned")
        self.types.put(mfn, checkpoint)

    # -- entries ------------------------------------------------------------------------------------------------------

    def update(
        self, gpa: int, value: int, checkpoint: Checkpoint, *, preserve_ad: bool = False, io: bool = False
    ) -> None:
        """Write a 64-bit word at a machine address: a checked entry of a page table, or plain memory.

        `preserve_ad` keeps the accessed and dirty bits, `io` is for entries that should map I/O space. Raises XenError: EINVAL for a word
        that cannot be written so, or what the entry deserves.
        """
        mfn = gpa >> PAGE_SHIFT
        word = self.frames.word(mfn)
        if not word & OWNED or gpa & _WORD_MASK:
            raise XenError(Errno.EINVAL, f"no word at machine address {gpa:#x}")
        if is_l1(word):
            self._update_l1(mfn, gpa, value, preserve_ad=preserve_ad, io=io)
        elif is_table(word):
            if io:
                raise XenError(Errno.EINVAL, "only L1 entries map I/O space")
            self._update_upper(type_of(word), mfn, gpa, value, checkpoint, preserve_ad=preserve_ad)
        else:
            self.write_plain(mfn, [(gpa >> 3, value)])

    def _update_l1(
        self,
        mfn: int,
        gpa: int,
        value: int,
        *,
        preserve_ad: bool = False,
        io: bool = False,
        expected: int | None = None,
    ) -> bool:
        """Write an L1 entry, unless `expected` is given and it holds something else; tell whether it was written."""
        frames, words, index = self.frames, self.memory.u64, gpa >> 3
        if value & PTE_PRESENT and value & L1_DISALLOWED:
            raise XenError(Errno.EINVAL, f"L1 entry {value:#x} has bits that are not allowed")
        new = adjust_l1(value)
        while True:
            similar = new & PTE_PRESENT and not (words[index] ^ new) & ~SIMILAR
            if new & PTE_PRESENT and not similar:
                frames.get_l1_entry(new, io=io)
            frames.lock(mfn)
            try:
                word, old = frames.word(mfn), words[index]
                gone = not is_l1(word)
                written = not gone and (expected is None or old == expected)
                if similar and (old ^ new) & ~SIMILAR:
                    continue  # code in the guest was faster: the references differ after all
                if written:
                    self._store(gpa, new | old & ACCESSED_DIRTY if preserve_ad else new)
            finally:
                frames.unlock(mfn)
            break
        if not similar:
            leaving = old if written else new
            if leaving & PTE_PRESENT:
                frames.put_l1_entry(leaving)
        if gone:
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is no L1 any more")
        return written

    def _update_upper(
        self, level: int, mfn: int, gpa: int, value: int, checkpoint: Checkpoint, *, preserve_ad: bool
    ) -> None:
        frames, types, words, index = self.frames, self.types, self.memory.u64, gpa >> 3
        if level == ROOT_LEVEL and (index & ENTRIES - 1) in XEN_SLOTS:
            raise XenError(Errno.EINVAL, "the entry is the hypervisor's")
        if value & PTE_PRESENT and value & UPPER_DISALLOWED:
            raise XenError(Errno.EINVAL, f"L{level} entry {value:#x} has bits that are not allowed")
        new = adjust_upper(value, level)
        # Nothing but us writes entries of upper tables, so what is similar now remains so.
        similar = new & PTE_PRESENT and not (words[index] ^ new) & ~SIMILAR
        if new & PTE_PRESENT and not similar:
            types.get_entry(mfn, level, new, checkpoint)
        frames.lock(mfn)
        try:
            word, old = frames.word(mfn), words[index]
            gone = type_of(word) != level or not word & VALIDATED
            if not gone:
                self._store(gpa, new | old & ACCESSED_DIRTY if preserve_ad else new)
        finally:
            frames.unlock(mfn)
        leaving = new if gone else old
        if not similar and leaving & PTE_PRESENT:
            types.put_entry(mfn, level, leaving, checkpoint)
        if gone:
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is no L{level} any more")

    def emulate_write(self, gpa: int, old: int, new: int, *, compare: bool) -> bool:
        """Carry out a store of the guest's own to an L1 entry, which faulted since tables are read-only.

        With `compare` nothing is written unless the entry still is `old`; the result tells whether it was. Raises XenError for a store that
        is refused: the fault is then the guest's to handle.
        """
        self._check_l1(gpa)
        return self._update_l1(gpa >> PAGE_SHIFT, gpa, new, expected=old if compare else None)

    def entry_gpa(self, l4: int, gva: int) -> int:
        """Return the machine address of the L1 entry that maps an address by the tables at `l4`, mapped or not.

        Raises XenError(EINVAL) when there is no L1 for it or the address is the hypervisor's.
        """
        if not is_guest_address(gva):
            raise XenError(Errno.EINVAL, f"address {gva:#x} is not the guest's")
        frames, words, mfn = self.frames, self.memory.u64, l4
        for shift in (39, 30, 21):
            entry = words[(mfn << PAGE_SHIFT - 3) + (gva >> shift & ENTRIES - 1)] if frames.word(mfn) else 0
            if not entry & PTE_PRESENT or entry & PTE_PSE:
                raise XenError(Errno.EINVAL, f"no L1 for address {gva:#x}")
            mfn = (entry & PTE_FRAME) >> PAGE_SHIFT
        return (mfn << PAGE_SHIFT) + (gva >> PAGE_SHIFT & ENTRIES - 1) * 8

    def update_va(self, l4: int, gva: int, value: int, *, io: bool = False) -> None:
        """Write the L1 entry that maps an address by the tables at `l4`. Raises XenError as `update` does."""
        gpa = self.entry_gpa(l4, gva)
        self._check_l1(gpa)
        self._update_l1(gpa >> PAGE_SHIFT, gpa, value, io=io)

    # -- grants -------------------------------------------------------------------------------------------------------

    def replace_foreign(self, gpa: int, value: int, *, mfn: int | None = None) -> int:
        """Write an L1 entry as grant mappings do, whatever `mappable` says of its frame; return the entry before.

        A frame of the guest's own gets its reference all the same. With `mfn`, the entry must show that frame now. Raises XenError: EINVAL
        where no L1 entry is or it shows something else, EBUSY for an own frame that cannot be mapped so.
        """
        frames = self.frames
        self._check_l1(gpa)
        own = value & PTE_PRESENT and frames.base <= frame_of(value) < frames.end
        if own:
            frames.get_l1_entry(value)
        table = gpa >> PAGE_SHIFT
        frames.lock(table)
        try:
            old = int(self.memory.u64[gpa >> 3])
            wrong = mfn is not None and (not old & PTE_PRESENT or frame_of(old) != mfn)
            if not wrong:
                self._store(gpa, adjust_l1(value))
        finally:
            frames.unlock(table)
        if wrong and own:
            frames.put_l1_entry(value)
        elif not wrong and old & PTE_PRESENT:
            frames.put_l1_entry(old)
        if wrong:
            raise XenError(Errno.EINVAL, f"the entry at {gpa:#x} is {old:#x}")
        return old

    def _check_l1(self, gpa: int) -> None:
        """Raise XenError(EINVAL) unless a machine address is that of an L1 entry."""
        word = self.frames.word(gpa >> PAGE_SHIFT)
        if gpa & _WORD_MASK or not is_l1(word):
            raise XenError(Errno.EINVAL, f"machine address {gpa:#x} is in no L1")

    # -- plain memory -------------------------------------------------------------------------------------------------

    def write_plain(self, mfn: int, words: Iterable[tuple[int, int]]) -> None:
        """Write (index of the word in memory, value) pairs to a frame that may be writable now. Raises XenError(EINVAL)."""
        if not self.frames.get_writable(mfn):
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is not writable memory")
        self._write_words(mfn, words)
        self.frames.put_writable(mfn)

    def _write_words(self, mfn: int, words: Iterable[tuple[int, int]]) -> None:
        if self.frames.word(mfn) & WAS_TABLE:
            for index, value in words:
                self._store(index << 3, value)
        else:
            memory = self.memory.u64
            for index, value in words:
                memory[index] = value

    def write_page(self, mfn: int, data: bytes) -> None:
        """Overwrite a frame that may be writable now with 4096 bytes. Raises XenError(EINVAL)."""
        first = mfn << PAGE_SHIFT - 3
        self.write_plain(mfn, enumerate(memoryview(data).cast("Q"), first))

    def read_page(self, mfn: int) -> bytes:
        """Return a copy of a frame of the guest's. Raises XenError(EINVAL)."""
        if not self.frames.word(mfn) & OWNED:
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is not the guest's")
        return self.memory.read(mfn << PAGE_SHIFT, PAGE_SIZE)

    def set_pfn(self, mfn: int, pfn: int) -> None:
        """Set which pfn the machine-to-physical table shows for a frame of the guest's. Raises XenError(EINVAL)."""
        if not self.frames.word(mfn) & OWNED:
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is not the guest's")
        self.m2p[mfn] = pfn & _ALL_BITS

    def write_descriptor(self, gpa: int, descriptor: int) -> None:
        """Write a segment descriptor into a page of descriptors in use, or into plain memory. Raises XenError(EINVAL)."""
        if gpa & _WORD_MASK:
            raise XenError(Errno.EINVAL, f"descriptor at machine address {gpa:#x}")
        fixed = fix_descriptor(descriptor)
        mfn = gpa >> PAGE_SHIFT
        word = self.frames.word(mfn)
        if not word & OWNED:
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is not the guest's")
        if type_of(word) == FrameType.SEGDESC and word & VALIDATED:
            self._write_words(mfn, [(gpa >> 3, fixed)])
        else:
            self.write_plain(mfn, [(gpa >> 3, fixed)])
