"""A domain's table of ports: allocation, binding, closing and sending, whoever the domain is.

Ref: xen/include/public/event_channel.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import DOMID_SELF, EVTCHNSTAT, NR_VIRQS, PER_VCPU_VIRQS
from xenpy.errors import Errno, XenError
from xenpy.pv.evtchn.port import CLOSED, INTERDOMAIN, IPI, UNBOUND, VIRQ, ChannelsState, Port, PortState, PortStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.pv.evtchn.port import Delivery

    Deliver = Callable[[Port], None]


def _ignore_change(_entry: Port) -> None:
    """Take no notice: nobody else knows of the ports."""


_PORTS_PER_BUCKET: Final = 64
"""The table grows by so many ports, all of which are valid (and closed) from then on, as in Xen."""


class PortTable:
    """The ports of one domain.

    `lookup` finds another domain's table and raises XenError(ESRCH); `max_ports` is how many ports, the unusable port 0
    included, the domain may use. Ports, vcpu_ids and domids may be any number a guest passed. Every refusal is a
    XenError.
    """

    def __init__(
        self,
        domid: int,
        nr_vcpus: int,
        delivery: Delivery,
        *,
        lookup: Callable[[int], PortTable],
        max_ports: int,
    ) -> None:
        self.domid = domid
        self.max_ports = max_ports
        self._nr_vcpus = nr_vcpus
        self._lookup = lookup
        self._ports: list[Port] = []
        self._virqs: list[list[Port | None]] = [[None] * NR_VIRQS for _ in range(nr_vcpus)]
        self._first_free = 1  # no free port has a lower number; 0 is never handed out
        self._dying = False
        self._interposed: list[Callable[[Deliver], Deliver]] = []
        self.changed: Callable[[Port], None] = _ignore_change
        """Hears of each port whose binding or vCPU has changed, before any event passes by what it is now."""
        self._deliver_by(delivery)
        self._grow()

    def _deliver_by(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self.deliver: Deliver = delivery.set_pending
        """Make an event pending on one of the domain's ports."""
        for wrap in self._interposed:
            self.deliver = wrap(self.deliver)

    def interpose(self, wrap: Callable[[Deliver], Deliver]) -> Callable[[], None]:
        """Have events delivered by `wrap(deliver)`, whichever ABI is in use, until what this returns is called: for traces and faults."""
        self._interposed.append(wrap)
        self._deliver_by(self._delivery)

        def undo() -> None:
            self._interposed.remove(wrap)
            self._deliver_by(self._delivery)

        return undo

    # -- ports --------------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        first = len(self._ports)
        self._ports += [Port(self, number) for number in range(first, first + _PORTS_PER_BUCKET)]

    def _entry(self, port: int) -> Port:
        if port >= len(self._ports):
            raise XenError(Errno.EINVAL, f"domain {self.domid} has no port {port}")
        return self._ports[port]

    def _usable(self) -> Iterator[Port]:
        return (entry for entry in self._ports if entry.state != CLOSED)

    def _check_vcpu(self, vcpu_id: int) -> None:
        if not 0 <= vcpu_id < self._nr_vcpus:
            raise XenError(Errno.ENOENT, f"domain {self.domid} has no vcpu {vcpu_id}")

    def _allocate(self) -> Port:
        """Return the lowest closed port, still closed."""
        if self._dying:
            raise XenError(Errno.EINVAL, f"domain {self.domid} is dying")
        limit = min(self.max_ports, self._delivery.max_ports)
        number = self._first_free
        passed_over = False
        while number < limit:
            if number >= len(self._ports):
                self._grow()
            if self._ports[number].state == CLOSED:
                if not self._delivery.is_busy(number):
                    break
                passed_over = True
            number += 1
            if not passed_over:
                self._first_free = number
        if number >= limit:
            raise XenError(Errno.ENOSPC, f"domain {self.domid} is out of event channels")
        entry = self._ports[number]
        entry.reset()
        return entry

    def _free(self, entry: Port) -> None:
        entry.reset()
        self.changed(entry)  # first: until KVM knows, it may make the event pending
        self._delivery.clear_pending(entry)
        self._first_free = min(self._first_free, entry.number)

    # -- binding ------------------------------------------------------------------------------------------------------

    def alloc_unbound(self, remote_domid: int) -> int:
        """Return a fresh port to which domain `remote_domid` may bind; that domain need not exist yet.

        Raises XenError: ENOSPC, EINVAL (dying).
        """
        entry = self._allocate()
        entry.state = UNBOUND
        entry.remote_domid = self.domid if remote_domid == DOMID_SELF else remote_domid
        return entry.number

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """Return a fresh port connected to one that `remote_domid` left unbound for us.

        An event is pending on it at once. Raises XenError: ESRCH, EINVAL (no such port, not unbound, not for us),
        ENOSPC.
        """
        remote = self if remote_domid in (DOMID_SELF, self.domid) else self._lookup(remote_domid)
        entry = self._allocate()
        peer = remote._entry(remote_port)
        if peer.state != UNBOUND or peer.remote_domid != self.domid:
            raise XenError(
                Errno.EINVAL, f"port {remote_port} of domain {remote.domid} awaits no binding from {self.domid}"
            )
        entry.state = peer.state = INTERDOMAIN
        entry.peer, peer.peer = peer, entry
        self.changed(entry)
        remote.changed(peer)
        # The peer may have sent before we bound; its events were dropped.
        self.deliver(entry)
        return entry.number

    def bind_virq(self, virq: int, vcpu_id: int) -> int:
        """Return a fresh port for a VIRQ; a global one is bound on vCPU 0 only.

        Raises XenError: EINVAL (no such VIRQ, global on another vCPU), ENOENT (no such vCPU), EEXIST (bound), ENOSPC.
        """
        if not 0 <= virq < NR_VIRQS or (virq not in PER_VCPU_VIRQS and vcpu_id != 0):
            raise XenError(Errno.EINVAL, f"virq {virq} on vcpu {vcpu_id}")
        self._check_vcpu(vcpu_id)
        if self._virqs[vcpu_id][virq] is not None:
            raise XenError(Errno.EEXIST, f"virq {virq} is bound on vcpu {vcpu_id}")
        entry = self._allocate()
        entry.state = VIRQ
        entry.vcpu_id = vcpu_id
        entry.virq = virq
        self._virqs[vcpu_id][virq] = entry
        self.changed(entry)
        return entry.number

    def bind_ipi(self, vcpu_id: int) -> int:
        """Return a fresh port by which the domain sends to one of its vCPUs. Raises XenError: ENOENT, ENOSPC."""
        self._check_vcpu(vcpu_id)
        entry = self._allocate()
        entry.state = IPI
        entry.vcpu_id = vcpu_id
        self.changed(entry)
        return entry.number

    def bind_pirq(self, pirq: int) -> int:
        """Raise XenError(EPERM): no domain owns a physical interrupt here."""
        raise XenError(Errno.EPERM, f"pirq {pirq} is not the domain's")

    def bind_vcpu(self, port: int, vcpu_id: int) -> None:
        """Have future events of a port notify another vCPU.

        Raises XenError: ENOENT (no such vCPU), EINVAL (no such port, closed, IPI or per-vCPU VIRQ).
        """
        self._check_vcpu(vcpu_id)
        entry = self._entry(port)
        movable = entry.state in (UNBOUND, INTERDOMAIN) or (entry.state == VIRQ and entry.virq not in PER_VCPU_VIRQS)
        if not movable:
            raise XenError(Errno.EINVAL, f"port {port} cannot change its vcpu")
        entry.vcpu_id = vcpu_id
        self.changed(entry)

    def close(self, port: int) -> None:
        """Close a port; the other end of an interdomain channel becomes unbound again. Raises XenError(EINVAL)."""
        entry = self._entry(port)
        if entry.state == CLOSED:
            raise XenError(Errno.EINVAL, f"port {port} is closed")
        if entry.peer is not None:
            entry.peer.state = UNBOUND
            entry.peer.peer = None
            entry.peer.remote_domid = self.domid
            entry.peer.owner.changed(entry.peer)
        elif entry.state == VIRQ:
            # A global VIRQ stays in vCPU 0's row wherever bind_vcpu sends it.
            row = self._virqs[entry.vcpu_id if entry.virq in PER_VCPU_VIRQS else 0]
            row[entry.virq] = None
        self._free(entry)

    def reset(self) -> None:
        """Close every port."""
        for entry in self._usable():
            self.close(entry.number)

    def destroy(self) -> None:
        """Close every port for good: the domain gets no new one."""
        self._dying = True
        self.reset()

    # -- events -------------------------------------------------------------------------------------------------------

    def send(self, port: int) -> None:
        """Send an event to the other end; one to an unbound port is dropped.

        Raises XenError(EINVAL): no such port, closed, or a VIRQ's.
        """
        entry = self._entry(port)
        peer = entry.peer
        if peer is not None:
            peer.owner.deliver(peer)
        elif entry.state == IPI:
            self.deliver(entry)
        elif entry.state != UNBOUND:
            raise XenError(Errno.EINVAL, f"nothing can be sent from port {port}")

    def raise_virq(self, virq: int, vcpu_id: int = 0) -> None:
        """Raise a VIRQ, on a vCPU if it is a per-vCPU one; nothing happens if the domain has not bound it."""
        entry = self._virqs[vcpu_id][virq]
        if entry is not None:
            self.deliver(entry)

    def unmask(self, port: int) -> None:
        """Unmask a port and deliver the event pending on it. Raises XenError(EINVAL)."""
        entry = self._entry(port)
        if entry.state != CLOSED:
            self._delivery.unmask(entry)

    def check_port(self, port: int) -> None:
        """Raise XenError(EINVAL) for a port that is closed, or beyond the table."""
        if self._entry(port).state == CLOSED:
            raise XenError(Errno.EINVAL, f"port {port} is closed")

    def is_connected(self, port: int) -> bool:
        """Tell whether another domain's port is at the other end of a port that there is."""
        return self._entry(port).peer is not None

    def is_pending(self, port: int) -> bool:
        """Tell whether an event is pending on a port, masked or not. Raises XenError(EINVAL)."""
        entry = self._entry(port)
        return entry.state != CLOSED and self._delivery.is_pending(entry)

    def set_priority(self, port: int, priority: int) -> None:
        """Set the priority of a port's future events, 0 the highest.

        Raises XenError: EINVAL (no such port or priority), ENOSYS (2-level ABI), EACCES (closed).
        """
        self._delivery.set_priority(self._entry(port), priority)

    def bound(self) -> Iterator[Port]:
        """Yield each port that is not closed."""
        return self._usable()

    def peer(self, port: int) -> Port | None:
        """Return the other end of an interdomain channel, None if the port is none. Raises XenError(EINVAL)."""
        return self._entry(port).peer

    def virq_port(self, virq: int, vcpu_id: int = 0) -> int:
        """Return the port that a VIRQ is bound to, 0 if it is not."""
        entry = self._virqs[vcpu_id][virq]
        return 0 if entry is None else entry.number

    # -- looking ------------------------------------------------------------------------------------------------------

    def status(self, port: int) -> PortStatus:
        """Tell what a port is. Raises XenError(EINVAL)."""
        return self._status(self._entry(port))

    @staticmethod
    def _status(entry: Port) -> PortStatus:
        if entry.peer is not None:
            return PortStatus(entry.state, entry.vcpu_id, entry.peer.owner.domid, entry.peer.number)
        if entry.state == UNBOUND:
            return PortStatus(entry.state, entry.vcpu_id, entry.remote_domid)
        return PortStatus(entry.state, entry.vcpu_id, virq=entry.virq)

    def snapshot(self) -> ChannelsState:
        """Return the table as plain data."""
        return ChannelsState(len(self._ports), tuple(self._snapshot_port(entry) for entry in self._usable()), None)

    def _snapshot_port(self, entry: Port) -> PortState:
        queue = entry.last_queue
        last_queue = None if queue is None else (queue.vcpu_id, queue.priority)
        return PortState(entry.number, self._status(entry), entry.priority, entry.pending, last_queue)

    def restore(self, state: ChannelsState) -> None:
        """Take over what `snapshot` returned, into a table whose ports are all closed.

        An interdomain port comes back unbound, open to the domain it was connected to: the other end binds anew.
        """
        while len(self._ports) < state.size:
            self._grow()
        for saved in state.ports:
            entry = self._ports[saved.number]
            status = saved.status
            entry.state = UNBOUND if status.status == INTERDOMAIN else status.status
            entry.vcpu_id = status.vcpu_id
            entry.remote_domid = status.remote_domid
            entry.virq = status.virq
            entry.priority = saved.priority
            entry.pending = saved.pending
            if entry.state == VIRQ:
                self._virqs[entry.vcpu_id if entry.virq in PER_VCPU_VIRQS else 0][entry.virq] = entry

    def describe(self) -> list[str]:
        """Return a line for each bound port: number, [pending masked], what it is, and what it is bound to."""
        return [self._describe(entry) for entry in self._usable()]

    def _describe(self, entry: Port) -> str:
        delivery = self._delivery
        bits = f"{'p' if delivery.is_pending(entry) else '-'}{'m' if delivery.is_masked(entry) else '-'}"
        status = self._status(entry)
        text = (
            f"{entry.number:6} [{bits}] {EVTCHNSTAT(entry.state).name} vcpu={entry.vcpu_id} priority={entry.priority}"
        )
        if entry.state == VIRQ:
            return f"{text} virq={entry.virq}"
        if entry.state == INTERDOMAIN:
            return f"{text} domid={status.remote_domid} port={status.remote_port}"
        return f"{text} domid={status.remote_domid}" if entry.state == UNBOUND else text
