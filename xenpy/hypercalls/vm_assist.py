"""vm_assist: behaviours a guest can turn on and off.

Ref: xen/include/public/xen.h, VMASST_*
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.op import Op
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

VMASST_CMD_enable: Final = Op(0, "enable")
VMASST_CMD_disable: Final = Op(1, "disable")
VMASST_TYPE_4gb_segments: Final = 0
VMASST_TYPE_4gb_segments_notify: Final = 1
VMASST_TYPE_writable_pagetables: Final = 2
VMASST_TYPE_pae_extended_cr3: Final = 3
VMASST_TYPE_architectural_iopl: Final = 4
VMASST_TYPE_runstate_update_flag: Final = 5
VMASST_TYPE_m2p_strict: Final = 32

_PV_TYPES: Final = frozenset((0, 1, 2, 3, 4, 5, 32))
"""Those that only mean something to 32-bit kernels, which they let use segments of 4 GiB and tables above 4 GiB, are accepted from all."""
_HVM_TYPES: Final = frozenset((VMASST_TYPE_runstate_update_flag,))


class _VmAssist(Hypercall):
    """A type that is not there is noticed before a command that is not."""

    def __call__(self, call: Call) -> int | None:
        _bit(call)
        return super().__call__(call)


vm_assist = _VmAssist(21, "vm_assist")


def _bit(call: Call) -> int:
    """Return the mask bit of the assist named. Raises XenError(EINVAL) for one this guest type does not have."""
    kind = call.args[1] & 0xFFFFFFFF
    if kind not in (_PV_TYPES if call.domain.is_pv else _HVM_TYPES):
        raise XenError(Errno.EINVAL, f"assist {kind}")
    return 1 << kind


@vm_assist.handles(VMASST_CMD_enable)
def enable(call: Call) -> None:
    """Turn an assist on."""
    call.domain.vm_assist |= _bit(call)


@vm_assist.handles(VMASST_CMD_disable)
def disable(call: Call) -> None:
    """Turn an assist off."""
    call.domain.vm_assist &= ~_bit(call)
