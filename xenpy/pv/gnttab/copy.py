"""Copies between pages, granted or the caller's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.grant_table import GNTST
from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.gnttab.errors import GrantError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.gnttab.pins import Pin, Pins


@dataclass(frozen=True, slots=True)
class CopyEnd:
    """Source or destination: a grant of `domid`, or a gfn of the caller if `gref` is None. `offset` in bytes."""

    domid: int
    offset: int
    gref: int | None = None
    gfn: int = 0


class OwnPage:
    """A page of the caller's that one end of a copy names; the destination has to be memory that the caller itself may write to."""

    def __init__(self, caller: Pins, gfn: int, *, readonly: bool) -> None:
        caller.own_frame(gfn)
        if not readonly:
            caller.take(gfn)
        self._caller, self._gfn, self._readonly = caller, gfn, readonly

    def part(self, offset: int, size: int) -> memoryview:
        """Return a part of the page."""
        return self._caller.memory.view((self._gfn << PAGE_SHIFT) + offset, size)

    def release(self) -> None:
        """Let the page be what it likes again."""
        if not self._readonly:
            self._caller.give(self._gfn)


def copy(caller: Pins, lookup: Callable[[int], Pins], source: CopyEnd, dest: CopyEnd, length: int) -> None:
    """Copy `length` bytes on behalf of a domain. `lookup` raises XenError(ESRCH). Raises GrantError."""
    owners = [_owner(caller, lookup, end) for end in (source, dest)]
    from_pin = to_pin = None
    try:
        from_pin = _pin(caller, owners[0], source, readonly=True)
        to_pin = _pin(caller, owners[1], dest, readonly=False)
        if source.offset + length > PAGE_SIZE or dest.offset + length > PAGE_SIZE:
            raise GrantError(GNTST.bad_copy_arg, f"copy of {length} bytes crosses a page boundary")
        to_pin.part(dest.offset, length)[:] = from_pin.part(source.offset, length)
    finally:
        for pin in (from_pin, to_pin):
            if pin is not None:
                pin.release()


def _pin(caller: Pins, owner: Pins, end: CopyEnd, *, readonly: bool) -> Pin | OwnPage:
    """Use the grant, or the page of the caller's, that one end names."""
    if end.gref is None:
        return OwnPage(caller, end.gfn, readonly=readonly)
    return owner.pin(end.gref, caller.domid, readonly=readonly, mapping=False)


def _owner(caller: Pins, lookup: Callable[[int], Pins], end: CopyEnd) -> Pins:
    if end.domid == DOMID_SELF:
        return caller
    if end.gref is None:
        raise GrantError(GNTST.permission_denied, f"gfn {end.gfn:#x} of domain {end.domid}")
    try:
        return caller if end.domid == caller.domid else lookup(end.domid)
    except XenError as error:
        raise GrantError(GNTST.bad_domain, str(error)) from None
