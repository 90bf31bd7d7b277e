"""Page types: a frame becomes a page table or a segment page when all it holds has been checked, and remains one while it is used as such.

Validation goes down the levels, and so does giving back when the last use ends. Both let other work in between tables; meanwhile the
tables on the way have a type but are not VALIDATED, and other threads that want them wait.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Final

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.descriptors import fix_descriptor
from xenpy.pv.mmu.entries import ENTRIES, ROOT_LEVEL, UPPER_DISALLOWED, XEN_SLOTS, adjust_upper, frame_of
from xenpy.pv.mmu.layout import (
    COUNT_MASK,
    KERNEL_ROLE,
    ONE_TYPED,
    OWNED,
    REFS_FULL,
    TYPE_MASK,
    TYPE_SHIFT,
    VALIDATED,
    WAS_TABLE,
    FrameType,
    type_name,
    type_of,
)
from xenpy.pv.paging import PTE_RW

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.pv.mmu.frames import FrameTable
    from xenpy.pv.mmu.protocols import Checkpoint

_WORDS_SHIFT: Final = PAGE_SHIFT - 3
_WRITABLE_OR_NONE: Final = (FrameType.NONE, FrameType.WRITABLE)


def _nobody_runs() -> None:
    """Flush nothing."""


class PageTypes:
    """Gives frames the types that need validation: L1 to L4 and SEGDESC.

    `fill_hypervisor_slots(mfn, kernel)` is called to write the hypervisor's entries of an L4, for use by the guest's kernel or not.
    `flush` is called when a frame that may have been mapped writable becomes a table: no vCPU may run on with a translation from before,
    or it would write past us.
    """

    def __init__(self, frames: FrameTable, fill_hypervisor_slots: Callable[[int, bool], None]) -> None:
        self._frames = frames
        self._memory = frames.memory
        self._fill_hypervisor_slots = fill_hypervisor_slots
        self.flush: Callable[[], None] = _nobody_runs
        self._busy: dict[int, int] = {}  # mfn -> the thread that validates it or takes it apart
        self._linear: dict[int, int] = {}  # mfn -> tables of its own level that it names (negative) or that name it

    def linear(self) -> dict[int, int]:
        """Return, by frame, how many tables of its own level it names (negative) or name it. No type may be changing."""
        if self._busy:
            raise XenError(Errno.EBUSY, f"mfn {next(iter(self._busy)):#x} is being validated")
        return dict(self._linear)

    def restore(self, linear: Mapping[int, int]) -> None:
        """Take over what `linear` returned."""
        self._linear = dict(linear)

    # -- one frame ----------------------------------------------------------------------------------------------------

    def get(self, mfn: int, kind: int, checkpoint: Checkpoint) -> bool:
        """Take a reference to a frame as table of level `kind` or as SEGDESC; tell whether that made it one.

        Raises XenError: EINVAL for a frame that the guest does not have or uses as something else, or else what its entries deserve.
        """
        frames = self._frames
        while True:
            word = frames.word(mfn)
            if word & (OWNED | REFS_FULL) != OWNED:
                raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is not the guest's, or is used too often")
            if not word & COUNT_MASK:
                new = word & ~(TYPE_MASK | VALIDATED | KERNEL_ROLE) | kind << TYPE_SHIFT
                if kind <= ROOT_LEVEL:
                    new |= WAS_TABLE
                if not frames.await_unlocked(mfn) and frames.exchange(mfn, word, new + ONE_TYPED):
                    break
            elif type_of(word) != kind:
                raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is {type_name(word)}, not {FrameType(kind).name}")
            elif not word & VALIDATED:
                self._wait(mfn, checkpoint)
            elif frames.exchange(mfn, word, word + ONE_TYPED):
                return False
        self._busy[mfn] = get_ident()
        try:
            self.flush()
            self._validate(mfn, kind, checkpoint, fresh=not word & WAS_TABLE)
        except XenError:
            while not frames.drop_typed(mfn, frames.word(mfn)):
                pass
            raise
        finally:
            del self._busy[mfn]
        frames.change(mfn, set_=VALIDATED)
        return True

    def put(self, mfn: int, checkpoint: Checkpoint) -> bool:
        """Give back a reference to a table or segment page; tell whether that was the last."""
        frames = self._frames
        while True:
            word = frames.word(mfn)
            kind = type_of(word)
            if kind in _WRITABLE_OR_NONE:
                frames.mismatches += 1
                return False
            if word & COUNT_MASK > 1:
                if frames.drop_typed(mfn, word):
                    return False
            elif not word & VALIDATED:
                if self._busy.get(mfn) in (None, get_ident()):
                    frames.mismatches += 1
                    return False
                self._wait(mfn, checkpoint)
            elif not frames.await_unlocked(mfn) and frames.exchange(mfn, word, word & ~VALIDATED):
                break
        self._busy[mfn] = get_ident()
        try:
            self._take_apart(mfn, kind, checkpoint)
        finally:
            del self._busy[mfn]
        while not frames.drop_typed(mfn, frames.word(mfn)):
            pass
        return True

    def _wait(self, mfn: int, checkpoint: Checkpoint) -> None:
        """Let the thread go on that is validating a frame or taking it apart."""
        if self._busy.get(mfn) in (None, get_ident()):
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is being validated")
        checkpoint()

    # -- what it holds ------------------------------------------------------------------------------------------------

    def _validate(self, mfn: int, kind: int, checkpoint: Checkpoint, *, fresh: bool) -> None:
        if kind == FrameType.L1:
            self._frames.get_l1_entries(mfn, fresh=fresh)
        elif kind == FrameType.SEGDESC:
            changes = [(slot, fix_descriptor(value)) for slot, value in enumerate(self._entries(mfn))]
            self._frames.write_entries(mfn, changes, fresh=fresh)
        else:
            self._validate_upper(mfn, kind, checkpoint, fresh=fresh)
            if kind == ROOT_LEVEL:
                self._fill_hypervisor_slots(mfn, False)

    def _validate_upper(self, mfn: int, level: int, checkpoint: Checkpoint, *, fresh: bool) -> None:
        taken: list[int] = []
        changes: list[tuple[int, int]] = []
        for slot, entry in self._frames.present(mfn):
            if level == ROOT_LEVEL and slot in XEN_SLOTS:
                continue
            try:
                new_table = self.get_entry(mfn, level, entry, checkpoint)
            except XenError:
                for held in taken:
                    self.put_entry(mfn, level, held, checkpoint)
                raise
            taken.append(entry)
            adjusted = adjust_upper(entry, level)
            if adjusted != entry:
                changes.append((slot, adjusted))
            if new_table:
                checkpoint()
        self._frames.write_entries(mfn, changes, fresh=fresh)

    def _take_apart(self, mfn: int, kind: int, checkpoint: Checkpoint) -> None:
        if kind == FrameType.L1:
            self._frames.put_l1_entries(mfn)
        elif kind != FrameType.SEGDESC:
            for slot, entry in self._frames.present(mfn):
                if kind == ROOT_LEVEL and slot in XEN_SLOTS:
                    continue
                if self.put_entry(mfn, kind, entry, checkpoint):
                    checkpoint()

    def _entries(self, mfn: int) -> list[int]:
        first = mfn << _WORDS_SHIFT
        entries: list[int] = self._memory.u64[first : first + ENTRIES].tolist()
        return entries

    # -- one entry of an upper table ----------------------------------------------------------------------------------

    def get_entry(self, table: int, level: int, entry: int, checkpoint: Checkpoint) -> bool:
        """Take the reference that a present entry of an L2, L3 or L4 holds; tell whether that made a new table.

        Raises XenError: EINVAL for bits that are not allowed and for a frame that is no table of the level below, nor one of the same
        level that the entry shows read-only; or else what that frame's entries deserve.
        """
        if entry & UPPER_DISALLOWED:
            raise XenError(Errno.EINVAL, f"L{level} entry {entry:#x} has bits that are not allowed")
        try:
            return self.get(frame_of(entry), level - 1, checkpoint)
        except XenError as error:
            if error.errno is Errno.EINVAL and not entry & PTE_RW and self._get_linear(table, level, frame_of(entry)):
                return False
            raise

    def put_entry(self, table: int, level: int, entry: int, checkpoint: Checkpoint) -> bool:
        """Give back the reference of a present entry of an L2, L3 or L4; tell whether it was its table's last."""
        child = frame_of(entry)
        if child == table:
            return False
        if type_of(self._frames.word(child)) == level:
            self._count_linear(table, 1)
            self._count_linear(child, -1)
        return self.put(child, checkpoint)

    def _get_linear(self, table: int, level: int, child: int) -> bool:
        """Take the reference that a linear page table needs, an entry that names a table of its own level; tell whether it may.

        A table that is named so must not itself name others, or taking them apart would have no end.
        """
        if child == table:
            return True
        frames = self._frames
        if self._linear.get(table, 0) > 0 or self._linear.get(child, 0) < 0:
            return False
        while True:
            word = frames.word(child)
            if word & (OWNED | REFS_FULL) != OWNED or type_of(word) != level or not word & VALIDATED:
                return False
            if frames.exchange(child, word, word + ONE_TYPED):
                self._count_linear(table, -1)
                self._count_linear(child, 1)
                return True

    def _count_linear(self, mfn: int, change: int) -> None:
        count = self._linear.get(mfn, 0) + change
        if count:
            self._linear[mfn] = count
        else:
            self._linear.pop(mfn, None)

    # -- top-level tables ---------------------------------------------------------------------------------------------

    def set_role(self, mfn: int, *, kernel: bool) -> None:
        """Have the hypervisor's slots of a validated L4 suit the guest's kernel, or its user mode."""
        if bool(self._frames.word(mfn) & KERNEL_ROLE) != kernel:
            self._fill_hypervisor_slots(mfn, kernel)
            self._frames.change(mfn, set_=KERNEL_ROLE if kernel else 0, clear=0 if kernel else KERNEL_ROLE)
