"""Which frames a PV guest has: giving them back, getting others, and what the machine-to-physical table says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.entries import ENTRIES
from xenpy.pv.mmu.layout import OWNED, PINNED, WAS_TABLE, refs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.pv.mmu.mmu import Mmu
    from xenpy.pv.mmu.protocols import Checkpoint

INVALID_M2P_ENTRY: Final = (1 << 64) - 1
"""What the machine-to-physical table shows for a frame that no domain has."""


class Reservation:
    """The frames of one domain, those that it has and those that it may yet get: together `frames.base` to `frames.end`."""

    def __init__(self, mmu: Mmu) -> None:
        self._mmu = mmu
        self._frames = mmu.frames
        self._memory = mmu.memory
        self._fresh = range(mmu.frames.end, mmu.frames.end)
        self._returned: list[int] = []
        self._frames.on_free = self._freed

    def start(self, owned: int) -> None:
        """Have the first `owned` frames be the guest's, unused as yet, and the others free."""
        frames = self._frames
        frames.words[:owned] = memoryview(OWNED.to_bytes(8, "little") * owned).cast("Q")
        self._fresh = range(frames.base + owned, frames.end)

    def state(self) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return the frames that nobody has had yet, as (first, end), and the others that are free."""
        return (self._fresh.start, self._fresh.stop), tuple(self._returned)

    def restore(self, state: tuple[tuple[int, int], tuple[int, ...]]) -> None:
        """Take over what `state` returned."""
        fresh, returned = state
        self._fresh, self._returned = range(*fresh), list(returned)

    # -- giving back --------------------------------------------------------------------------------------------------

    def surrender(self, mfn: int, checkpoint: Checkpoint) -> bool:
        """Take a frame away from the guest, unpinning it; tell whether it had it. It is free once nothing refers to it any more."""
        frames = self._frames
        if not frames.word(mfn) & OWNED:
            return False
        if frames.change(mfn, clear=PINNED) & PINNED:
            self._mmu.types.put(mfn, checkpoint)
        word = frames.change(mfn, clear=OWNED)
        if word & OWNED and not refs_of(word):
            self._freed(mfn)
        return bool(word & OWNED)

    def _freed(self, mfn: int) -> None:
        if self._memory.release(mfn):  # or a guest that can write to the frame table has had it freed before
            self._mmu.m2p[mfn] = INVALID_M2P_ENTRY
            self._returned.append(mfn)

    def steal(self, mfn: int) -> bytes:
        """Take a frame away that the guest uses for nothing, and return what it holds. Raises XenError(EINVAL) for any other."""
        frames = self._frames
        word = frames.word(mfn)
        if not word & OWNED or refs_of(word) or not frames.exchange(mfn, word, word & ~OWNED):
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is in use or not the guest's")
        data = self._memory.read(mfn << PAGE_SHIFT, PAGE_SIZE)
        self._freed(mfn)
        return data

    # -- getting ------------------------------------------------------------------------------------------------------

    def allocate(self, order: int, address_bits: int = 0) -> int | None:
        """Give the guest 2^order zeroed frames, contiguous and aligned; return the first, or None when there are none.

        Machine addresses have at most `address_bits` bits, 0 meaning any.
        """
        first = self._reserve(order, address_bits)
        if first is not None:
            self._give(range(first, first + (1 << order)))
        return first

    @property
    def has_free(self) -> bool:
        """Tell whether there is a frame to be allocated."""
        return bool(self._returned or self._fresh)

    def set_pfns(self, mfn: int, pfn: int, count: int) -> None:
        """Have the machine-to-physical table show `count` frames from `mfn` on as those from `pfn` on."""
        for index in range(count):
            self._mmu.m2p[mfn + index] = pfn + index & INVALID_M2P_ENTRY

    def exchange(self, given: Sequence[int], order: int, count: int, address_bits: int) -> list[int]:
        """Take the frames `given` and return the first mfns of `count` extents of 2^order zeroed frames that replace them.

        Raises XenError, having changed nothing: EINVAL for a frame that the guest does not have, or still uses; ENOMEM without room.
        """
        frames = self._frames
        stolen: list[int] = []
        fresh, returned = self._fresh, list(self._returned)
        extents: list[int] = []
        try:
            for mfn in given:
                word = frames.word(mfn)
                if not word & OWNED or refs_of(word) or not frames.exchange(mfn, word, word & ~OWNED):
                    raise XenError(Errno.EINVAL, f"mfn {mfn:#x} is in use or not the guest's")
                stolen.append(mfn)
            self._returned += stolen
            while len(extents) < count:
                extent = self._reserve(order, address_bits)
                if extent is None:
                    raise XenError(
                        Errno.ENOMEM, f"no extent of {1 << order} frames in {address_bits or 64} bits of address"
                    )
                extents.append(extent)
        except XenError:
            self._fresh, self._returned = fresh, returned
            for mfn in stolen:
                frames.change(mfn, set_=OWNED)
            raise
        for mfn in stolen:
            self._memory.release(mfn)
            self._mmu.m2p[mfn] = INVALID_M2P_ENTRY
        for extent in extents:
            self._give(range(extent, extent + (1 << order)))
        return extents

    # -- the free frames ----------------------------------------------------------------------------------------------

    def _reserve(self, order: int, address_bits: int) -> int | None:
        """Take 2^order aligned frames from the free ones and return the first, or None."""
        size = 1 << order
        end = min(self._frames.end, 1 << max(address_bits - PAGE_SHIFT, 0)) if address_bits else self._frames.end
        if order == 0:
            for index in range(len(self._returned) - 1, -1, -1):
                if self._returned[index] < end:
                    return self._returned.pop(index)
        first = -(-self._fresh.start // size) * size
        if first + size <= min(self._fresh.stop, end):
            self._returned.extend(range(self._fresh.start, first))  # what alignment skips
            self._fresh = range(first + size, self._fresh.stop)
            return first
        free = set(self._returned) if order else set()
        for mfn in sorted(free):
            if not mfn % size and mfn + size <= end and free.issuperset(range(mfn, mfn + size)):
                self._returned = [other for other in self._returned if not mfn <= other < mfn + size]
                return mfn
        return None

    def _give(self, mfns: range) -> None:
        """Make frames the guest's."""
        for mfn in mfns:
            self._memory.populate(mfn)
            if self._frames.word(mfn) & WAS_TABLE:  # shadow paging has to notice that the table is empty
                self._frames.write_entries(mfn, ((slot, 0) for slot in range(ENTRIES)), fresh=False)
            self._frames.change(mfn, set_=OWNED)
