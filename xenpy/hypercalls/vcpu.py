"""vcpu_op: (command, vCPU, argument).

Ref: xen/include/public/vcpu.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import vcpu as abi
from xenpy.abi.sched import SHUTDOWN
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall, hypercall

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call
    from xenpy.hypercalls.protocols import Vcpu


_NEGATIVE: Final = 1 << 63
"""From here on a time is a negative one to Xen, and has passed."""


class _VcpuOp(Hypercall):
    """Checks the vCPU number before the argument, as Xen does."""

    def __call__(self, call: Call) -> int | None:
        if not 0 <= call.args[1] & 0xFFFFFFFF < len(call.domain.vcpus):
            return -Errno.ENOENT
        return super().__call__(call)


vcpu_op = _VcpuOp(24, "vcpu_op", struct_arg=2)


def _target(call: Call) -> Vcpu:
    return call.domain.vcpus[call.args[1] & 0xFFFFFFFF]


def _self_only(call: Call) -> Vcpu:
    """Return the calling vCPU, which must be the one named. Raises XenError(EINVAL)."""
    vcpu = _target(call)
    if vcpu is not call.vcpu:
        raise XenError(Errno.EINVAL, "only for the calling vCPU")
    return vcpu


@vcpu_op.handles(abi.VCPUOP_initialise)
def initialise(call: Call) -> None:
    """Load a vCPU that never ran, or went down, with a context."""
    vcpu = _target(call)
    tag = "vcpu_guest_context" if call.domain.is_pv else "vcpu_hvm_context"
    vcpu.initialise(call.struct(tag, call.args[2]))


@vcpu_op.handles(abi.VCPUOP_up)
def up(call: Call) -> None:
    """Bring a vCPU online; one that is online already stays so."""
    _target(call).up()


@vcpu_op.handles(abi.VCPUOP_down)
def down(call: Call) -> None:
    """Take a vCPU offline; with the last one online the domain powers off."""
    vcpu = _target(call)
    if any(other.is_up for other in call.domain.vcpus if other is not vcpu):
        vcpu.down()
    else:
        call.domain.shutdown(SHUTDOWN.poweroff)


@vcpu_op.handles(abi.VCPUOP_is_up)
def is_up(call: Call) -> int:
    """Return 1 if the vCPU is online, else 0."""
    return int(_target(call).is_up)


@vcpu_op.handles(abi.VCPUOP_get_runstate_info)
def get_runstate_info(call: Call, info: Any) -> None:
    """Tell how long the vCPU ran, could have run, slept and was offline."""
    info.state, info.state_entry_time, times = _target(call).runstate()
    info.time[0:4] = times


@vcpu_op.handles(abi.VCPUOP_register_runstate_memory_area)
def register_runstate_memory_area(call: Call, area: Any) -> None:
    """Keep the runstate current at a guest-virtual address."""
    _target(call).register_runstate(area.p, physical=False)


@vcpu_op.handles(abi.VCPUOP_register_runstate_phys_area)
def register_runstate_phys_area(call: Call, area: Any) -> None:
    """Keep the runstate current at a guest-physical address."""
    _target(call).register_runstate(area.p, physical=True)


@vcpu_op.handles(abi.VCPUOP_set_periodic_timer)
def set_periodic_timer(call: Call, op: Any) -> None:
    """Start the periodic timer."""
    _target(call).timers.set_periodic(op.period_ns)


@vcpu_op.handles(abi.VCPUOP_stop_periodic_timer)
def stop_periodic_timer(call: Call) -> None:
    """Stop the periodic timer."""
    _target(call).timers.stop_periodic()


@vcpu_op.handles(abi.VCPUOP_set_singleshot_timer)
def set_singleshot_timer(call: Call, op: Any) -> None:
    """Start the one-shot timer of the calling vCPU. A past one fires at once, whatever VCPU_SSHOTTMR_future says, as in Xen."""
    timeout = op.timeout_abs_ns
    _self_only(call).timers.set_singleshot(timeout if timeout < _NEGATIVE else 0)


@vcpu_op.handles(abi.VCPUOP_stop_singleshot_timer)
def stop_singleshot_timer(call: Call) -> None:
    """Stop the one-shot timer of the calling vCPU."""
    _self_only(call).timers.stop_singleshot()


@vcpu_op.handles(abi.VCPUOP_register_vcpu_info)
def register_vcpu_info(call: Call, op: Any) -> None:
    """Move a vCPU's vcpu_info into guest memory."""
    vcpu = _target(call)
    running = vcpu is not call.vcpu and vcpu.is_up
    call.domain.shared_info.register_vcpu_info(vcpu.vcpu_id, op.mfn, op.offset, running=running)
    call.domain.vcpu_info_placed(vcpu.vcpu_id)


@vcpu_op.handles(abi.VCPUOP_send_nmi)
def send_nmi(call: Call) -> None:
    """Send a non-maskable interrupt."""
    _target(call).send_nmi()


@vcpu_op.handles(abi.VCPUOP_get_physid)
def get_physid(_call: Call, _op: Any) -> None:
    """Refuse: physical ids are for domains pinned to processors."""
    raise XenError(Errno.EINVAL, "the vCPU is not pinned")


@vcpu_op.handles(abi.VCPUOP_register_vcpu_time_memory_area)
def register_vcpu_time_memory_area(call: Call, area: Any) -> None:
    """Keep a second vcpu_time_info current at a guest-virtual address."""
    _target(call).register_time(area.p, physical=False)


@vcpu_op.handles(abi.VCPUOP_register_vcpu_time_phys_area)
def register_vcpu_time_phys_area(call: Call, area: Any) -> None:
    """Keep a second vcpu_time_info current at a guest-physical address."""
    _target(call).register_time(area.p, physical=True)


@hypercall(15, "set_timer_op")
def set_timer_op(call: Call) -> None:
    """Start the one-shot timer of the calling vCPU for an absolute system time, or stop it (0)."""
    timeout = call.args[0] if call.wide else call.args[0] & 0xFFFFFFFF | call.args[1] << 32
    if timeout:
        call.vcpu.timers.set_singleshot(timeout)
    else:
        call.vcpu.timers.stop_singleshot()
