"""A guest's event channels: its ports, and which of the two ABIs carries their events to it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import EVTCHN_FIFO_LINK_BITS, EVTCHN_FIFO_PRIORITY_DEFAULT
from xenpy.errors import Errno, XenError
from xenpy.pv.evtchn.table import PortTable
from xenpy.pv.evtchn.two_level import TwoLevel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.memory import GuestMemory
    from xenpy.pv.evtchn.fifo import Fifo
    from xenpy.pv.evtchn.port import ChannelsState
    from xenpy.pv.shared_info import SharedInfo

DEFAULT_MAX_PORTS: Final = 1024
"""Ports 0 to 1023, unless the guest's configuration says otherwise. Ref: xl.cfg(5), max_event_channels"""


def _ignore(_port: int) -> None:
    """Take no notice: nobody polls."""


class EventChannels(PortTable):
    """The event channels of a guest.

    `upcall(vcpu_id)` is called when evtchn_upcall_pending of a vCPU goes from 0 to 1, and has to get it to the guest;
    `wake_poller(port)` when an event becomes pending on a port, masked or not.
    """

    def __init__(
        self,
        domid: int,
        shared_info: SharedInfo,
        memory: GuestMemory,
        nr_vcpus: int,
        *,
        lookup: Callable[[int], PortTable],
        upcall: Callable[[int], None],
        wake_poller: Callable[[int], None] = _ignore,
        max_ports: int = DEFAULT_MAX_PORTS,
    ) -> None:
        self._vcpu_info = shared_info.vcpu_info
        self._memory = memory
        self._upcall = upcall
        self._wake_poller = wake_poller
        self._two_level = TwoLevel(shared_info, self._mark_upcall, wake_poller)
        self._fifo: Fifo | None = None
        self.has_fifo = True
        """Whether the guest may choose the FIFO ABI."""
        self._take: Callable[[int], bool] = lambda _gfn: True
        self._give: Callable[[int], None] = _ignore
        super().__init__(domid, nr_vcpus, self._two_level, lookup=lookup, max_ports=max_ports)

    @property
    def is_fifo(self) -> bool:
        """Tell whether the guest has chosen the FIFO ABI."""
        return self._fifo is not None

    def by_kernel(self, deliver: Callable[[int, int], bool] | None) -> None:
        """Have events of the 2-level ABI be delivered by `deliver(port, vcpu_id)`, as far as that can, or not any more (None)."""
        self._two_level.by_kernel = deliver

    def guard_writes(self, take: Callable[[int], bool], give: Callable[[int], None]) -> None:
        """Have `take` called with a gfn before events are written there, which it may refuse, and `give` when none are any more."""
        self._take, self._give = take, give

    def _mark_upcall(self, vcpu_id: int) -> None:
        if not self._vcpu_info[vcpu_id].set_upcall_pending():
            self._upcall(vcpu_id)

    def init_control(self, gfn: int, offset: int, vcpu_id: int) -> int:
        """Take a vCPU's control block into use and return how many bits LINK has.

        The first call switches to the FIFO ABI; events pending then are delivered as the event array grows to hold
        them.

        Raises XenError: ENOSYS (there is no such ABI), ENOENT (no such vCPU), EINVAL (misaligned, crossing the page, no RAM that may be
        written to, a second one).
        """
        if not self.has_fifo:
            raise XenError(Errno.ENOSYS, "the FIFO ABI is not offered")
        self._check_vcpu(vcpu_id)
        fifo = self._fifo if self._fifo is not None else self._new_fifo()
        with self._writable(gfn):
            fifo.add_control_block(vcpu_id, gfn, offset)
        if self._fifo is not None:
            return EVTCHN_FIFO_LINK_BITS
        for entry in self._usable():
            entry.pending = self._two_level.is_pending(entry)
            entry.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        self._fifo = fifo
        self._deliver_by(fifo)
        return EVTCHN_FIFO_LINK_BITS

    @contextmanager
    def _writable(self, gfn: int) -> Iterator[None]:
        """Have a page stay one that may be written to, unless it is not taken into use after all. Raises XenError(EINVAL)."""
        if not self._take(gfn):
            raise XenError(Errno.EINVAL, f"gfn {gfn:#x} cannot be written to")
        try:
            yield
        except XenError:
            self._give(gfn)
            raise

    def _new_fifo(self) -> Fifo:
        from xenpy.pv.evtchn.fifo import Fifo  # many guests never ask for it

        return Fifo(self._memory, self._nr_vcpus, self._mark_upcall, self._wake_poller)

    def expand_array(self, gfn: int) -> None:
        """Append a page to the event array; events that waited for it are delivered.

        Raises XenError: EOPNOTSUPP (2-level ABI), ENOSPC (128 pages there), EINVAL (no RAM that may be written to).
        """
        if self._fifo is None:
            raise XenError(Errno.EOPNOTSUPP, "no event array under the 2-level ABI")
        with self._writable(gfn):
            added = self._fifo.add_array_page(gfn)
        for entry in self._ports[added.start : added.stop]:
            if entry.pending:
                entry.pending = False
                self.deliver(entry)

    def reset(self) -> None:
        """Close every port and go back to the 2-level ABI."""
        super().reset()
        if self._fifo is not None:
            self._deliver_by(self._two_level)
            for page in self._fifo.state().pages():
                self._give(page)
            self._fifo.close()
            self._fifo = None
            for entry in self._ports:
                entry.last_queue = None

    def memory_frozen(self) -> None:
        """Take note that the guest's RAM has become private."""
        if self._fifo is not None:
            self._fifo.remap()

    def snapshot(self) -> ChannelsState:
        """Return all of it that is not in guest memory as plain data."""
        return replace(super().snapshot(), fifo=None if self._fifo is None else self._fifo.state())

    def restore(self, state: ChannelsState) -> None:
        """Take over what `snapshot` returned, into a new table of a domain with the same memory, shared_info and vCPUs.

        An interdomain port comes back unbound, open to the domain it was connected to: the other end binds anew.

        Raises XenError(EINVAL) if a page of the FIFO ABI is not RAM.
        """
        super().restore(state)
        if state.fifo is None:
            return
        fifo = self._new_fifo()
        fifo.load(state.fifo)
        # A closed port is not saved, but may still be the last of a queue.
        for vcpu_id, tails in enumerate(state.fifo.tails):
            for priority, tail in enumerate(tails):
                if tail:
                    self._entry(tail).last_queue = fifo.queue(vcpu_id, priority)
        for saved in state.ports:
            if saved.last_queue is not None:
                self._ports[saved.number].last_queue = fifo.queue(*saved.last_queue)
        self._fifo = fifo
        self._deliver_by(fifo)
