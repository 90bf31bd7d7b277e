"""Which port of a guest's goes which way when KVM can serve events, and when: without KVM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from evtchn_rig import Guest, two_guests

from xenpy.abi.event_channel import VIRQ
from xenpy.domain.kernel_events import Ports
from xenpy.kvm.xen_events import MAX_ROUTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.pv.evtchn import EventChannels, HostPorts


class Kernel:
    """Takes the place of XenEvents: what KVM would know, by port and by interrupt."""

    def __init__(self) -> None:
        self.sends: dict[int, tuple[str, int]] = {}
        self.routes: dict[int, tuple[int, int]] = {}
        self.attached: dict[int, int] = {}
        self.refuses = False
        self.refuses_eventfds = False

    def send_to_vcpu(self, port: int, vcpu: int) -> None:
        self._send(port, "vcpu", vcpu)

    def send_to_fd(self, port: int, fd: int) -> None:
        self._send(port, "fd", fd)

    def _send(self, port: int, kind: str, target: int) -> None:
        if self.refuses:
            raise OSError(22, "refused")
        assert port not in self.sends, "KVM refuses a port that it has"
        self.sends[port] = kind, target

    def forget(self, port: int) -> None:
        del self.sends[port]

    def route(self, routes: dict[int, tuple[int, int]]) -> None:
        self.routes = dict(routes)

    def attach(self, fd: int, gsi: int) -> None:
        if self.refuses_eventfds:
            raise OSError(16, "refused")
        assert gsi in self.routes
        assert fd not in self.attached
        self.attached[fd] = gsi

    def detach(self, fd: int, gsi: int) -> None:
        assert self.attached.pop(fd) == gsi


class World:
    """A guest whose ports are told to a kernel, and the host."""

    def __init__(self, guest: Guest, host: HostPorts) -> None:
        self.kernel = Kernel()
        kernel: Any = self.kernel
        self.ports = Ports(kernel, lambda vcpu_id: 2 * vcpu_id)
        self.evtchn: EventChannels = guest.evtchn
        self.host = host
        self.active = True
        guest.evtchn.changed = lambda entry: self.ports.set(entry, active=self.active)

    def connect(self, wake: int | None = None, notify: int | None = None) -> tuple[int, int]:
        """Make a channel to a backend, with eventfds if it has some; return (the guest's port, ours)."""
        port = self.evtchn.alloc_unbound(0)
        ours = self.host.bind_interdomain(self.evtchn.domid, port)
        if wake is not None and notify is not None:
            self.ports.wire(port, wake, notify)
            peer = self.host.peer(ours)
            assert peer is not None
            self.evtchn.changed(peer)
        return port, ours

    def refresh(self) -> None:
        for entry in self.evtchn.bound():
            self.ports.set(entry, active=self.active)


@pytest.fixture
def world() -> Iterator[World]:
    with two_guests() as (guest, _, host):
        yield World(guest, host)


def test_an_ipi_is_the_kernels_until_it_is_closed(world: World) -> None:
    port = world.evtchn.bind_ipi(1)
    assert world.kernel.sends == {port: ("vcpu", 2)}
    world.evtchn.close(port)
    assert world.kernel.sends == {}


def test_a_backend_with_eventfds_is_reached_by_them(world: World) -> None:
    port, _ = world.connect(wake=50, notify=51)
    assert world.kernel.sends == {port: ("fd", 50)}
    assert world.kernel.attached == {51: 0}
    assert world.kernel.routes == {0: (port, 0)}


def test_a_backend_without_them_is_reached_by_the_hypercall(world: World) -> None:
    world.connect()
    world.evtchn.bind_virq(VIRQ.TIMER, 0)
    assert (world.kernel.sends, world.kernel.attached) == ({}, {})


def test_an_eventfd_that_is_refused_takes_no_interrupt(world: World) -> None:
    world.kernel.refuses_eventfds = True
    for _ in range(2):
        with pytest.raises(OSError, match="refused"):
            world.connect(wake=50, notify=51)
    world.kernel.refuses_eventfds = False
    port, _ = world.connect(wake=60, notify=61)
    assert (world.kernel.attached, world.kernel.routes) == ({61: 0}, {0: (port, 0)})


def test_a_port_is_closed_with_nothing_pending(world: World) -> None:
    port = world.evtchn.bind_ipi(1)
    tell = world.evtchn.changed

    def send_late(entry: Any) -> None:
        world.evtchn.deliver(entry)  # as KVM may until it has been told
        tell(entry)

    world.evtchn.changed = send_late
    world.evtchn.close(port)
    world.evtchn.changed = tell
    again = world.evtchn.bind_ipi(1)
    assert again == port
    assert not world.evtchn.is_pending(again)


def test_events_follow_the_vcpu_that_a_port_is_bound_to(world: World) -> None:
    port, _ = world.connect(wake=50, notify=51)
    world.evtchn.bind_vcpu(port, 2)
    assert world.kernel.routes == {0: (port, 4)}
    assert world.kernel.sends == {port: ("fd", 50)}


@pytest.mark.parametrize("by_guest", [True, False])
def test_whoever_closes_a_channel_ends_its_eventfds(world: World, *, by_guest: bool) -> None:
    port, ours = world.connect(wake=50, notify=51)
    other, _ = world.connect(wake=60, notify=61)
    if by_guest:
        world.evtchn.close(port)
    else:
        world.host.close(ours)
    assert world.kernel.sends == {other: ("fd", 60)}
    assert (world.kernel.attached, world.kernel.routes) == ({61: 1}, {1: (other, 0)})
    again = world.evtchn.alloc_unbound(0) if by_guest else port
    world.host.bind_interdomain(world.evtchn.domid, again)
    assert again not in world.kernel.sends, "eventfds of a channel that is no more are used for another"


def test_a_reset_takes_everything_back(world: World) -> None:
    world.connect(wake=50, notify=51)
    world.evtchn.bind_ipi(0)
    world.evtchn.reset()
    assert (world.kernel.sends, world.kernel.attached, world.kernel.routes) == ({}, {}, {})


def test_all_is_ours_while_somebody_looks_and_the_kernels_afterwards(world: World) -> None:
    port, _ = world.connect(wake=50, notify=51)
    ipi = world.evtchn.bind_ipi(1)
    world.active = False
    world.refresh()
    assert (world.kernel.sends, world.kernel.attached, world.kernel.routes) == ({}, {}, {})
    world.active = True
    world.refresh()
    assert world.kernel.sends == {port: ("fd", 50), ipi: ("vcpu", 2)}
    assert world.kernel.attached == {51: 0}


def test_more_backends_than_routes_are_told_without(world: World) -> None:
    ports = [world.connect(wake=2 * fd, notify=2 * fd + 1)[0] for fd in range(100, 101 + MAX_ROUTES)]
    assert len(world.kernel.attached) == MAX_ROUTES
    assert world.kernel.sends.keys() == set(ports)


def test_what_the_kernel_refuses_can_be_told_again(world: World) -> None:
    world.kernel.refuses = True
    with pytest.raises(OSError, match="refused"):
        world.evtchn.bind_ipi(1)
    world.kernel.refuses = False
    world.refresh()
    assert len(world.kernel.sends) == 1
