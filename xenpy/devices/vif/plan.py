"""What a netfront has written into xenstore, checked: where its rings are and what it does itself.

Ref: xen/include/public/io/netif.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.devices.vif.frame import MAX_FRAME, Offloads
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.frontend import FrontendNodes

MAX_QUEUES: Final = 4
"""More would not make one interpreter any faster."""


class QueuePlace(NamedTuple):
    """A pair of rings and the guest's ports for them, which may be the same one."""

    tx_gref: int
    rx_gref: int
    tx_port: int
    rx_port: int


class ControlPlace(NamedTuple):
    """The control ring and the guest's port for it."""

    gref: int
    port: int


class Plan(NamedTuple):
    """What a frontend has agreed to."""

    queues: Sequence[QueuePlace]
    control: ControlPlace | None
    offloads: Offloads


def read_plan(nodes: FrontendNodes) -> Plan:
    """Return what a frontend wrote. Raises FrontendError."""
    if not nodes.flag("request-rx-copy"):
        raise FrontendError(f"{nodes.path}: request-rx-copy is not 1, and there is no other way to receive")
    offloads = _offloads(nodes)
    count = nodes.number("multi-queue-num-queues", 1, low=1, high=MAX_QUEUES)
    queues = [_queue(nodes if count == 1 else nodes.below(f"queue-{index}")) for index in range(count)]
    control = None
    if nodes.text("ctrl-ring-ref", ""):
        control = ControlPlace(nodes.gref("ctrl-ring-ref"), nodes.port("event-channel-ctrl"))
    return Plan(queues, control, offloads)


def _queue(nodes: FrontendNodes) -> QueuePlace:
    tx_gref, rx_gref = nodes.gref("tx-ring-ref"), nodes.gref("rx-ring-ref")
    if nodes.text("event-channel-tx", ""):
        return QueuePlace(tx_gref, rx_gref, nodes.port("event-channel-tx"), nodes.port("event-channel-rx"))
    port = nodes.port("event-channel")
    return QueuePlace(tx_gref, rx_gref, port, port)


def _offloads(nodes: FrontendNodes) -> Offloads:
    """Return what a frontend says that it does itself."""
    sg = nodes.flag("feature-sg")
    csum, csum6 = not nodes.flag("feature-no-csum-offload"), nodes.flag("feature-ipv6-csum-offload")
    return Offloads(
        csum=csum,
        csum6=csum6,
        gso4=sg and csum and nodes.flag("feature-gso-tcpv4"),
        gso6=sg and csum6 and nodes.flag("feature-gso-tcpv6"),
        max_size=MAX_FRAME if sg else PAGE_SIZE,
    )
