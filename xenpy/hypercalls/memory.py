"""memory_op: the guest-physical map, as an auto-translated guest sees it, and ballooning of every guest.

Ref: xen/include/public/memory.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import memory as abi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno, XenError
from xenpy.hypercalls import machine_memory
from xenpy.hypercalls.dispatch import Hypercall

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.hypercalls.call import Call
    from xenpy.hypercalls.protocols import Domain
    from xenpy.memory import Frame

    Action = Callable[[Call, Any, int, int], bool]
    """action(call, reservation, number in its list, where in the list that is): tells whether to go on."""

memory_op = Hypercall(12, "memory_op")

_CHUNK: Final = 512
"""So many extents of a list are read at once, and so many pages handled before others get their turn."""
_PLACEMENTS: Final = 64
"""The same for pages that are placed, each of which costs a mapping."""


def own_domain(call: Call, domid: int) -> Domain:
    """Return the caller's domain, which is the only one a domU may name. Raises XenError: ESRCH, EPERM."""
    if domid in (DOMID_SELF, call.domain.domid):
        return call.domain
    call.domain.peer(domid)
    raise XenError(Errno.EPERM, f"domain {domid} is not the caller")


# -- placing pages ----------------------------------------------------------------------------------------------------


def _refuse_pv(domain: Domain) -> None:
    """Raise XenError(EACCES) for a domain that has its machine frames instead of a map to place pages in."""
    if domain.is_pv:
        raise XenError(Errno.EACCES, "a PV guest has no map of its own")


def _source(domain: Domain, space: int, idx: int) -> Frame:
    """Return the frame that add_to_physmap names. Raises XenError."""
    if space == abi.XENMAPSPACE.shared_info:
        if idx:
            raise XenError(Errno.EINVAL, "shared_info has one page")
        return domain.shared_info.frame
    if space == abi.XENMAPSPACE.grant_table:
        if idx & abi.XENMAPIDX_grant_table_status:
            return domain.gnttab.status_frame(idx & ~abi.XENMAPIDX_grant_table_status)
        return domain.gnttab.frame(idx)
    if space in (abi.XENMAPSPACE.gmfn, abi.XENMAPSPACE.gmfn_range):
        frame = domain.memory.frame_of(idx)
        if frame is None:
            raise XenError(Errno.EINVAL, f"gfn {idx:#x} is empty")
        if frame.fd != domain.memory.ram_fd and not domain.frames.owns(frame):
            raise XenError(Errno.EPERM, f"gfn {idx:#x} holds another domain's page")
        return frame
    raise XenError(Errno.ENOSYS if space > abi.XENMAPSPACE.dev_mmio else Errno.EINVAL, f"map space {space}")


def _place(domain: Domain, space: int, idx: int, gfn: int) -> None:
    """Put a page at a gfn, and away from where it was before."""
    memory = domain.memory
    frame = _source(domain, space, idx)
    if space in (abi.XENMAPSPACE.gmfn, abi.XENMAPSPACE.gmfn_range):
        if idx == gfn:
            return
        if memory.is_ram(idx):
            raise XenError(Errno.EOPNOTSUPP, "moving RAM pages within a domain is not supported")
    before = memory.placed_gfns(frame)
    memory.place(gfn, frame)  # first, so that a page which cannot go there stays where it is
    for old in before:
        if old != gfn:
            memory.unplace(old)
    if space == abi.XENMAPSPACE.shared_info:
        domain.shared_info_placed(gfn)


@memory_op.handles(abi.XENMEM_add_to_physmap)
def add_to_physmap(call: Call, op: Any) -> None:
    """Map one page of the hypervisor's, or move one of the guest's, to a gfn."""
    domain = own_domain(call, op.domid)
    _refuse_pv(domain)
    if op.space == abi.XENMAPSPACE.gmfn_foreign:
        raise XenError(Errno.EINVAL, "foreign pages are mapped by add_to_physmap_batch only")
    if op.space == abi.XENMAPSPACE.gmfn_range:
        while op.size:
            if op.size % _PLACEMENTS == 0:
                call.checkpoint()
            _place(domain, op.space, op.idx, op.gpfn)
            op.idx += 1
            op.gpfn += 1
            op.size -= 1
        return
    _place(domain, op.space, op.idx, op.gpfn)


@memory_op.handles(abi.XENMEM_add_to_physmap_batch)
def add_to_physmap_batch(call: Call, op: Any) -> None:
    """Map several pages; each one's result goes to `errs`."""
    domain = own_domain(call, op.domid)
    _refuse_pv(domain)
    if op.space == abi.XENMAPSPACE.gmfn_foreign:
        call.domain.peer(op.foreign_domid)
        raise XenError(Errno.EPERM, "a domU may not map foreign pages")
    if op.foreign_domid:
        raise XenError(Errno.EINVAL, "foreign_domid without gmfn_foreign")
    for index in range(op.size):
        if index % _PLACEMENTS == _PLACEMENTS - 1:
            call.checkpoint()
        (idx,) = call.words(op.idxs + index * call.word_size, 1)
        (gfn,) = call.words(op.gpfns + index * call.word_size, 1)
        result = 0
        try:
            _place(domain, op.space, idx, gfn)
        except XenError as error:
            result = -error.errno
        call.store_words(op.errs + index * 4, [result], 4)


@memory_op.handles(abi.XENMEM_remove_from_physmap)
def remove_from_physmap(call: Call, op: Any) -> None:
    """Leave a gfn empty."""
    domain = own_domain(call, op.domid)
    _refuse_pv(domain)
    memory = domain.memory
    if memory.unplace(op.gpfn) is None and not memory.release(op.gpfn):
        raise XenError(Errno.ENOENT, f"gfn {op.gpfn:#x} is empty")


# -- sizes ------------------------------------------------------------------------------------------------------------


@memory_op.handles(abi.XENMEM_maximum_ram_page)
def maximum_ram_page(call: Call) -> int:
    """Return the highest machine frame."""
    return call.domain.memory.max_gfn


@memory_op.handles(abi.XENMEM_current_reservation)
def current_reservation(call: Call, op: Any) -> int:
    """Return how many pages the domain holds."""
    return own_domain(call, op.domid).memory.ram_pages


@memory_op.handles(abi.XENMEM_maximum_reservation)
def maximum_reservation(call: Call, op: Any) -> int:
    """Return how many pages the domain may hold."""
    return own_domain(call, op.domid).max_pages


@memory_op.handles(abi.XENMEM_maximum_gpfn)
def maximum_gpfn(call: Call, op: Any) -> int:
    """Return the highest gfn in use."""
    return own_domain(call, op.domid).memory.max_gfn


@memory_op.handles(abi.XENMEM_memory_map)
def memory_map(call: Call, op: Any) -> None:
    """Copy out the memory map in E820 format; a buffer too small gets what fits."""
    table = call.domain.e820[: op.nr_entries]
    data = b"".join(
        base.to_bytes(8, "little") + size.to_bytes(8, "little") + kind.to_bytes(4, "little")
        for base, size, kind in table
    )
    call.write(op.buffer, data)
    op.nr_entries = len(table)


@memory_op.handles(abi.XENMEM_machine_memory_map)
def machine_memory_map(_call: Call) -> None:
    """Refuse: the machine's own map is for dom0."""
    raise XenError(Errno.EPERM, "the machine memory map is for dom0")


@memory_op.handles(abi.XENMEM_set_memory_map)
def set_memory_map(_call: Call) -> None:
    """Refuse: the memory map is set by the toolstack."""
    raise XenError(Errno.EPERM, "the memory map is set by the toolstack")


# -- reservations -----------------------------------------------------------------------------------------------------


def _extents(call: Call, op: Any) -> tuple[Domain, int, int]:
    """Check a reservation; return the domain, the number of extents and the pages in each. Raises XenError."""
    domain = own_domain(call, op.domid)
    if op.extent_order > machine_memory.MAX_EXTENT_ORDER:
        raise XenError(Errno.EPERM, f"extents of 2^{op.extent_order} pages")
    return domain, op.nr_extents, 1 << op.extent_order


def _walk(call: Call, op: Any, action: Action) -> int:
    """Carry out an action on each extent; return how many went through before the first that did not."""
    _, count, pages = _extents(call, op)
    at_once = _CHUNK // pages
    done = 0
    while done < count:
        step = min(at_once, count - done)
        try:
            numbers = call.words(op.extent_start + done * call.word_size, step)
        except XenError:
            if step == 1:
                return done
            at_once = 1  # the list leaves the guest's memory within the chunk: what comes before counts
            continue
        for number in numbers:
            if not action(call, op, number, op.extent_start + done * call.word_size):
                return done
            done += 1
        call.checkpoint()
    return done


def _release_extent(call: Call, op: Any, gfn: int, _gva: int) -> bool:
    memory = call.domain.memory
    released = [memory.unplace(g) is not None or memory.release(g) for g in range(gfn, gfn + (1 << op.extent_order))]
    return all(released)


def _populate_extent(call: Call, op: Any, gfn: int, _gva: int) -> bool:
    memory, pages = call.domain.memory, 1 << op.extent_order
    if memory.ram_pages + pages > call.domain.max_pages:
        return False
    for index in range(pages):
        if memory.is_ram(gfn + index):
            continue  # Xen would replace the page by another: the guest cannot tell, but for its contents
        if not memory.populate(gfn + index):
            return False
    return True


@memory_op.handles(abi.XENMEM_decrease_reservation)
def decrease_reservation(call: Call, op: Any) -> int:
    """Give pages back to the host; return how many extents were given back."""
    return _walk(call, op, machine_memory.release_extent if call.domain.is_pv else _release_extent)


@memory_op.handles(abi.XENMEM_populate_physmap)
def populate_physmap(call: Call, op: Any) -> int:
    """Put memory at empty gfns; return how many extents were populated."""
    return _walk(call, op, machine_memory.populate_extent if call.domain.is_pv else _populate_extent)


@memory_op.handles(abi.XENMEM_increase_reservation)
def increase_reservation(call: Call, op: Any) -> int:
    """Give a PV guest frames without a pfn; return how many extents. An auto-translated guest has no use for any and gets none."""
    _, count, _ = _extents(call, op)
    return machine_memory.add_extents(call, op, count) if call.domain.is_pv else 0
