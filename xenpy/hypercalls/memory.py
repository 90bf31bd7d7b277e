"""memory_op: the guest-physical map, as an auto-translated guest sees it, and ballooning of every guest.

Ref: xen/include/public/memory.h
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import memory as abi
from xenpy.errors import Errno, XenError
from xenpy.hypercalls import machine_memory
from xenpy.hypercalls.dispatch import Hypercall
from xenpy.hypercalls.domids import own_domain, refusal
from xenpy.hypercalls.pv import pv_domain

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.hypercalls.call import Call
    from xenpy.hypercalls.protocols import Domain
    from xenpy.memory import Frame

    Action = Callable[[Call, Any, int, int], bool]
    """action(call, reservation, number in its list, where in the list that is): tells whether to go on."""

_COMMAND_BITS: Final = 6
_COMMAND_MASK: Final = (1 << _COMMAND_BITS) - 1
"""Ref: xen/include/public/memory.h; in Xen MEMOP_EXTENT_SHIFT"""
_MAX_EXTENTS: Final = (1 << 32 - _COMMAND_BITS) - 1
"""More could not be told in the command's upper bits."""
_RESERVATIONS: Final = frozenset(
    op.number for op in (abi.XENMEM_increase_reservation, abi.XENMEM_decrease_reservation, abi.XENMEM_populate_physmap)
)
_UNDIVIDED: Final = frozenset(
    op.number
    for op in (
        abi.XENMEM_maximum_ram_page, abi.XENMEM_current_reservation, abi.XENMEM_maximum_reservation, abi.XENMEM_exchange,
        abi.XENMEM_maximum_gpfn, abi.XENMEM_remove_from_physmap,
    )
)  # fmt: skip
_E820: Final = Struct("<QQI")
_E820_MAX: Final = 1024
"""So many entries Xen keeps of a memory map."""
_CHUNK: Final = 512
"""So many extents of a list are read at once, and so many pages handled before others get their turn."""
_PLACEMENTS: Final = 64
"""The same for pages that are placed, each of which costs a mapping."""


def _start(call: Call) -> int:
    """Return how many extents are done already by the upper bits of a command, which are for Xen's own use: to go on after a break."""
    return call.args[0] >> _COMMAND_BITS


class _MemoryOp(Hypercall):
    """Its command is what is below those bits."""

    def command(self, call: Call) -> int:
        return call.args[0] & _COMMAND_MASK

    def __call__(self, call: Call) -> int | None:
        command, start = self.command(call), _start(call)
        if command in _RESERVATIONS:
            try:
                return super().__call__(call)
            except XenError:
                return start  # what cannot be begun is done as far as it was, without an errno
        if start and command in _UNDIVIDED:
            raise XenError(Errno.EINVAL, f"memory_op {command} does not go on at {start}")
        return super().__call__(call)


memory_op = _MemoryOp(12, "memory_op")


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
    if op.space == abi.XENMAPSPACE.gmfn_foreign:
        raise XenError(Errno.ENOSYS, "foreign pages are mapped by add_to_physmap_batch only")
    domain = own_domain(call, op.domid)
    _refuse_pv(domain)
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
    if op.space == abi.XENMAPSPACE.gmfn_range:
        raise XenError(Errno.EOPNOTSUPP, "ranges are mapped by add_to_physmap only")
    domain = own_domain(call, op.domid)
    _refuse_pv(domain)
    if op.space == abi.XENMAPSPACE.gmfn_foreign:
        raise refusal(call, op.foreign_domid)
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
    """Return the number behind the highest machine frame's."""
    return call.domain.memory.max_gfn + 1


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
    """Return the highest gfn in use; of a PV guest, the highest pfn that it has put into shared_info."""
    domain = own_domain(call, op.domid)
    return max(0, domain.shared_info.max_pfn - 1) if domain.is_pv else domain.memory.max_gfn


@memory_op.handles(abi.XENMEM_memory_map)
def memory_map(call: Call, op: Any) -> None:
    """Copy out the memory map in E820 format; a buffer too small gets what fits."""
    table = call.domain.e820[: op.nr_entries]
    call.write(op.buffer, b"".join(_E820.pack(*entry) for entry in table))
    op.nr_entries = len(table)


@memory_op.handles(abi.XENMEM_machine_memory_map)
def machine_memory_map(call: Call) -> None:
    """Refuse: the machine's own map is for dom0. An auto-translated guest is told that there is no such thing."""
    pv_domain(call)
    raise XenError(Errno.EPERM, "the machine memory map is for dom0")


@memory_op.handles(abi.XENMEM_set_memory_map)
def set_memory_map(call: Call, op: Any) -> None:
    """Set what memory_map tells from now on, as a kernel does that starts another. The toolstack sets other domains'."""
    if op.map.nr_entries > _E820_MAX:
        raise XenError(Errno.EINVAL, f"a memory map of {op.map.nr_entries} entries")
    domain = own_domain(call, op.domid)
    data = call.read(op.map.buffer, op.map.nr_entries * _E820.size)
    domain.e820 = tuple(_E820.iter_unpack(data))


# -- reservations -----------------------------------------------------------------------------------------------------


def _extents(call: Call, op: Any) -> tuple[int, int]:
    """Check a reservation; return the number of extents in all and of those done already. Raises XenError."""
    own_domain(call, op.domid)
    start = _start(call)
    if op.nr_extents > _MAX_EXTENTS or start >= op.nr_extents:
        raise XenError(Errno.EINVAL, f"{op.nr_extents} extents")
    if op.extent_order > machine_memory.MAX_EXTENT_ORDER:
        raise XenError(Errno.EPERM, f"extents of 2^{op.extent_order} pages")
    return op.nr_extents, start


def _walk(call: Call, op: Any, action: Action) -> int:
    """Carry out an action on each extent; return how many went through before the first that did not."""
    count, done = _extents(call, op)
    at_once = _CHUNK >> op.extent_order
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
            try:
                if not action(call, op, number, op.extent_start + done * call.word_size):
                    return done
            except XenError:
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
    count, done = _extents(call, op)
    return machine_memory.add_extents(call, op, done, count) if call.domain.is_pv else done
