"""hvm_op: parameters, upcall vectors and what else only HVM and PVH guests ask.

Ref: xen/include/public/hvm/hvm_op.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xenpy.abi import hvm_op as abi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall
from xenpy.hypercalls.domids import own_domain
from xenpy.pv.hvm_params import CALLBACK_TYPE_PCI_INTX, CALLBACK_TYPE_SHIFT, HVM_PARAM

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call


class _HvmOp(Hypercall):
    """Its command is an unsigned long."""

    def command(self, call: Call) -> int:
        return call.args[0]


hvm_op = _HvmOp(34, "hvm_op")


def _require_hvm(call: Call, domid: int) -> None:
    """Refuse calls about other domains (ESRCH, EPERM) and from PV guests (EINVAL)."""
    if own_domain(call, domid).is_pv:
        raise XenError(Errno.EINVAL, "a PV guest has no HVM parameters")


@hvm_op.handles(abi.HVMOP_set_param)
def set_param(call: Call, op: Any) -> None:
    """Set a parameter that is the guest's to set."""
    _require_hvm(call, op.domid)
    if op.index == HVM_PARAM.CALLBACK_IRQ and 0 < op.value >> CALLBACK_TYPE_SHIFT <= CALLBACK_TYPE_PCI_INTX:
        raise XenError(Errno.EINVAL, "PVH has no PIC and no IOAPIC, so no GSI or PCI callback")
    call.domain.hvm_params.set(op.index, op.value)
    if op.index == HVM_PARAM.CALLBACK_IRQ:
        # As in Xen, by doing this the guest says which word size it has.
        call.domain.shared_info.set_word_size(64 if call.wide else 32)
        call.domain.callback_changed()


@hvm_op.handles(abi.HVMOP_get_param)
def get_param(call: Call, op: Any) -> None:
    """Tell a parameter that is the guest's to know."""
    _require_hvm(call, op.domid)
    op.value = call.domain.hvm_params.get(op.index)


@hvm_op.handles(abi.HVMOP_flush_tlbs)
def flush_tlbs(call: Call) -> None:
    """Do nothing, successfully: KVM flushes what it must. An argument is refused, as by Xen."""
    _require_hvm(call, DOMID_SELF)
    if call.args[1]:
        raise XenError(Errno.EINVAL, "HVMOP_flush_tlbs takes no argument")


@hvm_op.handles(abi.HVMOP_pagetable_dying)
def pagetable_dying(call: Call, op: Any) -> None:
    """Refuse the hint: it serves shadow paging, which is KVM's affair here. Guests probe for it."""
    _require_hvm(call, op.domid)
    raise XenError(Errno.EINVAL, "no shadow paging")


@hvm_op.handles(abi.HVMOP_get_time)
def get_time(call: Call, op: Any) -> None:
    """Tell system time in ns."""
    op.now = call.vcpu.timers.clock.now()


@hvm_op.handles(abi.HVMOP_get_mem_type)
def get_mem_type(call: Call, op: Any) -> None:
    """Tell whether a gfn is RAM or nothing."""
    _require_hvm(call, op.domid)
    memory = call.domain.memory
    populated = memory.is_ram(op.pfn) or memory.placed(op.pfn) is not None
    op.mem_type = abi.HVMMEM_ram_rw if populated else abi.HVMMEM_mmio_dm


@hvm_op.handles(abi.HVMOP_set_evtchn_upcall_vector)
def set_evtchn_upcall_vector(call: Call, op: Any) -> None:
    """Have a vCPU's upcalls delivered through its LAPIC."""
    _require_hvm(call, DOMID_SELF)
    if op.vcpu >= len(call.domain.vcpus):
        raise XenError(Errno.ENOENT, f"no vCPU {op.vcpu}")
    if op.vector < abi.FIRST_USABLE_VECTOR:
        raise XenError(Errno.EINVAL, f"vector {op.vector}")
    call.domain.vcpus[op.vcpu].set_upcall_vector(op.vector)
