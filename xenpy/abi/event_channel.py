"""Event channel commands and constants.

Ref: xen/include/public/event_channel.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xenpy.abi.op import Op

EVTCHNOP_bind_interdomain: Final = Op(0, "bind_interdomain", "evtchn_bind_interdomain", out=True)
EVTCHNOP_bind_virq: Final = Op(1, "bind_virq", "evtchn_bind_virq", out=True)
EVTCHNOP_bind_pirq: Final = Op(2, "bind_pirq", "evtchn_bind_pirq", out=True)
EVTCHNOP_close: Final = Op(3, "close", "evtchn_close")
EVTCHNOP_send: Final = Op(4, "send", "evtchn_send")
EVTCHNOP_status: Final = Op(5, "status", "evtchn_status", out=True)
EVTCHNOP_alloc_unbound: Final = Op(6, "alloc_unbound", "evtchn_alloc_unbound", out=True)
EVTCHNOP_bind_ipi: Final = Op(7, "bind_ipi", "evtchn_bind_ipi", out=True)
EVTCHNOP_bind_vcpu: Final = Op(8, "bind_vcpu", "evtchn_bind_vcpu")
EVTCHNOP_unmask: Final = Op(9, "unmask", "evtchn_unmask")
EVTCHNOP_reset: Final = Op(10, "reset", "evtchn_reset")
EVTCHNOP_init_control: Final = Op(11, "init_control", "evtchn_init_control", out=True)
EVTCHNOP_expand_array: Final = Op(12, "expand_array", "evtchn_expand_array")
EVTCHNOP_set_priority: Final = Op(13, "set_priority", "evtchn_set_priority")


class EVTCHNSTAT(IntEnum):
    """What a port is, as EVTCHNOP_status tells it."""

    closed = 0
    unbound = 1
    interdomain = 2
    pirq = 3
    virq = 4
    ipi = 5


class VIRQ(IntEnum):
    """Virtual interrupts.

    Ref: xen/include/public/xen.h
    """

    TIMER = 0
    DEBUG = 1
    CONSOLE = 2
    DOM_EXC = 3
    TBUF = 4
    DEBUGGER = 6
    XENOPROF = 7
    CON_RING = 8
    PCPU_STATE = 9
    MEM_EVENT = 10
    ARGO = 11
    ENOMEM = 12
    XENPMU = 13


NR_VIRQS: Final = 24
PER_VCPU_VIRQS: Final = frozenset({VIRQ.TIMER, VIRQ.DEBUG, VIRQ.XENOPROF, VIRQ.XENPMU})

EVTCHN_FIFO_PENDING: Final = 31
EVTCHN_FIFO_MASKED: Final = 30
EVTCHN_FIFO_LINKED: Final = 29
EVTCHN_FIFO_BUSY: Final = 28
EVTCHN_FIFO_LINK_BITS: Final = 17
EVTCHN_FIFO_NR_CHANNELS: Final = 1 << EVTCHN_FIFO_LINK_BITS
EVTCHN_FIFO_PRIORITY_MAX: Final = 0
EVTCHN_FIFO_PRIORITY_DEFAULT: Final = 7
EVTCHN_FIFO_PRIORITY_MIN: Final = 15
EVTCHN_FIFO_MAX_QUEUES: Final = EVTCHN_FIFO_PRIORITY_MIN + 1
EVTCHN_FIFO_WORDS_PER_PAGE: Final = 1024

DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = 0x7FF0
DOMID_IO: Final = 0x7FF1
DOMID_XEN: Final = 0x7FF2
