"""event_channel_op.

Ref: xen/include/public/event_channel.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenpy.abi import event_channel as abi
from xenpy.hypercalls.dispatch import Hypercall
from xenpy.hypercalls.domids import own_domain

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

event_channel_op = Hypercall(32, "event_channel_op")


def _remote(call: Call, domid: int) -> int:
    """Return the number of the domain that a caller names, itself for DOMID_SELF."""
    return call.domain.domid if domid == abi.DOMID_SELF else domid


@event_channel_op.handles(abi.EVTCHNOP_alloc_unbound)
def alloc_unbound(call: Call, op: Any) -> None:
    """Make a port that a remote domain may bind."""
    own_domain(call, op.dom)
    op.port = call.domain.evtchn.alloc_unbound(_remote(call, op.remote_dom))


@event_channel_op.handles(abi.EVTCHNOP_bind_interdomain)
def bind_interdomain(call: Call, op: Any) -> None:
    """Bind a fresh local port to a port that the peer left unbound."""
    op.local_port = call.domain.evtchn.bind_interdomain(_remote(call, op.remote_dom), op.remote_port)


@event_channel_op.handles(abi.EVTCHNOP_bind_virq)
def bind_virq(call: Call, op: Any) -> None:
    """Bind a fresh port to a virtual interrupt."""
    op.port = call.domain.evtchn.bind_virq(op.virq, op.vcpu)


@event_channel_op.handles(abi.EVTCHNOP_bind_pirq)
def bind_pirq(call: Call, op: Any) -> None:
    """Bind a fresh port to a physical interrupt, of which there are none."""
    op.port = call.domain.evtchn.bind_pirq(op.pirq)


@event_channel_op.handles(abi.EVTCHNOP_bind_ipi)
def bind_ipi(call: Call, op: Any) -> None:
    """Bind a fresh port by which vCPUs interrupt one of them."""
    op.port = call.domain.evtchn.bind_ipi(op.vcpu)


@event_channel_op.handles(abi.EVTCHNOP_close)
def close(call: Call, op: Any) -> None:
    """Close a port."""
    call.domain.evtchn.close(op.port)


@event_channel_op.handles(abi.EVTCHNOP_send)
def send(call: Call, op: Any) -> None:
    """Send an event to whatever a port is bound to."""
    call.domain.evtchn.send(op.port)


@event_channel_op.handles(abi.EVTCHNOP_status)
def status(call: Call, op: Any) -> None:
    """Tell what a port is."""
    own_domain(call, op.dom)
    found = call.domain.evtchn.status(op.port)
    op.status, op.vcpu = found.status, found.vcpu_id
    if found.status == abi.EVTCHNSTAT.unbound:
        op.u.unbound.dom = found.remote_domid
    elif found.status == abi.EVTCHNSTAT.interdomain:
        op.u.interdomain.dom, op.u.interdomain.port = found.remote_domid, found.remote_port
    elif found.status == abi.EVTCHNSTAT.virq:
        op.u.virq = found.virq


@event_channel_op.handles(abi.EVTCHNOP_bind_vcpu)
def bind_vcpu(call: Call, op: Any) -> None:
    """Have a port's events delivered to a vCPU."""
    call.domain.evtchn.bind_vcpu(op.port, op.vcpu)


@event_channel_op.handles(abi.EVTCHNOP_unmask)
def unmask(call: Call, op: Any) -> None:
    """Unmask a port, delivering what is pending."""
    call.domain.evtchn.unmask(op.port)


@event_channel_op.handles(abi.EVTCHNOP_reset)
def reset(call: Call, op: Any) -> None:
    """Close all ports, and go back to the 2-level ABI."""
    own_domain(call, op.dom)
    call.domain.evtchn.reset()


@event_channel_op.handles(abi.EVTCHNOP_init_control)
def init_control(call: Call, op: Any) -> None:
    """Set up a vCPU's FIFO control block; the first one switches the domain to the FIFO ABI."""
    op.link_bits = call.domain.evtchn.init_control(op.control_gfn, op.offset, op.vcpu)


@event_channel_op.handles(abi.EVTCHNOP_expand_array)
def expand_array(call: Call, op: Any) -> None:
    """Add a page of event words."""
    call.domain.evtchn.expand_array(op.array_gfn)


@event_channel_op.handles(abi.EVTCHNOP_set_priority)
def set_priority(call: Call, op: Any) -> None:
    """Set a port's FIFO priority."""
    call.domain.evtchn.set_priority(op.port, op.priority)
