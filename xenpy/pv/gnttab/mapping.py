"""Mappings of granted pages: into another guest, and into ourselves for a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from xenpy import libc
from xenpy.abi.grant_table import GNTST, GNTMAP_contains_pte, GNTMAP_host_map, GNTMAP_readonly
from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.gnttab.errors import GrantError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from xenpy.memory import Frame, GuestMemory
    from xenpy.pv.gnttab.pins import Pin, Use

MAPTRACK_PER_FRAME: Final = 256
"""Handles a guest gets for each of its max_maptrack_frames. Ref: PAGE_SIZE over Xen's 16-byte struct grant_mapping"""


class Mapper(Protocol):
    """How a granted page gets into a guest's address space. All methods raise GrantError."""

    def check(self, flags: int) -> None:
        """Refuse GNTMAP_* flags that this kind of guest cannot ask for."""

    def map(self, host_addr: int, flags: int, frame: Frame) -> int:
        """Map a page where `host_addr` and the flags say; return its address for devices."""

    def unmap(self, host_addr: int, flags: int, frame: Frame, new_addr: int = 0) -> None:
        """Undo a host mapping; `new_addr` names what takes the place of the mapping, 0 for nothing."""

    def release(self, flags: int, frame: Frame) -> None:
        """Take note that a page mapped once, with these flags, is used so no more, neither by the guest nor by its devices."""


class HvmMapper:
    """Maps into an auto-translated guest: `host_addr` is a gpa, and the page replaces what was at its gfn."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def check(self, flags: int) -> None:
        """Refuse all but a host mapping, read-only or not."""
        if flags & ~(GNTMAP_host_map | GNTMAP_readonly):
            raise GrantError(GNTST.general_error, f"map flags {flags:#x} from an auto-translated guest")

    def map(self, host_addr: int, flags: int, frame: Frame) -> int:
        """Place the page; devices have no address for it."""
        gfn = host_addr >> PAGE_SHIFT
        readonly = bool(flags & GNTMAP_readonly)
        try:
            self._memory.place(gfn, frame, readonly=readonly)
            if readonly:
                # The guest may point us at the page, as the place for a result: that must neither fault nor reach the
                # granter. A private mapping shows the page until somebody writes, who then gets a copy.
                hva = self._memory.hva(gfn << PAGE_SHIFT)
                prot, how = libc.PROT_READ | libc.PROT_WRITE, libc.MAP_PRIVATE | libc.MAP_FIXED
                libc.map_memory(hva, PAGE_SIZE, prot, how, frame.fd, frame.offset)
        except (XenError, OSError) as error:  # OSError: a guest may map more pages than the host lets us map
            raise GrantError(GNTST.general_error, f"gpa {host_addr:#x}: {error}") from None
        return 0

    def unmap(self, host_addr: int, flags: int, frame: Frame, new_addr: int = 0) -> None:
        """Leave the gfn empty."""
        gfn = host_addr >> PAGE_SHIFT
        if new_addr or flags & GNTMAP_contains_pte or self._memory.placed(gfn) != frame:
            raise GrantError(GNTST.general_error, f"no grant is mapped at gpa {host_addr:#x}")
        self._memory.unplace(gfn)

    def release(self, flags: int, frame: Frame) -> None:
        """Do nothing: what is mapped is all there is."""


@dataclass(slots=True)
class Handle:
    """What a grant handle of a guest stands for.

    `flags` are the GNTMAP_* it was made with, `live` those still in effect.
    """

    domid: int
    flags: int
    live: int
    pin: Pin
    dev_bus_addr: int


class GrantMapping:
    """A granted page mapped into ourselves, until `close`.

    It is the page of the granter's linear space, with no mapping of its own: as long as the granter keeps its promise
    to leave a granted page where it is, that is the granted page; a granter that puts another page in its place has us
    use that one.
    """

    __slots__ = ("_pin", "hva", "readonly", "view")

    def __init__(self, pin: Use) -> None:
        try:
            view, self.hva = pin.view()
        except GrantError:
            pin.release()
            raise
        self._pin = pin
        self.readonly = pin.readonly
        self.view = view.toreadonly() if pin.readonly else view
        """The page, live: 4096 bytes."""

    @property
    def gref(self) -> int:
        """Return the grant reference."""
        return self._pin.gref

    def close(self) -> None:
        """Let the granter have the page back; `view` must not be used any more. Idempotent."""
        self.view.release()
        self._pin.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
