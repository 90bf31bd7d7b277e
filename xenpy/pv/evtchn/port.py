"""A port, its states, and what a way of delivering events offers.

Ref: xen/include/public/event_channel.h
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from xenpy.abi.event_channel import EVTCHN_FIFO_PRIORITY_DEFAULT, EVTCHNSTAT

if TYPE_CHECKING:
    from xenpy.pv.evtchn.fifo import Queue
    from xenpy.pv.evtchn.table import PortTable

# Plain integers: comparing them costs a third of comparing enum members, and every event compares some.
CLOSED: Final = int(EVTCHNSTAT.closed)
UNBOUND: Final = int(EVTCHNSTAT.unbound)
INTERDOMAIN: Final = int(EVTCHNSTAT.interdomain)
VIRQ: Final = int(EVTCHNSTAT.virq)
IPI: Final = int(EVTCHNSTAT.ipi)


class Port:
    """One port of a domain. `state` is an EVTCHNSTAT; the fields behind it mean something in some states only."""

    __slots__ = (
        "last_queue", "number", "owner", "peer", "pending", "priority", "remote_domid", "state", "vcpu_id", "virq",
    )  # fmt: skip

    def __init__(self, owner: PortTable, number: int) -> None:
        self.owner = owner
        self.number = number
        self.last_queue: Queue | None = None
        """The FIFO queue that the event was linked on last; the guest may not have taken it off yet."""
        self.reset()

    def reset(self) -> None:
        """Make the port one that nobody has bound; `last_queue` outlives the binding."""
        self.state = CLOSED
        self.vcpu_id = 0
        self.priority = EVTCHN_FIFO_PRIORITY_DEFAULT
        self.pending = False
        """An event waits outside guest memory: the word for it does not exist yet, or the port is one of ours."""
        self.peer: Port | None = None
        """The other end, in state interdomain only."""
        self.remote_domid = 0
        """Who may bind to the port, in state unbound."""
        self.virq = 0


@dataclass(frozen=True, slots=True)
class PortStatus:
    """What EVTCHNOP_status tells. `remote_domid`, `remote_port` and `virq` are 0 where the state has none."""

    status: int
    vcpu_id: int
    remote_domid: int = 0
    remote_port: int = 0
    virq: int = 0


@dataclass(frozen=True, slots=True)
class PortState:
    """A bound port as plain data. `last_queue` is (vcpu_id, priority)."""

    number: int
    status: PortStatus
    priority: int
    pending: bool
    last_queue: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class FifoState:
    """What the hypervisor knows of a guest's FIFO beyond guest memory, as plain data.

    `control` is (gfn, offset) a vCPU, `array` the gfns of the event array and `tails` a port a vCPU and priority.
    """

    control: tuple[tuple[int, int] | None, ...]
    array: tuple[int, ...]
    tails: tuple[tuple[int, ...], ...]

    def pages(self) -> list[int]:
        """Return the gfns that events are written to, each as often as it was given."""
        return [*(control[0] for control in self.control if control is not None), *self.array]


@dataclass(frozen=True, slots=True)
class ChannelsState:
    """A domain's event channels as plain data, for saving and forking. `fifo` is None under the 2-level ABI.

    `size` is how many ports the table has, most of them closed.
    """

    size: int
    ports: tuple[PortState, ...]
    fifo: FifoState | None


class Delivery(Protocol):
    """A way for events to reach whoever owns the port: the 2-level ABI, the FIFO ABI, or a Python handler."""

    @property
    def max_ports(self) -> int:
        """Return how many ports the way can carry, port 0 included."""

    def set_pending(self, entry: Port) -> None:
        """Make an event pending and tell the owner, unless the port is masked. Never raises on what a guest did."""

    def clear_pending(self, entry: Port) -> None:
        """Take a pending event back."""

    def is_pending(self, entry: Port) -> bool:
        """Tell whether an event is pending, masked or not."""

    def is_masked(self, entry: Port) -> bool:
        """Tell whether the owner holds the port's events back."""

    def unmask(self, entry: Port) -> None:
        """Let the port's events through, the pending one included."""

    def is_busy(self, number: int) -> bool:
        """Tell whether a closed port cannot be handed out yet since the guest still has its event queued."""

    def set_priority(self, entry: Port, priority: int) -> None:
        """Set the priority of future events.

        Raises XenError: EACCES (closed), EINVAL (no such priority), ENOSYS (there are none).
        """
