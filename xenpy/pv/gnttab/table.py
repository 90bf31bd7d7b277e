"""A domain's grant table: what it grants, and what it has mapped of others' grants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.grant_table import (
    GNTST,
    GNTTAB_NR_RESERVED_ENTRIES,
    INVALID_GFN,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GTF_permit_access,
)
from xenpy.errors import Errno, XenError
from xenpy.pv.gnttab.copy import CopyEnd, copy
from xenpy.pv.gnttab.errors import GrantError
from xenpy.pv.gnttab.looking import Looking, Outline
from xenpy.pv.gnttab.mapping import MAPTRACK_PER_FRAME, GrantMapping, Handle, HvmMapper
from xenpy.pv.gnttab.pins import Pins
from xenpy.pv.gnttab.shared import SharedTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from xenpy.framepool import FramePool
    from xenpy.memory import Frame, GuestMemory
    from xenpy.pv.gnttab.mapping import Mapper
    from xenpy.pv.gnttab.pins import MakeUse
    from xenpy.pv.gnttab.shared import GrantTableState

DEFAULT_MAX_FRAMES: Final = 64
DEFAULT_MAX_MAPTRACK_FRAMES: Final = 1024
"""Ref: Xen command line, gnttab_max_frames and gnttab_max_maptrack_frames"""


class GrantTable:
    """The grant table of one domain.

    `lookup` finds another domain's table and raises XenError(ESRCH). `frame_number` tells the number by which the guest
    knows a page of the table, which for an auto-translated guest (the default) is the gfn where it has put it. `mapper`
    maps grants into the guest.
    """

    def __init__(
        self,
        domid: int,
        frames: FramePool,
        memory: GuestMemory,
        *,
        lookup: Callable[[int], GrantTable],
        max_frames: int = DEFAULT_MAX_FRAMES,
        max_maptrack_frames: int = DEFAULT_MAX_MAPTRACK_FRAMES,
        max_version: int = 2,
        frame_number: Callable[[Frame], int] | None = None,
        mapper: Mapper | None = None,
    ) -> None:
        self.domid = domid
        self.max_version = max_version
        self._memory = memory
        self._lookup = lookup
        self._shared = SharedTable(frames, max_frames)
        self._pins = Pins(domid, self._shared, memory, self._pins_of)
        self._make_use: MakeUse = self._pins.pin
        self._watchers: list[Callable[[], None]] = []
        self._frame_number = frame_number or self._gfn_of
        self._mapper: Mapper = mapper or HvmMapper(memory)
        self._max_handles = max_maptrack_frames * MAPTRACK_PER_FRAME
        self._handles: dict[int, Handle] = {}
        self._free_handles: list[int] = []

    def use_mapper(self, make: Callable[[int], Mapper]) -> None:
        """Map grants into the guest by what `make` returns for the number of mappings that there may be."""
        self._mapper = make(self._max_handles)

    def guard_writes(self, take: Callable[[int], bool], give: Callable[[int], None]) -> None:
        """Have `take` called with a gfn before somebody may write to it, which it may refuse, and `give` when nobody may any more."""
        self._pins.take_writable, self._pins.give_writable = take, give

    @property
    def make_use(self) -> MakeUse:
        """Return what uses a grant for a backend; traces and faults take its place."""
        return self._make_use

    @make_use.setter
    def make_use(self, make_use: MakeUse) -> None:
        self._make_use = make_use
        for hear in tuple(self._watchers):
            hear()

    @make_use.deleter
    def make_use(self) -> None:
        self.make_use = self._pins.pin

    @property
    def is_plain(self) -> bool:
        """Tell whether nothing has taken the place of `make_use`."""
        return self._make_use == self._pins.pin

    def watch_uses(self, hear: Callable[[], None]) -> Callable[[], None]:
        """Have `hear` called when something takes the place of `make_use` or gives it back; return what ends that."""
        self._watchers.append(hear)
        return lambda: self._watchers.remove(hear)

    def _pins_of(self, domid: int) -> Pins:
        return self._lookup(domid)._pins

    def _gfn_of(self, frame: Frame) -> int:
        gfns = self._memory.placed_gfns(frame)
        return gfns[0] if gfns else INVALID_GFN

    # -- size and version ---------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Return the version of the entries, 1 or 2."""
        return self._shared.version

    @property
    def nr_frames(self) -> int:
        """Return how many pages of entries there are."""
        return len(self._shared.frames)

    @property
    def fd(self) -> int:
        """Return the file that has the pages of entries."""
        return self._shared.frames[0].fd

    def outline(self) -> Outline | None:
        """Return what `Looking` needs; None for version 2, and where the RAM is nobody else's to map."""
        if self.version != 1 or self._memory.is_private:
            return None
        pages = [frame.offset for frame in self._shared.frames]
        return Outline(pages, *self._memory.main_run, self._pins.take_writable is None)

    def looking(self) -> Looking | None:
        """Return what looks grants up for a backend in this process, which is to be asked only while the table `is_plain`."""
        outline = self.outline()
        return None if outline is None else Looking(self._shared.words, outline)

    def guard(self, gfns: Sequence[int]) -> bool:
        """Have pages stay memory that may be written to, which page tables are not, until `unguard`; tell whether all of them can."""
        take = self._pins.take_writable
        if take is None:
            return True
        for number, gfn in enumerate(gfns):
            if not take(gfn):
                self.unguard(gfns[:number])
                return False
        return True

    def unguard(self, gfns: Iterable[int]) -> None:
        """Undo one `guard`."""
        give = self._pins.give_writable
        if give is not None and not self._pins.is_closed:
            for gfn in gfns:
                give(gfn)

    @property
    def max_frames(self) -> int:
        """Return how many pages of entries there may be."""
        return self._shared.max_frames

    def frame(self, index: int) -> Frame:
        """Return a page of entries; the table grows to have it. Raises XenError: EINVAL, ENOMEM."""
        self._shared.grow(index + 1)
        return self._shared.frames[index]

    def status_frame(self, index: int) -> Frame:
        """Return a page of version 2's status words; the table grows to have it. Raises XenError: EINVAL, ENOMEM."""
        self._shared.grow_status(index + 1)
        return self._shared.status_frames[index]

    def setup_table(self, nr_frames: int) -> list[int]:
        """Have at least so many pages of entries and return the numbers of as many. Raises GrantError."""
        try:
            self._shared.grow(nr_frames)
        except XenError as error:
            raise GrantError(GNTST.general_error, str(error)) from None
        return [self._frame_number(frame) for frame in self._shared.frames[:nr_frames]]

    def get_status_frames(self, nr_frames: int) -> list[int]:
        """Return the numbers of so many status pages. Raises GrantError if there are fewer."""
        frames = self._shared.status_frames
        if nr_frames > len(frames):
            raise GrantError(GNTST.general_error, f"{nr_frames} status pages of {len(frames)}")
        return [self._frame_number(frame) for frame in frames[:nr_frames]]

    def set_version(self, version: int) -> None:
        """Change the version of the entries; all but the reserved ones become invalid.

        Raises XenError: EINVAL (no such version), ENOSYS (not allowed to the domain), EBUSY (grants in use), ENOMEM.
        """
        if version not in (1, 2):
            raise XenError(Errno.EINVAL, f"grant table version {version}")
        if version > self.max_version:
            raise XenError(Errno.ENOSYS, f"grant table version {version} is not allowed")
        if version == self._shared.version:
            return
        if any(gref >= GNTTAB_NR_RESERVED_ENTRIES for gref in self._pins.used):
            raise XenError(Errno.EBUSY, "grants are in use")
        for frame in self._shared.status_frames:
            for gfn in self._memory.placed_gfns(frame):
                self._memory.unplace(gfn)
        self._shared.set_version(version)

    # -- entries ------------------------------------------------------------------------------------------------------

    def seed(self, gref: int, domid: int, gfn: int) -> None:
        """Grant a page on the guest's behalf before it runs, as the toolstack does with reserved grants."""
        self._shared.write(gref, GTF_permit_access, domid, gfn)

    def swap(self, gref_a: int, gref_b: int) -> None:
        """Swap two entries. Raises GrantError: bad_gntref, eagain (in use)."""
        for gref in (gref_a, gref_b):
            if gref >= self._shared.entries:
                raise GrantError(GNTST.bad_gntref, f"domain {self.domid} has no grant {gref}")
        if gref_a == gref_b:
            return
        if self._pins.in_use(gref_a) or self._pins.in_use(gref_b):
            raise GrantError(GNTST.eagain, f"grant {gref_a} or {gref_b} is in use")
        self._shared.swap(gref_a, gref_b)

    # -- what the domain does with others' grants ---------------------------------------------------------------------

    def map_grant_ref(self, host_addr: int, flags: int, domid: int, gref: int) -> tuple[int, int]:
        """Map another domain's grant into this one; return a handle and the page's address for devices.

        `flags` are GNTMAP_*, `host_addr` is what they make of it. Raises GrantError.
        """
        if not flags & (GNTMAP_device_map | GNTMAP_host_map):
            raise GrantError(GNTST.bad_gntref, f"map flags {flags:#x}")
        self._mapper.check(flags)
        granter = self._granter(domid)
        if len(self._handles) >= self._max_handles:
            raise GrantError(GNTST.no_space, "out of grant handles")
        pin = granter.pin(gref, self.domid, readonly=bool(flags & GNTMAP_readonly), mapping=True)
        try:
            dev_bus_addr = self._mapper.map(host_addr, flags, pin.frame)
        except GrantError:
            pin.release()
            raise
        handle = self._free_handles.pop() if self._free_handles else len(self._handles)
        live = flags & (GNTMAP_device_map | GNTMAP_host_map)
        self._handles[handle] = Handle(granter.domid, flags, live, pin, dev_bus_addr)
        return handle, dev_bus_addr

    def _granter(self, domid: int) -> Pins:
        if domid == DOMID_SELF:
            raise GrantError(GNTST.bad_domain, "DOMID_SELF is not understood where a granter is named")
        try:
            return self._pins if domid == self.domid else self._pins_of(domid)
        except XenError as error:
            raise GrantError(GNTST.bad_domain, str(error)) from None

    def unmap_grant_ref(self, host_addr: int, dev_bus_addr: int, handle: int, new_addr: int = 0) -> None:
        """Undo a mapping, or the half of it whose address is not 0; `new_addr` names what takes its place.

        Raises GrantError.
        """
        mapping = self._handles.get(handle)
        if mapping is None:
            raise GrantError(GNTST.bad_handle, f"grant handle {handle}")
        if dev_bus_addr and mapping.live & GNTMAP_device_map and dev_bus_addr != mapping.dev_bus_addr:
            raise GrantError(GNTST.bad_dev_addr, f"bus address {dev_bus_addr:#x} is not that of handle {handle}")
        if host_addr and mapping.live & GNTMAP_host_map:
            self._mapper.unmap(host_addr, mapping.flags, mapping.pin.frame, new_addr)
            mapping.live &= ~GNTMAP_host_map
        if dev_bus_addr:
            mapping.live &= ~GNTMAP_device_map
        if not mapping.live:
            del self._handles[handle]
            self._free_handles.append(handle)
            self._mapper.release(mapping.flags, mapping.pin.frame)
            mapping.pin.release()

    def copy(self, source: CopyEnd, dest: CopyEnd, length: int) -> None:
        """Copy `length` bytes within one page each, on this domain's behalf. Raises GrantError."""
        copy(self._pins, self._pins_of, source, dest, length)

    def accept_transfer(self, gref: int, domid: int, check: Callable[[int], None], take: Callable[[int], int]) -> None:
        """Take a page of another domain's by an entry of this one; `take` gets the gfn that it names and returns the frame's number.

        `check` gets it before, and raises XenError where there is no room. Raises GrantError(general_error).
        """
        if gref >= self._shared.entries:
            raise GrantError(GNTST.general_error, f"domain {self.domid} has no grant {gref}")
        gfn = self._shared.commit_transfer(gref, domid, check)
        self._shared.complete_transfer(gref, take(gfn))

    # -- backends -----------------------------------------------------------------------------------------------------

    def map_page(self, domid: int, gref: int, *, readonly: bool = False) -> GrantMapping:
        """Map a grant of this domain's into ourselves, on behalf of a backend in domain `domid`. Raises GrantError."""
        return GrantMapping(self.make_use(gref, domid, readonly=readonly, mapping=True))

    def read(self, domid: int, gref: int, offset: int, size: int) -> bytes:
        """Copy bytes out of a granted page, of which the grant may cover a part. Raises GrantError."""
        pin = self.make_use(gref, domid, readonly=True, mapping=False)
        try:
            return bytes(pin.part(offset, size))
        finally:
            pin.release()

    def write(self, domid: int, gref: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes into a granted page, of which the grant may cover a part. Raises GrantError."""
        pin = self.make_use(gref, domid, readonly=False, mapping=False)
        try:
            pin.part(offset, len(data))[:] = data
        finally:
            pin.release()

    # -- life ---------------------------------------------------------------------------------------------------------

    def destroy(self) -> None:
        """Release what the domain has mapped, and forget who uses its grants; before its memory and frames go."""
        for mapping in self._handles.values():
            mapping.pin.release()
        self._handles.clear()
        self._pins.close()

    def snapshot(self) -> GrantTableState:
        """Return the table as plain data. Raises XenError(EBUSY) while it or somebody else has mapped what is granted."""
        if self._handles:
            raise XenError(Errno.EBUSY, f"domain {self.domid} has mapped grants of others")
        if self._pins.used:
            raise XenError(Errno.EBUSY, f"grant {next(iter(self._pins.used))} of domain {self.domid} is in use")
        return self._shared.state()

    def restore(self, state: GrantTableState) -> None:
        """Take over what `snapshot` returned, into a new table whose pool has the same pages."""
        self._shared.load(state)

    def describe(self) -> list[str]:
        """Return a line for each grant in use and each handle."""
        return [
            f"version {self.version}, {self.nr_frames} of {self.max_frames} pages",
            *(f"grant {gref}: {self._pins.describe(gref)}" for gref in self._pins.used),
            *(
                f"handle {key}: grant {use.pin.gref} of domain {use.domid}"
                for key, use in sorted(self._handles.items())
            ),
        ]
