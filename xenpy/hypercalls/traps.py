"""What stands for a PV kernel's IDT, TSS and segment registers: trap table, callbacks, stack, bases, debug registers, IRET.

Ref: xen/include/public/xen.h, arch-x86/xen.h, arch-x86/xen-x86_64.h, nmi.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from xenpy.abi.op import Op
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.callback import CALLBACKTYPE, CALLBACKF_mask_events
from xenpy.hypercalls.dispatch import Hypercall, hypercall
from xenpy.pv.paging import is_canonical

if TYPE_CHECKING:
    from typing import Any

    from xenpy.hypercalls.call import Call
    from xenpy.hypercalls.protocols import PvVcpu

_TRAPS: Final = 256
_MASK32: Final = 0xFFFFFFFF
_DEBUG_REGISTERS: Final = 8
SEGBASE_FS: Final = 0
SEGBASE_GS_USER: Final = 1
SEGBASE_GS_KERNEL: Final = 2
SEGBASE_GS_USER_SEL: Final = 3

XENNMI_register_callback: Final = Op(0, "register_callback", "xennmi_callback")
XENNMI_unregister_callback: Final = Op(1, "unregister_callback")


def pv_vcpu(call: Call) -> PvVcpu:
    """Return the calling vCPU of a PV guest. Raises XenError(ENOSYS) for an HVM guest."""
    if not call.domain.is_pv:
        raise XenError(Errno.ENOSYS, "for PV guests only")
    return cast("PvVcpu", call.vcpu)


def _canonical(gva: int) -> int:
    if not is_canonical(gva):
        raise XenError(Errno.EINVAL, f"{gva:#x} is no address")
    return gva


@hypercall(0, "set_trap_table")
def set_trap_table(call: Call) -> None:
    """Set the handlers of the listed vectors, up to the first without an address; no list clears them all."""
    vcpu = pv_vcpu(call)
    gva = call.args[0]
    if not gva:
        vcpu.clear_traps()
        return
    size = call.struct_size("trap_info")
    for _ in range(_TRAPS):
        trap = call.struct("trap_info", gva)
        if not trap.address:
            return
        vcpu.set_trap(trap.vector, trap.flags, trap.cs, _canonical(trap.address))
        gva += size


@hypercall(3, "stack_switch")
def stack_switch(call: Call) -> None:
    """Set the stack on which the kernel is entered from user mode."""
    pv_vcpu(call).set_kernel_stack(call.args[0] & 0xFFFF, call.args[1])


@hypercall(4, "set_callbacks")
def set_callbacks(call: Call) -> None:
    """Set the entry points for events, failures and system calls, by the older way."""
    vcpu = pv_vcpu(call)
    types = (CALLBACKTYPE.event, CALLBACKTYPE.failsafe, CALLBACKTYPE.syscall)
    for type_, gva in zip(types, call.args, strict=False):
        flags = CALLBACKF_mask_events if type_ is CALLBACKTYPE.event else 0
        if is_canonical(gva):  # one that is not is left out
            vcpu.register_callback(type_, flags, gva)


@hypercall(5, "fpu_taskswitch")
def fpu_taskswitch(call: Call) -> None:
    """Set or clear CR0.TS."""
    pv_vcpu(call).set_ts(bool(call.args[0] & _MASK32))


@hypercall(8, "set_debugreg")
def set_debugreg(call: Call) -> None:
    """Set a debug register. Raises XenError: ENODEV, EINVAL, EPERM for a breakpoint in the hypervisor."""
    pv_vcpu(call).set_debugreg(_debug_register(call), call.args[1])


@hypercall(9, "get_debugreg")
def get_debugreg(call: Call) -> int:
    """Return a debug register."""
    return pv_vcpu(call).get_debugreg(_debug_register(call))


def _debug_register(call: Call) -> int:
    number = call.args[0] & _MASK32
    if number >= _DEBUG_REGISTERS:
        raise XenError(Errno.ENODEV, f"debug register {number}")
    return number


@hypercall(23, "iret")
def iret(call: Call) -> None:
    """Go where the frame on the kernel's stack says."""
    pv_vcpu(call).iret()


@hypercall(25, "set_segment_base")
def set_segment_base(call: Call) -> None:
    """Set the base of FS or of one of the two GS; or load a selector into the GS of user mode."""
    vcpu = pv_vcpu(call)
    which, value = call.args[0] & _MASK32, call.args[1]
    if which == SEGBASE_GS_USER_SEL:
        vcpu.load_user_gs(value & 0xFFFF)
    elif which in (SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL):
        vcpu.set_base(which, _canonical(value))
    else:
        raise XenError(Errno.EINVAL, f"segment base {which}")


nmi_op = Hypercall(28, "nmi_op")


@nmi_op.handles(XENNMI_register_callback)
def register_nmi(call: Call, op: Any) -> None:
    """Set the handler of NMIs."""
    vcpu = pv_vcpu(call)
    vcpu.register_callback(CALLBACKTYPE.nmi, CALLBACKF_mask_events, _canonical(op.handler_address))


@nmi_op.handles(XENNMI_unregister_callback)
def unregister_nmi(call: Call) -> None:
    """Forget the handler of NMIs."""
    pv_vcpu(call).unregister_callback(CALLBACKTYPE.nmi)
