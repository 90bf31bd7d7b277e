"""callback_op and nmi_op: where a guest wants to be called.

Ref: xen/include/public/callback.h, nmi.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi.op import Op
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

CALLBACKOP_register: Final = Op(0, "register", "callback_register")
CALLBACKOP_unregister: Final = Op(1, "unregister", "callback_unregister")


class CALLBACKTYPE(IntEnum):
    """What a PV kernel wants to be called for. Ref: xen/include/public/callback.h"""

    event = 0
    failsafe = 1
    syscall = 2
    sysenter_deprecated = 3
    nmi = 4
    sysenter = 5
    syscall32 = 7


CALLBACKF_mask_events: Final = 1

callback_op = Hypercall(30, "callback_op")


def _require_pv(call: Call) -> None:
    """Refuse HVM guests, which have an IDT for that, the way Xen does."""
    if not call.domain.is_pv:
        raise XenError(Errno.ENOSYS, "callbacks are for PV guests")


@callback_op.handles(CALLBACKOP_register)
def register(call: Call, op: Any) -> None:
    """Register an entry point of the PV kernel."""
    _require_pv(call)
    call.vcpu.register_callback(op.type, op.flags, op.address)


@callback_op.handles(CALLBACKOP_unregister)
def unregister(call: Call, op: Any) -> None:
    """Forget an entry point of the PV kernel."""
    _require_pv(call)
    call.vcpu.unregister_callback(op.type)
