"""What KVM can be told of a Xen guest's event channels, so that events pass without leaving the kernel.

Ref: Documentation/virt/kvm/api.rst, KVM_XEN_HVM_SET_ATTR, KVM_XEN_HVM_EVTCHN_SEND, KVM_SET_GSI_ROUTING, KVM_IRQFD
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy import libc
from xenpy.abi import _kvm_ioctl as request
from xenpy.abi._kvm import ffi
from xenpy.abi.event_channel import EVTCHNSTAT
from xenpy.kvm.constants import (
    KVM_IRQ_ROUTING_XEN_EVTCHN,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_XEN_EVTCHN_DEASSIGN,
    XenAttr,
)
from xenpy.kvm.system import checked_ioctl, pointer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.kvm.vm import Vm

MAX_ROUTES: Final = 128
"""As many as our kvm_irq_routing has room for."""


class XenEvents:
    """The event channels that KVM knows of one VM's guest. vCPUs are named by KVM's ids. Raises OSError where the kernel refuses."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._event: Any = ffi.new("struct kvm_irq_routing_xen_evtchn *")
        self._event.priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        self._event_pointer = pointer(self._event)

    def _attribute(self, port: int) -> Any:
        attr = ffi.new("struct kvm_xen_hvm_attr *")
        attr.type = XenAttr.EVTCHN
        attr.u.evtchn.send_port = port
        return attr

    def _set(self, attr: Any, what: str) -> None:
        checked_ioctl(self._vm.fd, request.KVM_XEN_HVM_SET_ATTR, pointer(attr), what)

    def send_to_vcpu(self, port: int, vcpu: int) -> None:
        """Have what the guest sends from a port become pending on that port, of a vCPU: an IPI."""
        attr = self._attribute(port)
        attr.u.evtchn.type = EVTCHNSTAT.ipi
        target = attr.u.evtchn.deliver.port
        target.port, target.vcpu, target.priority = port, vcpu, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        self._set(attr, f"event channel {port} to vCPU {vcpu}")

    def send_to_fd(self, port: int, fd: int) -> None:
        """Have what the guest sends from a port count up an eventfd."""
        attr = self._attribute(port)
        attr.u.evtchn.type = EVTCHNSTAT.interdomain
        attr.u.evtchn.deliver.eventfd.fd = fd
        self._set(attr, f"event channel {port} to an eventfd")

    def forget(self, port: int) -> None:
        """Have what the guest sends from a port leave it as a hypercall again."""
        attr = self._attribute(port)
        attr.u.evtchn.flags = KVM_XEN_EVTCHN_DEASSIGN
        self._set(attr, f"take back event channel {port}")

    def deliver(self, port: int, vcpu: int) -> bool:
        """Make an event pending on a port, and have a vCPU look unless the port is masked; tell whether KVM could.

        It cannot before the guest has placed shared_info and vcpu_info. One caller at a time.
        """
        self._event.port, self._event.vcpu = port, vcpu
        return libc.ioctl(self._vm.fd, request.KVM_XEN_HVM_EVTCHN_SEND, self._event_pointer) >= 0

    def route(self, routes: Mapping[int, tuple[int, int]]) -> None:
        """Have interrupts, by number, be events: (port, vCPU). All others are none any more."""
        table = ffi.new("struct kvm_irq_routing *")
        table.nr = len(routes)
        for entry, (gsi, (port, vcpu)) in zip(table.entries, routes.items(), strict=False):
            entry.gsi, entry.type = gsi, KVM_IRQ_ROUTING_XEN_EVTCHN
            event = entry.u.xen_evtchn
            event.port, event.vcpu, event.priority = port, vcpu, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        checked_ioctl(self._vm.fd, request.KVM_SET_GSI_ROUTING, pointer(table), "route interrupts")

    def attach(self, fd: int, gsi: int) -> None:
        """Have what counts up an eventfd raise an interrupt that has a route; who else waits for the eventfd sees nothing of it."""
        self._irqfd(fd, gsi, 0)

    def detach(self, fd: int, gsi: int) -> None:
        """Undo `attach`."""
        self._irqfd(fd, gsi, KVM_IRQFD_FLAG_DEASSIGN)

    def _irqfd(self, fd: int, gsi: int, flags: int) -> None:
        value = ffi.new("struct kvm_irqfd *")
        value.fd, value.gsi, value.flags = fd, gsi, flags
        checked_ioctl(self._vm.fd, request.KVM_IRQFD, pointer(value), f"eventfd of interrupt {gsi}")
