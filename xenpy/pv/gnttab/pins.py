"""Who uses which grant: from the first use to the last, what was granted stays as it was then."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from xenpy.abi.grant_table import GNTST, GTF_reading, GTF_writing
from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.gnttab.errors import GrantError
from xenpy.pv.gnttab.shared import check_entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.memory import Frame, GuestMemory
    from xenpy.pv.gnttab.shared import Entry, SharedTable

_MAX_PINS: Final = 128
"""Uses of one grant for reading, and as many for writing, after which Xen refuses more."""


class _Active:
    """A grant in use: what its entry said when that began."""

    __slots__ = ("domid", "entry", "frame", "readers", "writers")

    def __init__(self, domid: int, entry: Entry, frame: Frame | None) -> None:
        self.domid = domid
        self.entry = entry
        self.frame = frame
        self.readers = 0
        self.writers = 0


class Pin:
    """One use of a grant, until `release`. `inner` is the use of another domain's grant that a transitive one makes."""

    __slots__ = ("_active", "_pins", "gref", "inner", "readonly")

    def __init__(self, pins: Pins, gref: int, active: _Active, *, readonly: bool, inner: Pin | None) -> None:
        self._pins: Pins | None = pins
        self._active = active
        self.gref = gref
        self.readonly = readonly
        self.inner = inner

    @property
    def frame(self) -> Frame:
        """Return the page."""
        if self.inner is not None:
            return self.inner.frame
        assert self._active.frame is not None
        return self._active.frame

    def view(self) -> tuple[memoryview, int]:
        """Return a live view of the page in its domain's linear space, and our address of it. Raises GrantError."""
        if self.inner is not None:
            return self.inner.view()
        if self._pins is None:
            raise GrantError(GNTST.bad_handle, f"grant {self.gref} was released")
        gpa = self._active.entry.gfn << PAGE_SHIFT
        try:
            return self._pins.memory.view(gpa, PAGE_SIZE), self._pins.memory.hva(gpa)
        except XenError as error:
            raise GrantError(GNTST.bad_page, str(error)) from None

    def part(self, offset: int, size: int) -> memoryview:
        """Return a live view of part of the page. Raises GrantError if it is not all within what was granted."""
        if self.inner is not None:
            return self.inner.part(offset, size)
        entry = self._active.entry
        first, end = entry.offset, min(entry.offset + entry.length, PAGE_SIZE)
        if offset < first or offset + size > end:
            wanted = f"bytes {offset} to {offset + size}"
            raise GrantError(GNTST.general_error, f"{wanted} of grant {self.gref}, which covers {first} to {end}")
        return self.view()[0][offset : offset + size]

    def release(self) -> None:
        """End the use; idempotent."""
        if self._pins is not None:
            self._pins.unpin(self.gref, self._active, readonly=self.readonly)
            self._pins = None
        if self.inner is not None:
            self.inner.release()


class Use(Protocol):
    """One use of a grant, as those see it who make it: a Pin, or what stands before one."""

    @property
    def gref(self) -> int:
        """Return the grant reference."""

    @property
    def readonly(self) -> bool:
        """Tell whether the use is for reading only."""

    @property
    def frame(self) -> Frame:
        """Return the page."""

    def view(self) -> tuple[memoryview, int]:
        """Return a live view of the page, and our address of it. Raises GrantError."""

    def part(self, offset: int, size: int) -> memoryview:
        """Return a live view of part of the page. Raises GrantError."""

    def release(self) -> None:
        """End the use; idempotent."""


class MakeUse(Protocol):
    """Uses a grant, as `Pins.pin` does."""

    def __call__(self, gref: int, domid: int, *, readonly: bool, mapping: bool) -> Use:
        """Use a grant on behalf of domain `domid`. Raises GrantError."""


class Pins:
    """The uses of a domain's grants. `lookup` finds another domain's and raises XenError(ESRCH)."""

    def __init__(self, domid: int, shared: SharedTable, memory: GuestMemory, lookup: Callable[[int], Pins]) -> None:
        self.domid = domid
        self.memory = memory
        self._shared = shared
        self._lookup = lookup
        self._active: dict[int, _Active] = {}
        self._closed = False
        self.take_writable: Callable[[int], bool] | None = None
        """For a PV guest: have a gfn stay writable memory, which a page table is not, while others may write to it; tell whether it can."""
        self.give_writable: Callable[[int], None] | None = None

    @property
    def is_closed(self) -> bool:
        """Tell whether the domain is gone."""
        return self._closed

    def in_use(self, gref: int) -> bool:
        """Tell whether a grant is in use."""
        return gref in self._active

    @property
    def used(self) -> list[int]:
        """Return the grants in use, ascending."""
        return sorted(self._active)

    def describe(self, gref: int) -> str:
        """Tell who uses a grant that is in use."""
        active = self._active[gref]
        return f"domain {active.domid}, {active.readers} readers, {active.writers} writers, gfn {active.entry.gfn:#x}"

    def close(self) -> None:
        """Forget the table: the domain is gone, and with it the pages that hold its entries."""
        self._closed = True
        self._active.clear()

    def pin(self, gref: int, domid: int, *, readonly: bool, mapping: bool, transitive: bool = True) -> Pin:
        """Use a grant on behalf of domain `domid`, to map it or to copy once.

        `transitive` tells whether the grant may be one that passes on another domain's. Raises GrantError.
        """
        if self._closed or not 0 <= gref < self._shared.entries:
            raise GrantError(GNTST.bad_gntref, f"domain {self.domid} has no grant {gref}")
        active = self._active.get(gref)
        if active is not None:
            self._check_active(active, gref, domid, mapping=mapping)
        if active is None or not (readonly or active.writers):
            permits = partial(
                check_entry, gref=gref, domid=domid, readonly=readonly, mapping=mapping, pinned=active is not None
            )
            bits = GTF_reading if readonly else GTF_reading | GTF_writing
            entry = self._shared.mark(gref, permits, bits, GTF_reading if active is not None else 0)
            if active is None:
                active = _Active(domid, entry, None)
        inner = None
        try:
            if active.entry.trans_domid is not None:
                inner = self._pin_inner(active.entry, active.entry.trans_domid, readonly=readonly, allowed=transitive)
            elif active.frame is None:
                active.frame = self.own_frame(active.entry.gfn)
            first_writer = not readonly and not active.writers and inner is None
            if first_writer:
                self.take(active.entry.gfn)
        except GrantError:
            self._settle(gref, active, readonly=readonly)
            raise
        self._active[gref] = active
        if readonly:
            active.readers += 1
        else:
            active.writers += 1
        return Pin(self, gref, active, readonly=readonly, inner=inner)

    def unpin(self, gref: int, active: _Active, *, readonly: bool) -> None:
        """Undo one `pin`."""
        if self._closed:
            return
        if readonly:
            active.readers -= 1
        else:
            active.writers -= 1
            if not active.writers and active.entry.trans_domid is None:
                self.give(active.entry.gfn)
        if not (active.readers or active.writers):
            del self._active[gref]
        self._settle(gref, active, readonly=readonly)

    def _settle(self, gref: int, active: _Active, *, readonly: bool) -> None:
        """Clear the bits that a use has set in the entry and that no other calls for."""
        bits = 0 if readonly or active.writers else GTF_writing
        if not (active.readers or active.writers):
            bits |= GTF_reading
        self._shared.clear(gref, bits)

    def _check_active(self, active: _Active, gref: int, domid: int, *, mapping: bool) -> None:
        if active.domid != domid:
            raise GrantError(GNTST.general_error, f"grant {gref} is in use by domain {active.domid}, not {domid}")
        if active.readers >= _MAX_PINS or active.writers >= _MAX_PINS:
            raise GrantError(GNTST.general_error, f"grant {gref} is in use too often")
        if mapping and (active.entry.partial or active.entry.trans_domid is not None):
            raise GrantError(GNTST.general_error, f"grant {gref} can only be copied")

    def _pin_inner(self, entry: Entry, domid: int, *, readonly: bool, allowed: bool) -> Pin:
        if not allowed or domid == self.domid:
            raise GrantError(GNTST.general_error, "a transitive grant of a transitive one, or of one of its own domain")
        try:
            inner = self._lookup(domid)
        except XenError as error:
            raise GrantError(GNTST.general_error, f"transitive grant of domain {domid}: {error}") from None
        return inner.pin(entry.gref, self.domid, readonly=readonly, mapping=False, transitive=False)

    def take(self, gfn: int) -> None:
        """Have a page stay memory that may be written to, until `give`. Raises GrantError(general_error) if it is not."""
        if self.take_writable is not None and not self.take_writable(gfn):
            raise GrantError(GNTST.general_error, f"gfn {gfn:#x} cannot be written to")

    def give(self, gfn: int) -> None:
        """Undo one `take`."""
        if self.give_writable is not None:
            self.give_writable(gfn)

    def own_frame(self, gfn: int) -> Frame:
        """Return the page at a gfn if it is the domain's own: RAM, or one that we gave it.

        Raises GrantError(bad_page).
        """
        frame = self.memory.frame_of(gfn)
        if frame is None or not (self.memory.is_ram(gfn) or frame.fd == self._shared.frames[0].fd):
            raise GrantError(GNTST.bad_page, f"gfn {gfn:#x} of domain {self.domid} is not a page of its own")
        return frame
