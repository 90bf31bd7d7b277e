"""Events and timers that KVM's Xen support serves by itself, so that vCPUs need not leave the kernel for them.

KVM delivers IPIs and the one-shot timers' VIRQ, counts up an eventfd for an event of the guest's to a backend that has one, and turns what
a backend counts up itself into an event. Everything else, and everything while somebody wants to see or bend each event, is done in Python:
our table of ports stays the truth, and KVM is told what to do with a port whenever that changes. Both ways work on the same bits in guest
memory, so a port may change its way at any moment.

KVM knows the 2-level ABI only. It keeps no periodic timers.

Ref: Documentation/virt/kvm/api.rst, "KVM_XEN_HVM_CONFIG" and what it refers to
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi.event_channel import VIRQ
from xenpy.kvm.xen_events import MAX_ROUTES, XenEvents
from xenpy.pv.evtchn.port import INTERDOMAIN, IPI

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.domain.pvh import PvhDomain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.kvm.vm import Vm
    from xenpy.pv.evtchn.port import Port


_PATIENCE_S: Final = 1.0
"""How long to wait for a vCPU to leave the guest."""
_LOOK_S: Final = 0.001


class _Wire(NamedTuple):
    """What a backend waits for events at, and counts up to send one: eventfds."""

    wake: int
    notify: int


class _Way(NamedTuple):
    """What KVM does with what a guest sends from a port: an event for a vCPU (by KVM's id), or one more in an eventfd."""

    vcpu: int | None
    fd: int | None


class Ports:
    """What KVM is told of ports; `kvm_id` turns a vCPU's number into KVM's. Under the host's lock."""

    def __init__(self, kvm: XenEvents, kvm_id: Callable[[int], int]) -> None:
        self._kvm = kvm
        self._kvm_id = kvm_id
        self._wires: dict[int, _Wire] = {}
        self._sends: dict[int, _Way] = {}
        self._routes: dict[int, tuple[int, int]] = {}
        """Number of an interrupt -> (port, vCPU by KVM's id)"""
        self._attached: dict[int, tuple[int, int]] = {}
        """Port -> (eventfd, number of the interrupt that it raises)"""

    def wire(self, port: int, wake: int, notify: int) -> None:
        """Have a port's events pass by eventfds from the next `set` on, until the port is connected no more."""
        self._wires[port] = _Wire(wake, notify)

    def set(self, entry: Port, *, active: bool) -> None:
        """Have KVM do with a port what it can if it is `active`, else nothing. Raises OSError where it refuses."""
        number, connected = entry.number, entry.state == INTERDOMAIN
        wire = self._wires.get(number) if connected else self._wires.pop(number, None)
        way = None
        if active and entry.state == IPI:
            way = _Way(self._kvm_id(entry.vcpu_id), None)
        elif active and connected and wire is not None:
            way = _Way(None, wire.wake)
        self._send_by(number, way)
        if way is not None and way.fd is not None and wire is not None:
            self._attach(entry, wire.notify)
        else:
            self._detach(number)

    def _send_by(self, port: int, way: _Way | None) -> None:
        if self._sends.get(port) == way:
            return
        if self._sends.pop(port, None) is not None:
            self._kvm.forget(port)
        if way is None:
            return
        if way.vcpu is not None:
            self._kvm.send_to_vcpu(port, way.vcpu)
        elif way.fd is not None:
            self._kvm.send_to_fd(port, way.fd)
        self._sends[port] = way

    def _attach(self, entry: Port, fd: int) -> None:
        target = entry.number, self._kvm_id(entry.vcpu_id)
        attached = self._attached.get(entry.number)
        if attached is not None:
            if self._routes[attached[1]] != target:
                self._routes[attached[1]] = target
                self._kvm.route(self._routes)
            return
        gsi = next((number for number in range(MAX_ROUTES) if number not in self._routes), None)
        if gsi is None:
            return  # a guest with so many devices has us send the events of those that came last
        self._routes[gsi] = target
        try:
            self._kvm.route(self._routes)
            self._kvm.attach(fd, gsi)
        except OSError:
            del self._routes[gsi]
            raise
        self._attached[entry.number] = fd, gsi

    def _detach(self, port: int) -> None:
        attached = self._attached.pop(port, None)
        if attached is not None:
            fd, gsi = attached
            self._kvm.detach(fd, gsi)
            del self._routes[gsi]
            self._kvm.route(self._routes)


class KernelEvents:
    """What KVM serves of a PVH domain's events and timers. Methods are called from any thread, but where noted."""

    def __init__(self, domain: PvhDomain, vm: Vm) -> None:
        self._domain = domain
        self._kvm = XenEvents(vm)
        self._ports = Ports(self._kvm, lambda vcpu_id: domain.vcpus[vcpu_id].kvm.vcpu_id)
        self._forbidden = 0
        self._runs = False
        self._timers: dict[int, int] = {}
        """vCPU -> the port by which its timer tells, while KVM keeps it"""
        domain.evtchn.has_fifo = False
        domain.evtchn.changed = self._changed

    @property
    def active(self) -> bool:
        """Tell whether KVM serves: the guest runs and has placed shared_info, its time goes as the host's, and nobody has forbidden it."""
        domain = self._domain
        return (
            self._runs
            and domain.kvm_has_shared_info
            and not self._forbidden
            and not domain.timekeeper.own
            and not domain.evtchn.is_fifo
        )

    def begin(self) -> None:
        """Begin to serve; when the clock is set, and before a vCPU runs."""
        self._runs = True
        self.refresh()

    def end(self) -> None:
        """Serve no more; the domain has ended."""
        self._runs = False
        self._domain.evtchn.by_kernel(None)

    def forbid(self) -> None:
        """Have everything done in Python until as many calls of `allow`; return when that is so, but for the timers of a guest that stands.

        Those are ours when their vCPUs run again, or are brought to rest. Neither in a vCPU's thread nor under the host's lock.
        """
        domain = self._domain
        with domain.host.lock:
            self._forbidden += 1
            self.refresh()
        deadline = time.monotonic() + _PATIENCE_S
        while self._keeps_timers() and not domain.stands and domain.ending is None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def _keeps_timers(self) -> bool:
        return any(vcpu.timers.offload is not None for vcpu in self._domain.vcpus)

    def allow(self) -> None:
        """Undo one `forbid`."""
        with self._domain.host.lock:
            self._forbidden -= 1
            self.refresh()

    def wire(self, entry: Port, wake: int, notify: int) -> None:
        """Have a port's events pass by the eventfds of the backend that it is connected to. Under the host's lock."""
        self._ports.wire(entry.number, wake, notify)
        self._changed(entry)

    def refresh(self) -> None:
        """Tell KVM of every port and timer what it is now."""
        domain = self._domain
        with domain.host.lock:
            if domain.ending is not None:
                return
            domain.evtchn.by_kernel(self._deliver if self.active else None)
            for entry in domain.evtchn.bound():
                self._tell(entry)
            self._set_timers()

    def _deliver(self, port: int, vcpu_id: int) -> bool:
        return self._kvm.deliver(port, self._domain.vcpus[vcpu_id].kvm.vcpu_id)

    # -- ports --------------------------------------------------------------------------------------------------------

    def _changed(self, entry: Port) -> None:
        """Hear of a port that has changed. Under the host's lock."""
        if self._runs and self._domain.ending is None:
            self._tell(entry)
            self._set_timers()

    def _tell(self, entry: Port) -> None:
        try:
            self._ports.set(entry, active=self.active)
        except OSError as error:  # the guest's events leave the kernel then, as without any of this
            self._domain.log(f"kvm-events-{entry.number}", f"port {entry.number}: {error}; it is served in Python")

    # -- timers -------------------------------------------------------------------------------------------------------

    def _set_timers(self) -> None:
        active = self.active
        for vcpu in self._domain.vcpus:
            port = self._domain.evtchn.virq_port(VIRQ.TIMER, vcpu.vcpu_id) if active else 0
            if self._timers.get(vcpu.vcpu_id, 0) != port:
                self._timers[vcpu.vcpu_id] = port
                vcpu.request(partial(self._set_timer, vcpu))

    def clock_changed(self) -> None:
        """Have timers go by a clock that has changed, or be ours if it goes at a rate of its own. While no vCPU runs."""
        if self._runs:
            self.refresh()
            for vcpu in self._domain.vcpus:
                vcpu.request(partial(self._set_timer, vcpu))

    def _set_timer(self, vcpu: Vcpu) -> None:
        """Give a vCPU's one-shot timer to KVM, or take it back, as its port says. Out of the guest, by its thread or while that stands."""
        with self._domain.host.lock:
            timers, port = vcpu.timers, self._timers.get(vcpu.vcpu_id, 0)
            if timers.offload is not None:
                timers.offload = None
                timers.singleshot = vcpu.kvm.xen_timer()[1] or None
            vcpu.kvm.xen_set_timer(port, (timers.singleshot or 0) if port else 0)
            if port:
                timers.singleshot = None
                timers.offload = partial(vcpu.kvm.xen_set_timer, port)
            vcpu.rearm()
