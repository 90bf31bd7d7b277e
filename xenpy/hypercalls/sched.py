"""sched_op: yielding, sleeping, polling, ending.

Ref: xen/include/public/sched.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import sched as abi
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall
from xenpy.hypercalls.domids import refusal

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

REASON_MASK: Final = 0xFF
"""What counts of a reason for a shutdown; any value is taken, also those without a name."""

sched_op = Hypercall(29, "sched_op")


@sched_op.handles(abi.SCHEDOP_yield)
def yield_(call: Call) -> None:
    """Let other vCPUs run."""
    call.vcpu.yield_()


@sched_op.handles(abi.SCHEDOP_block)
def block(call: Call) -> None:
    """Sleep until an event is pending, with events enabled."""
    call.vcpu.block()


@sched_op.handles(abi.SCHEDOP_shutdown)
def shutdown(call: Call, op: Any) -> None:
    """End the domain for a reason, of which the lowest byte counts."""
    call.domain.shutdown(op.reason & REASON_MASK)


@sched_op.handles(abi.SCHEDOP_shutdown_code)
def shutdown_code(call: Call, op: Any) -> None:
    """Say in advance what a later shutdown will be for, whatever it says itself; the first word counts."""
    if call.domain.shutdown_code is None:
        call.domain.shutdown_code = op.reason & REASON_MASK


@sched_op.handles(abi.SCHEDOP_poll)
def poll(call: Call, op: Any) -> None:
    """Sleep until one of some ports is pending or a time has come, or an upcall that the guest does not hold off."""
    if op.nr_ports > abi.MAX_POLL_PORTS:
        raise XenError(Errno.EINVAL, f"{op.nr_ports} ports")
    ports = call.words(op.ports, op.nr_ports, 4) if op.nr_ports else ()
    if call.vcpu.event_pending() and not call.domain.shared_info.vcpu_info[call.vcpu.vcpu_id].upcall_mask:
        return  # one that came before tells of nothing that would come again
    evtchn = call.domain.evtchn
    for port in ports:
        evtchn.check_port(port)
        if evtchn.is_pending(port):
            return
    call.vcpu.poll(ports, op.timeout)


@sched_op.handles(abi.SCHEDOP_remote_shutdown)
def remote_shutdown(call: Call, op: Any) -> None:
    """Refuse, as to any domU: only a device model may end another domain."""
    raise refusal(call, op.domain_id)


@sched_op.handles(abi.SCHEDOP_watchdog)
def watchdog(call: Call, op: Any) -> int:
    """Start a watchdog (id 0), or re-arm or stop (timeout 0) the one with an id; return the id of a new one."""
    return call.domain.set_watchdog(op.id, op.timeout)


@sched_op.handles(abi.SCHEDOP_pin_override)
def pin_override(_call: Call, _op: Any) -> None:
    """Refuse: pinning is for the hardware domain."""
    raise XenError(Errno.EPERM, "only the hardware domain may pin")
