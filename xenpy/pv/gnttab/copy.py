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


def copy(caller: Pins, lookup: Callable[[int], Pins], source: CopyEnd, dest: CopyEnd, length: int) -> None:
    """Copy `length` bytes on behalf of a domain. `lookup` raises XenError(ESRCH). Raises GrantError."""
    owners = [_owner(caller, lookup, end) for end in (source, dest)]
    from_pin = to_pin = None
    try:
        from_pin = _pin(caller, owners[0], source, readonly=True)
        to_pin = _pin(caller, owners[1], dest, readonly=False)
        if source.offset + length > PAGE_SIZE or dest.offset + length > PAGE_SIZE:
            raise GrantError(GNTST.bad_copy_arg, f"copy of {length} bytes crosses a page boundary")
        from_part = _part(caller, from_pin, source, length)
        _part(caller, to_pin, dest, length)[:] = from_part
    finally:
        for pin in (from_pin, to_pin):
            if pin is not None:
                pin.release()


def _pin(caller: Pins, owner: Pins, end: CopyEnd, *, readonly: bool) -> Pin | None:
    """Use the grant that one end names; check the gfn of an end that is a page of the caller's."""
    if end.gref is None:
        caller.own_frame(end.gfn)
        return None
    return owner.pin(end.gref, caller.domid, readonly=readonly, mapping=False)


def _part(caller: Pins, pin: Pin | None, end: CopyEnd, length: int) -> memoryview:
    if pin is not None:
        return pin.part(end.offset, length)
    return caller.memory.view((end.gfn << PAGE_SHIFT) + end.offset, length)


def _owner(caller: Pins, lookup: Callable[[int], Pins], end: CopyEnd) -> Pins:
    if end.domid == DOMID_SELF:
        return caller
    if end.gref is None:
        raise GrantError(GNTST.permission_denied, f"gfn {end.gfn:#x} of domain {end.domid}")
    try:
        return caller if end.domid == caller.domid else lookup(end.domid)
    except XenError as error:
        raise GrantError(GNTST.bad_domain, str(error)) from None
