"""The forms that three hypercalls had before Xen 3.1 and 3.2, which PV kernels of that tradition still use: GNU Mach, Mini-OS's relatives.

The command is part of the structure, or its argument comes in a register. They are carried out as the hypercalls that took their place.

Ref: xen/include/public/sched.h, event_channel.h (struct evtchn_op), physdev.h (struct physdev_op)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi import event_channel, sched
from xenpy.abi.op import Op
from xenpy.errors import Errno
from xenpy.hypercalls.call import Call
from xenpy.hypercalls.dispatch import Hypercall, hypercall
from xenpy.hypercalls.event_channel import event_channel_op
from xenpy.hypercalls.physdev import physdev_op
from xenpy.hypercalls.pv import pv_domain
from xenpy.hypercalls.sched import REASON_MASK, block, yield_

if TYPE_CHECKING:
    from collections.abc import Container

_SHUTDOWN: Final = Op(sched.SCHEDOP_shutdown.number, "shutdown")
_EVENT_COMMANDS: Final = range(event_channel.EVTCHNOP_unmask.number + 1)
_EVENT_UNION: Final = 4
"""Where the commands' structures begin in struct evtchn_op, whose members are 32 bits wide at most."""


class _SchedOp(Hypercall):
    """For PV guests only."""

    def __call__(self, call: Call) -> int | None:
        pv_domain(call)
        return super().__call__(call)


sched_op_compat = _SchedOp(6, "sched_op_compat")
sched_op_compat.handles(sched.SCHEDOP_yield)(yield_)
sched_op_compat.handles(sched.SCHEDOP_block)(block)


@sched_op_compat.handles(_SHUTDOWN)
def shutdown(call: Call) -> None:
    """End the domain for a reason, of which the lowest byte counts."""
    call.domain.shutdown(call.args[1] & REASON_MASK)


@hypercall(16, "event_channel_op_compat")
def event_channel_op_compat(call: Call) -> int:
    """Carry out the event_channel_op that a struct evtchn_op holds."""
    return _carry_out(call, event_channel_op.number, _EVENT_UNION, _EVENT_COMMANDS)


@hypercall(19, "physdev_op_compat")
def physdev_op_compat(call: Call) -> int:
    """Carry out the physdev_op that a struct physdev_op holds, whose union has pointers in it."""
    return _carry_out(call, physdev_op.number, call.word_size)


def _carry_out(call: Call, number: int, union: int, commands: Container[int] | None = None) -> int:
    pv_domain(call)
    gva = call.args[0]
    (command,) = call.words(gva, 1, 4)
    if commands is not None and command not in commands:
        call.domain.log(f"legacy.{number}.{command}", f"hypercall {call.nr}: no command {command}, answered -ENOSYS")
        return -Errno.ENOSYS
    args = (command, gva + union, 0, 0, 0, 0)
    inner = Call(call.domain, call.vcpu, number, args, wide=call.wide, checkpoint=call.checkpoint, within=True)
    return call.domain.dispatch(inner)
