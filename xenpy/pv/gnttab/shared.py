"""The pages of a grant table that the guest writes: both versions of its entries, their status bits, and growth.

Ref: xen/include/public/grant_table.h
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy import atomics
from xenpy.abi.grant_table import (
    GNTST,
    GNTTAB_NR_RESERVED_ENTRIES,
    GRANT_ENTRY_SIZE_V1,
    GRANT_ENTRY_SIZE_V2,
    GRANT_STATUS_SIZE,
    GTF_accept_transfer,
    GTF_invalid,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transfer_committed,
    GTF_transfer_completed,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
)
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SIZE
from xenpy.pv.gnttab.errors import GrantError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.framepool import FramePool
    from xenpy.memory import Frame

_V1: Final = Struct("<HHI")  # flags, domid, frame
_V2: Final = Struct("<HHHHQ")  # flags, domid, page_off, length, frame
_V2_TRANSITIVE: Final = Struct("<HHHHI4x")  # flags, domid, trans_domid, pad0, gref
_STATUS_BITS: Final = GTF_reading | GTF_writing
_STATUS_PER_PAGE: Final = PAGE_SIZE // GRANT_STATUS_SIZE
_PER_PAGE_V1: Final = PAGE_SIZE // GRANT_ENTRY_SIZE_V1
_WORD_SHIFT: Final = 3
_HALF, _HEADER_V1 = 0xFFFF, 0xFFFF_FFFF
_PIN_ATTEMPTS: Final = 5
"""A granter that changes an entry while we pin it makes us try again, so often at most."""


class Entry(NamedTuple):
    """A grant entry, copied from the table once.

    A `partial` one covers `length` bytes from `offset`; one with a `trans_domid` passes on grant `gref` of that domain.
    """

    flags: int
    domid: int
    gfn: int
    partial: bool = False
    offset: int = 0
    length: int = PAGE_SIZE
    trans_domid: int | None = None
    gref: int = 0


@dataclass(frozen=True, slots=True)
class GrantTableState:
    """A grant table as plain data, without who has mapped what: where in the pool its pages are, whose contents are the pool's."""

    version: int
    frames: tuple[int, ...]
    status: tuple[int, ...]


class SharedTable:
    """A table's pages, from the domain's pool, and atomic changes to them."""

    def __init__(self, pool: FramePool, max_frames: int) -> None:
        self.version = 1
        self.max_frames = max_frames
        self.frames: list[Frame] = []
        self._status: list[Frame] = []  # kept for reuse when the guest goes back to version 1
        self._pool = pool
        self.grow(1)

    # -- size ---------------------------------------------------------------------------------------------------------

    @property
    def words(self) -> memoryview:
        """Return the pool, live, as 64-bit words."""
        return self._pool.words

    @property
    def entries(self) -> int:
        """Return how many entries there are."""
        size = GRANT_ENTRY_SIZE_V1 if self.version == 1 else GRANT_ENTRY_SIZE_V2
        return len(self.frames) * (PAGE_SIZE // size)

    @property
    def status_frames(self) -> list[Frame]:
        """Return the pages of status words; version 1 has none."""
        return self._status if self.version == 2 else []

    def grow(self, frames: int) -> None:
        """Have at least so many pages, and the status pages for them.

        Raises XenError: EINVAL beyond the limit, ENOMEM.
        """
        if frames > self.max_frames:
            raise XenError(Errno.EINVAL, f"a grant table of {frames} pages, {self.max_frames} allowed")
        while len(self.frames) < frames:
            self.frames.append(self._pool.allocate())
        if self.version == 2:
            self._grow_status()

    def grow_status(self, frames: int) -> None:
        """Have at least so many status pages, and the pages of entries they are for.

        Raises XenError: EINVAL, ENOMEM.
        """
        per_status_page = _STATUS_PER_PAGE // (PAGE_SIZE // GRANT_ENTRY_SIZE_V2)
        if self.version != 2:
            raise XenError(Errno.EINVAL, "version 1 has no status pages")
        if len(self._status) < frames:
            self.grow((frames - 1) * per_status_page + 1)

    def _grow_status(self) -> None:
        needed = -(-len(self.frames) * (PAGE_SIZE // GRANT_ENTRY_SIZE_V2) // _STATUS_PER_PAGE)
        while len(self._status) < needed:
            self._status.append(self._pool.allocate())

    # -- versions -----------------------------------------------------------------------------------------------------

    def set_version(self, version: int) -> None:
        """Change the layout: all entries become invalid but the reserved ones, which are converted.

        Raises XenError(ENOMEM).
        """
        reserved = [self._reserved(gref) for gref in range(GNTTAB_NR_RESERVED_ENTRIES)]
        old, self.version = self.version, version
        try:
            self.grow(1)
        except XenError:
            self.version = old
            raise
        for frame in (*self.frames, *self._status):
            self._pool.view(frame)[:] = bytes(PAGE_SIZE)
        for gref, (flags, domid, gfn) in enumerate(reserved):
            self.write(gref, flags, domid, gfn)

    def _reserved(self, gref: int) -> tuple[int, int, int]:
        """Return flags (the status word's too), domid and gfn of an entry that both versions can hold, else zeroes."""
        entry = self.read(gref)
        if self.version == 1:
            return entry.flags, entry.domid, entry.gfn
        if entry.flags & GTF_type_mask != GTF_permit_access or entry.gfn >> 32:
            return GTF_invalid, 0, 0
        status = int.from_bytes(self._status_word(gref), "little") & _STATUS_BITS
        return entry.flags & ~GTF_sub_page | status, entry.domid, entry.gfn

    # -- entries ------------------------------------------------------------------------------------------------------

    def _locate(self, gref: int) -> tuple[Frame, int]:
        size = GRANT_ENTRY_SIZE_V1 if self.version == 1 else GRANT_ENTRY_SIZE_V2
        page, index = divmod(gref, PAGE_SIZE // size)
        return self.frames[page], index * size

    def _status_word(self, gref: int) -> memoryview:
        page, index = divmod(gref, _STATUS_PER_PAGE)
        offset = index * GRANT_STATUS_SIZE
        return self._pool.view(self._status[page])[offset : offset + GRANT_STATUS_SIZE]

    def read(self, gref: int) -> Entry:
        """Return a copy of an entry, which must exist."""
        frame, offset = self._locate(gref)
        if self.version == 1:
            return Entry(*_V1.unpack(bytes(self._pool.view(frame)[offset : offset + _V1.size])))
        raw = bytes(self._pool.view(frame)[offset : offset + _V2.size])
        flags, domid, page_off, length, gfn = _V2.unpack(raw)
        if flags & GTF_type_mask == GTF_transitive:
            _, _, trans_domid, _, trans_gref = _V2_TRANSITIVE.unpack(raw)
            return Entry(flags, domid, 0, trans_domid=trans_domid, gref=trans_gref)
        if flags & GTF_sub_page:
            return Entry(flags, domid, gfn, partial=True, offset=page_off, length=length)
        return Entry(flags, domid, gfn)

    def write(self, gref: int, flags: int, domid: int, gfn: int) -> None:
        """Write an entry for a whole page; GTF_reading and GTF_writing go where the version keeps them."""
        frame, offset = self._locate(gref)
        view = self._pool.view(frame)
        if self.version == 1:
            _V1.pack_into(view, offset, flags, domid, gfn)
            return
        _V2.pack_into(view, offset, flags & ~_STATUS_BITS, domid, 0, 0, gfn)
        self._status_word(gref)[:] = (flags & _STATUS_BITS).to_bytes(GRANT_STATUS_SIZE, "little")

    def swap(self, gref_a: int, gref_b: int) -> None:
        """Swap two entries, which must exist, with their status words."""
        (frame_a, at_a), (frame_b, at_b) = self._locate(gref_a), self._locate(gref_b)
        size = GRANT_ENTRY_SIZE_V1 if self.version == 1 else GRANT_ENTRY_SIZE_V2
        a, b = self._pool.view(frame_a)[at_a : at_a + size], self._pool.view(frame_b)[at_b : at_b + size]
        a[:], b[:] = bytes(b), bytes(a)
        if self.version == 2:
            a, b = self._status_word(gref_a), self._status_word(gref_b)
            a[:], b[:] = bytes(b), bytes(a)

    # -- status bits --------------------------------------------------------------------------------------------------

    def mark(self, gref: int, permits: Callable[[Entry], None], bits: int, held: int) -> Entry:
        """Set `bits` of GTF_reading and GTF_writing, of which `held` are set for other uses, and return the entry.

        `permits` raises GrantError if the entry does not allow it. An entry that the granter changes meanwhile is
        looked at again; one that never rests is a GrantError.
        """
        if self.version == 1:
            return self._mark_v1(gref, permits, bits)
        for _ in range(_PIN_ATTEMPTS):
            entry = self.read(gref)
            permits(entry)
            # Entry and status lie apart: the granter clears the one, then looks at the other; we do it the other way
            # round.
            self._set_status(gref, bits)
            if self.read(gref) == entry:
                return entry
            self.clear(gref, bits & ~held)
        raise GrantError(GNTST.general_error, f"grant {gref} changes all the time")

    def _mark_v1(self, gref: int, permits: Callable[[Entry], None], bits: int) -> Entry:
        offset = self._offset_v1(gref)
        hva = self._pool.hva_of(offset)
        for _ in range(_PIN_ATTEMPTS):
            word = self._pool.words[offset >> _WORD_SHIFT]  # one load: header and gfn go together
            header = word & _HEADER_V1
            entry = Entry(word & _HALF, word >> 16 & _HALF, word >> 32)
            permits(entry)
            if atomics.cmpxchg32(hva, header, header | bits) == header:
                return entry
        raise GrantError(GNTST.general_error, f"grant {gref} changes all the time")

    def _offset_v1(self, gref: int) -> int:
        """Return where in the pool an entry is."""
        page, index = divmod(gref, _PER_PAGE_V1)
        return self.frames[page].offset + index * GRANT_ENTRY_SIZE_V1

    def commit_transfer(self, gref: int, domid: int, check: Callable[[int], None]) -> int:
        """Have an entry that accepts a page of a domain's be committed to one; return the gfn that it names. Raises GrantError.

        Who has committed an entry waits until it is completed: so `check`, which raises XenError, is to find out before whether it can be.
        """
        for _ in range(_PIN_ATTEMPTS):
            entry = self.read(gref)
            if (entry.flags, entry.domid) != (GTF_accept_transfer, domid):
                raise GrantError(GNTST.general_error, f"grant {gref} accepts no page of domain {domid}")
            try:
                check(entry.gfn)
            except XenError as error:
                raise GrantError(GNTST.general_error, error.reason) from None
            header = entry.flags | entry.domid << 16
            if atomics.cmpxchg32(self._hva(gref), header, header | GTF_transfer_committed) == header:
                return entry.gfn
        raise GrantError(GNTST.general_error, f"grant {gref} changes all the time")

    def complete_transfer(self, gref: int, gfn: int) -> None:
        """Tell in an entry which frame its page is, and then that it has come."""
        frame, offset = self._locate(gref)
        at, size = (offset + 4, 4) if self.version == 1 else (offset + 8, 8)
        self._pool.view(frame)[at : at + size] = gfn.to_bytes(size, "little")
        atomics.set_bit(self._hva(gref), GTF_transfer_completed.bit_length() - 1)

    def _hva(self, gref: int) -> int:
        frame, offset = self._locate(gref)
        return self._pool.hva(frame) + offset

    def _status_bit(self, gref: int) -> tuple[int, int]:
        """Return the address and first bit number of the bitmap that holds an entry's GTF_reading and GTF_writing."""
        if self.version == 1:
            return self._hva(gref), 0
        page, index = divmod(gref, _STATUS_PER_PAGE)
        return self._pool.hva(self._status[page]), index * GRANT_STATUS_SIZE * 8

    def _set_status(self, gref: int, bits: int) -> None:
        hva, first = self._status_bit(gref)
        for bit in (GTF_reading, GTF_writing):
            if bits & bit:
                atomics.set_bit(hva, first + bit.bit_length() - 1)

    def clear(self, gref: int, bits: int) -> None:
        """Take GTF_reading or GTF_writing back."""
        if not bits:
            return
        if self.version == 1:  # both at once, if the guest keeps still
            offset = self._offset_v1(gref)
            header = self._pool.words[offset >> _WORD_SHIFT] & _HEADER_V1
            if atomics.cmpxchg32(self._pool.hva_of(offset), header, header & ~bits) == header:
                return
        hva, first = self._status_bit(gref)
        for bit in (GTF_reading, GTF_writing):
            if bits & bit:
                atomics.clear_bit(hva, first + bit.bit_length() - 1)

    # -- saving -------------------------------------------------------------------------------------------------------

    def state(self) -> GrantTableState:
        """Return all of it that is not in its pages."""
        frames, status = (tuple(frame.offset for frame in of) for of in (self.frames, self._status))
        return GrantTableState(self.version, frames, status)

    def load(self, state: GrantTableState) -> None:
        """Take over what `state` returned, with a pool that has the same pages."""
        self.version = state.version
        self.frames = [self._pool.at(offset) for offset in state.frames]
        self._status = [self._pool.at(offset) for offset in state.status]


def check_entry(entry: Entry, gref: int, domid: int, *, readonly: bool, mapping: bool, pinned: bool) -> None:
    """Raise GrantError unless an entry lets `domid` have the access; an entry that is in use need not name it again."""
    if not pinned:
        allowed = entry.flags & GTF_type_mask == GTF_permit_access or entry.trans_domid is not None
        if not allowed or entry.domid != domid:
            what = f"flags {entry.flags:#x}, for domain {entry.domid}"
            raise GrantError(GNTST.general_error, f"grant {gref} ({what}) used by domain {domid}")
        if mapping and (entry.partial or entry.trans_domid is not None):
            raise GrantError(GNTST.general_error, f"grant {gref} can only be copied")
    if not readonly and entry.flags & GTF_readonly:
        raise GrantError(GNTST.general_error, f"grant {gref} is read-only")
