"""grant_table_op: the size and version of the caller's table, and its use of other domains' grants.

Most commands tell how they went in a status field of their argument, and succeed as hypercalls whatever it says.

Ref: xen/include/public/grant_table.h
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import grant_table as abi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import ArrayHypercall
from xenpy.hypercalls.domids import DOM0, own_domain
from xenpy.hypercalls.pv import mmu_of, pv_vcpu
from xenpy.pv.gnttab import CopyEnd, GrantError
from xenpy.pv.mmu.entries import is_guest_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.hypercalls.call import Call

_SINGLE: Final = {
    abi.GNTTABOP_setup_table.number,
    abi.GNTTABOP_query_size.number,
    abi.GNTTABOP_get_status_frames.number,
}
"""Commands that take one structure, however many the others take."""
_STATUS_FRAME_SIZE: Final = 8
"""Frame numbers of status pages are 64 bits wide in both ABIs."""


class _GrantTableOp(ArrayHypercall):
    def __call__(self, call: Call) -> int | None:
        """Refuse several structures where one is expected, then carry out the command."""
        if self.command(call) in _SINGLE and call.args[2] & 0xFFFFFFFF != 1:
            return -Errno.EINVAL
        return super().__call__(call)


grant_table_op = _GrantTableOp(20, "grant_table_op")


def _tells_status(handler: Callable[[Call, Any], None]) -> Callable[[Call, Any], None]:
    """Have a handler's GrantError, or its success, appear in the status field."""

    @wraps(handler)
    def wrapper(call: Call, op: Any) -> None:
        try:
            handler(call, op)
        except GrantError as error:
            op.status = error.status
        else:
            op.status = abi.GNTST.okay

    return wrapper


def _require_self_in_status(call: Call, domid: int) -> None:
    """Refuse to tell of another domain's table. Raises GrantError: bad_domain, permission_denied."""
    try:
        own_domain(call, domid)
    except XenError as error:
        status = abi.GNTST.permission_denied if error.errno == Errno.EPERM else abi.GNTST.bad_domain
        raise GrantError(status, error.reason) from None


def _require_pv(call: Call) -> None:
    """Refuse a command that Xen does not offer to auto-translated guests. Raises XenError(ENOSYS)."""
    if not call.domain.is_pv:
        raise XenError(Errno.ENOSYS, "the command is for PV guests")


# -- the caller's table -----------------------------------------------------------------------------------------------


@grant_table_op.handles(abi.GNTTABOP_setup_table)
@_tells_status
def setup_table(call: Call, op: Any) -> None:
    """Grow the table and tell its pages' frame numbers."""
    _require_self_in_status(call, op.dom)
    _store_list(call, op.frame_list, call.domain.gnttab.setup_table(op.nr_frames), call.word_size)


@grant_table_op.handles(abi.GNTTABOP_get_status_frames)
@_tells_status
def get_status_frames(call: Call, op: Any) -> None:
    """Tell the frame numbers of version 2's status pages."""
    _require_pv(call)
    _require_self_in_status(call, op.dom)
    _store_list(call, op.frame_list, call.domain.gnttab.get_status_frames(op.nr_frames), _STATUS_FRAME_SIZE)


def _store_list(call: Call, gva: int, numbers: Sequence[int], size: int) -> None:
    """Copy frame numbers out. Raises GrantError(bad_virt_addr), or XenError(EFAULT) for a PV kernel's address that is not the guest's."""
    try:
        call.store_words(gva, numbers, size)
    except XenError as error:
        if call.domain.is_pv and not is_guest_address(gva):
            raise
        raise GrantError(abi.GNTST.bad_virt_addr, error.reason) from None


@grant_table_op.handles(abi.GNTTABOP_query_size)
@_tells_status
def query_size(call: Call, op: Any) -> None:
    """Tell how many pages the table has, and may have."""
    _require_self_in_status(call, op.dom)
    op.nr_frames, op.max_nr_frames = call.domain.gnttab.nr_frames, call.domain.gnttab.max_frames


@grant_table_op.handles(abi.GNTTABOP_set_version)
def set_version(call: Call, op: Any) -> None:
    """Change the layout of the entries."""
    call.domain.gnttab.set_version(op.version)


@grant_table_op.handles(abi.GNTTABOP_get_version)
def get_version(call: Call, op: Any) -> None:
    """Tell the layout of the entries."""
    own_domain(call, op.dom)
    op.version = call.domain.gnttab.version


@grant_table_op.handles(abi.GNTTABOP_swap_grant_ref)
@_tells_status
def swap_grant_ref(call: Call, op: Any) -> None:
    """Swap two entries."""
    call.domain.gnttab.swap(op.ref_a, op.ref_b)


# -- others' grants ---------------------------------------------------------------------------------------------------


@grant_table_op.handles(abi.GNTTABOP_map_grant_ref)
@_tells_status
def map_grant_ref(call: Call, op: Any) -> None:
    """Map a granted page."""
    op.handle, op.dev_bus_addr = call.domain.gnttab.map_grant_ref(op.host_addr, op.flags, op.dom, op.ref)


@grant_table_op.handles(abi.GNTTABOP_unmap_grant_ref)
@_tells_status
def unmap_grant_ref(call: Call, op: Any) -> None:
    """Unmap a granted page."""
    call.domain.gnttab.unmap_grant_ref(op.host_addr, op.dev_bus_addr, op.handle)


@grant_table_op.handles(abi.GNTTABOP_unmap_and_replace)
@_tells_status
def unmap_and_replace(call: Call, op: Any) -> None:
    """Unmap a granted page and move another mapping to its place."""
    _require_pv(call)
    call.domain.gnttab.unmap_grant_ref(op.host_addr, 0, op.handle, op.new_addr)


@grant_table_op.handles(abi.GNTTABOP_copy)
@_tells_status
def copy(call: Call, op: Any) -> None:
    """Copy between two pages, granted or the caller's own."""
    source = _copy_end(op.source, granted=bool(op.flags & abi.GNTCOPY_source_gref))
    dest = _copy_end(op.dest, granted=bool(op.flags & abi.GNTCOPY_dest_gref))
    call.domain.gnttab.copy(source, dest, op.len)


def _copy_end(pointer: Any, *, granted: bool) -> CopyEnd:
    if granted:
        return CopyEnd(pointer.domid, pointer.offset, gref=pointer.u.ref)
    return CopyEnd(pointer.domid, pointer.offset, gfn=pointer.u.gmfn)


@grant_table_op.handles(abi.GNTTABOP_transfer)
@_tells_status
def transfer(call: Call, op: Any) -> None:
    """Give a page that nothing refers to away. Once it is known to be such it is gone, whatever becomes of it, as by Xen."""
    _require_pv(call)
    try:
        data = mmu_of(call).reservation.steal(op.mfn)
    except XenError as error:
        raise GrantError(abi.GNTST.bad_page, error.reason) from None
    pv_vcpu(call).flush_on(None, None)
    if op.domid == DOM0:
        raise GrantError(abi.GNTST.general_error, "domain 0 accepts no pages")
    try:
        if op.domid == DOMID_SELF:
            raise XenError(Errno.ESRCH, "DOMID_SELF is not understood here")
        receiver = call.domain.peer(op.domid)
    except XenError as error:
        raise GrantError(abi.GNTST.bad_domain, error.reason) from None
    receiver.gnttab.accept_transfer(
        op.ref, call.domain.domid, receiver.check_room, lambda gfn: receiver.accept_page(gfn, data)
    )
