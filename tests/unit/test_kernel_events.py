"""What KVM is told of a guest's event channels and timers, without KVM: the encodings, and what becomes of timers."""

from __future__ import annotations

from struct import unpack_from
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from evtchn_rig import Guest, two_guests

from xenpy.abi import _kvm_ioctl as request
from xenpy.abi._kvm import ffi
from xenpy.abi.event_channel import VIRQ
from xenpy.domain.kernel_events import KernelEvents
from xenpy.errors import Errno, XenError
from xenpy.kvm import xen_events
from xenpy.kvm.vcpu import KvmVcpu
from xenpy.kvm.xen_events import XenEvents
from xenpy.pv.time import SystemClock, VcpuTimers

if TYPE_CHECKING:
    from collections.abc import Iterator


_VM_FD = 1234
_TWO_LEVEL = 0xFFFF_FFFF
_ATTR = "=HHHHIII"  # type, pad, send_port, type of port, flags
_DELIVER = 8 + 12


class Ioctls:
    """Takes the place of the kernel: keeps what each request carried."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int, bytes]] = []
        self.result = 0

    def __call__(self, fd: int, number: int, argument: Any, *_what: str) -> int:
        size = number >> 16 & 0x3FFF
        data = bytes(ffi.buffer(ffi.cast("char *", argument), max(size, 8 + 2 * 48)))
        self.made.append((fd, number, data))
        return self.result


@pytest.fixture
def ioctls(monkeypatch: pytest.MonkeyPatch) -> Ioctls:
    made = Ioctls()
    monkeypatch.setattr(xen_events, "checked_ioctl", made)
    monkeypatch.setattr(xen_events.libc, "ioctl", made)
    return made


def _events() -> XenEvents:
    vm: Any = SimpleNamespace(fd=_VM_FD)
    return XenEvents(vm)


# -- encodings. Ref: linux/kvm.h, struct kvm_xen_hvm_attr, kvm_irq_routing, kvm_irqfd ---------------------------------------


def test_an_ipi_goes_to_the_port_it_was_sent_from(ioctls: Ioctls) -> None:
    _events().send_to_vcpu(9, 4)
    ((fd, number, data),) = ioctls.made
    assert (fd, number) == (_VM_FD, request.KVM_XEN_HVM_SET_ATTR)
    kind, *_, send_port, type_, flags = unpack_from(_ATTR, data)
    assert (kind, send_port, type_, flags) == (3, 9, 5, 0)  # KVM_XEN_ATTR_TYPE_EVTCHN, EVTCHNSTAT_ipi
    assert unpack_from("=III", data, _DELIVER) == (9, 4, _TWO_LEVEL)


def test_an_event_to_a_backend_counts_up_its_eventfd(ioctls: Ioctls) -> None:
    _events().send_to_fd(7, 55)
    data = ioctls.made[0][2]
    assert unpack_from(_ATTR, data)[4:] == (7, 2, 0)  # EVTCHNSTAT_interdomain
    assert unpack_from("=Ii", data, _DELIVER) == (0, 55)


def test_a_port_is_taken_back(ioctls: Ioctls) -> None:
    _events().forget(7)
    assert unpack_from(_ATTR, ioctls.made[0][2])[4:] == (7, 0, 1)  # KVM_XEN_EVTCHN_DEASSIGN


def test_an_event_is_delivered_or_not(ioctls: Ioctls) -> None:
    events = _events()
    assert events.deliver(11, 2)
    fd, number, data = ioctls.made[0]
    assert (fd, number, unpack_from("=III", data)) == (_VM_FD, request.KVM_XEN_HVM_EVTCHN_SEND, (11, 2, _TWO_LEVEL))
    ioctls.result = -22
    assert not events.deliver(11, 2)


def test_interrupts_become_events(ioctls: Ioctls) -> None:
    _events().route({0: (11, 0), 3: (12, 2)})
    _, number, data = ioctls.made[0]
    assert number == request.KVM_SET_GSI_ROUTING
    assert unpack_from("=II", data) == (2, 0)
    assert unpack_from("=IIIIIII", data, 8) == (0, 5, 0, 0, 11, 0, _TWO_LEVEL)  # KVM_IRQ_ROUTING_XEN_EVTCHN
    assert unpack_from("=IIIIIII", data, 8 + 48) == (3, 5, 0, 0, 12, 2, _TWO_LEVEL)


def test_an_eventfd_raises_an_interrupt_until_detached(ioctls: Ioctls) -> None:
    events = _events()
    events.attach(40, 3)
    events.detach(40, 3)
    assert [unpack_from("=III", data) for _, _, data in ioctls.made] == [(40, 3, 0), (40, 3, 1)]


def test_the_timer_and_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Ioctls()
    monkeypatch.setattr("xenpy.kvm.vcpu.checked_ioctl", made)
    vcpu = KvmVcpu.__new__(KvmVcpu)
    vcpu.fd = 99
    vcpu.xen_set_timer(6, 123_456_789_012)
    fd, number, data = made.made[0]
    assert (fd, number) == (99, request.KVM_XEN_VCPU_SET_ATTR)
    assert unpack_from("=HHHHIIQ", data) == (7, 0, 0, 0, 6, _TWO_LEVEL, 123_456_789_012)


# -- delivery and timers -----------------------------------------------------------------------------------------------


def test_what_the_kernel_cannot_deliver_is_delivered_by_us() -> None:
    with two_guests() as (guest, _, _):
        port = guest.evtchn.bind_ipi(1)
        asked: list[tuple[int, int]] = []
        can = True

        def deliver(port: int, vcpu_id: int) -> bool:
            asked.append((port, vcpu_id))
            return can

        guest.evtchn.by_kernel(deliver)
        guest.evtchn.send(port)
        assert (asked, guest.evtchn.is_pending(port)) == ([(port, 1)], False)
        can = False
        guest.evtchn.send(port)
        assert guest.drain_2l(1) == [port]
        guest.evtchn.by_kernel(None)
        guest.evtchn.send(port)
        assert len(asked) == 2
        assert guest.drain_2l(1) == [port]


def test_without_fifo_a_guest_is_told_that_there_is_none() -> None:
    with two_guests() as (guest, _, _):
        guest.evtchn.has_fifo = False
        with pytest.raises(XenError) as refusal:
            guest.evtchn.init_control(8, 0, 0)
        assert refusal.value.errno == Errno.ENOSYS
        assert not guest.evtchn.is_fifo


def test_a_timer_that_another_keeps_is_set_there() -> None:
    with two_guests() as (guest, _, _):
        timers = VcpuTimers(SystemClock(), guest.evtchn, 0, lambda: None)
        kept: list[int] = []
        timers.offload = kept.append
        timers.set_singleshot(0)
        timers.set_singleshot(5000)
        timers.stop_singleshot()
        assert kept == [1, 5000, 0]  # 0 would be none, and is long past
        assert timers.next_deadline() is None
        timers.set_periodic(2_000_000)
        assert timers.next_deadline() is not None


class FakeKvmVcpu:
    """The timer that KVM keeps of a vCPU."""

    def __init__(self, vcpu_id: int) -> None:
        self.vcpu_id = vcpu_id
        self.timer = 0, 0

    def xen_set_timer(self, port: int, deadline: int) -> None:
        self.timer = port, deadline

    def xen_timer(self) -> tuple[int, int]:
        return self.timer


class FakeDomain:
    """A domain whose vCPUs do at once what is requested."""

    def __init__(self, guest: Guest) -> None:
        import threading

        self.host = SimpleNamespace(lock=threading.RLock())
        self.evtchn = guest.evtchn
        self.kvm_has_shared_info = True
        self.timekeeper = SimpleNamespace(own=False)
        self.ending = None
        self.stands = False
        self.logged: list[str] = []
        self.vcpus = [self._vcpu(vcpu_id) for vcpu_id in range(2)]

    def _vcpu(self, vcpu_id: int) -> Any:
        timers = VcpuTimers(SystemClock(), self.evtchn, vcpu_id, lambda: None)
        return SimpleNamespace(
            vcpu_id=vcpu_id, kvm=FakeKvmVcpu(vcpu_id), timers=timers, request=lambda action: action(), rearm=lambda: None
        )  # fmt: skip

    def log(self, _key: str, text: str) -> None:
        self.logged.append(text)


@pytest.fixture
def served(ioctls: Ioctls) -> Iterator[tuple[FakeDomain, KernelEvents]]:
    assert not ioctls.made
    with two_guests() as (guest, _, _):
        domain: Any = FakeDomain(guest)
        vm: Any = SimpleNamespace(fd=_VM_FD)
        events = KernelEvents(domain, vm)
        events.begin()
        yield domain, events


def test_a_timer_goes_to_the_kernel_with_its_port(served: tuple[FakeDomain, KernelEvents]) -> None:
    domain, _ = served
    vcpu = domain.vcpus[1]
    vcpu.timers.set_singleshot(7000)
    port = domain.evtchn.bind_virq(VIRQ.TIMER, 1)
    assert (vcpu.kvm.timer, vcpu.timers.singleshot) == ((port, 7000), None)
    vcpu.timers.set_singleshot(9000)
    assert vcpu.kvm.timer == (port, 9000)
    domain.evtchn.close(port)
    assert (vcpu.kvm.timer, vcpu.timers.singleshot) == ((0, 0), 9000)


def test_a_timer_comes_back_when_somebody_looks(served: tuple[FakeDomain, KernelEvents]) -> None:
    domain, events = served
    vcpu = domain.vcpus[0]
    port = domain.evtchn.bind_virq(VIRQ.TIMER, 0)
    vcpu.timers.set_singleshot(7000)
    events.forbid()
    events.forbid()
    assert (vcpu.kvm.timer, vcpu.timers.singleshot, events.active) == ((0, 0), 7000, False)
    events.allow()
    assert vcpu.timers.singleshot == 7000
    events.allow()
    assert (vcpu.kvm.timer, vcpu.timers.singleshot, events.active) == ((port, 7000), None, True)


def test_time_at_a_rate_of_its_own_is_ours(served: tuple[FakeDomain, KernelEvents]) -> None:
    domain, events = served
    vcpu = domain.vcpus[0]
    port = domain.evtchn.bind_virq(VIRQ.TIMER, 0)
    vcpu.timers.set_singleshot(7000)
    domain.timekeeper.own = True
    events.clock_changed()
    assert vcpu.timers.singleshot == 7000
    domain.timekeeper.own = False
    events.clock_changed()
    assert vcpu.kvm.timer == (port, 7000)


def test_nothing_is_the_kernels_before_shared_info_is_placed(served: tuple[FakeDomain, KernelEvents]) -> None:
    domain, events = served
    domain.kvm_has_shared_info = False
    port = domain.evtchn.bind_virq(VIRQ.TIMER, 0)
    assert domain.vcpus[0].kvm.timer == (0, 0)
    domain.kvm_has_shared_info = True
    events.refresh()
    assert domain.vcpus[0].kvm.timer == (port, 0)


def test_a_refusal_costs_no_more_than_the_short_cut(
    served: tuple[FakeDomain, KernelEvents], monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, _ = served

    def refuse(*_: Any) -> int:
        raise OSError(22, "refused")

    monkeypatch.setattr(xen_events, "checked_ioctl", refuse)
    port = domain.evtchn.bind_ipi(1)
    assert domain.logged == [f"port {port}: [Errno 22] refused; it is served in Python"]
