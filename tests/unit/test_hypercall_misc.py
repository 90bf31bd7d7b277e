"""The small ones: console_io, vm_assist, callback_op, physdev_op, and event_channel_op's glue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import DOMID, OTHER_DOMID, RAM_SIZE, UNMAPPED, FakeDomain, fake_domain

from xenpy.abi import event_channel as evtchn
from xenpy.errors import Errno
from xenpy.hypercalls import dispatch, physdev

if TYPE_CHECKING:
    from collections.abc import Iterator

CONSOLE_IO, VM_ASSIST, CALLBACK_OP, PHYSDEV_OP, EVENT_CHANNEL_OP = 18, 21, 30, 33, 32
ARG = 0x8000


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


@pytest.fixture
def pv_domain() -> Iterator[FakeDomain]:
    with fake_domain(is_pv=True) as made:
        yield made


# -- console_io -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1024, 1025, 5000])
def test_emergency_output(domain: FakeDomain, size: int) -> None:
    text = bytes(index % 251 for index in range(size))
    domain.memory.write(ARG + 7, text)
    assert domain.hypercall(CONSOLE_IO, 0, size, ARG + 7) == 0
    assert domain.output == text


def test_emergency_output_from_nowhere(domain: FakeDomain) -> None:
    assert domain.hypercall(CONSOLE_IO, 0, 1, UNMAPPED) == -Errno.EFAULT
    assert domain.hypercall(CONSOLE_IO, 0, 4096, RAM_SIZE - 1024) == -Errno.EFAULT
    assert len(domain.output) == 1024
    assert domain.hypercall(CONSOLE_IO, 0, 1 << 31, ARG) == -Errno.EINVAL


def test_endless_emergency_output_can_be_ended(domain: FakeDomain) -> None:
    class Ended(Exception):
        pass

    def checkpoint() -> None:
        if len(domain.output) > 100_000:
            raise Ended

    with pytest.raises(Ended):
        dispatch.dispatch(domain.call(CONSOLE_IO, 0, 0x7FFF_FFFF, 0, checkpoint=checkpoint))


def test_the_emergency_console_is_not_read(domain: FakeDomain) -> None:
    assert domain.hypercall(CONSOLE_IO, 1, 10, ARG) == -Errno.EPERM


# -- vm_assist --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_pv", "kinds"), [(False, {5}), (True, {0, 1, 2, 3, 4, 5, 32})])
def test_assists(is_pv: bool, kinds: set[int]) -> None:
    with fake_domain(is_pv=is_pv) as domain:
        for kind in (*range(40), 63, 64, (1 << 32) - 1):
            result = domain.hypercall(VM_ASSIST, 0, kind)
            assert result == (0 if kind in kinds else -Errno.EINVAL)
            assert domain.hypercall(VM_ASSIST, 2, kind) == (-Errno.ENOSYS if kind in kinds else -Errno.EINVAL)
        assert domain.vm_assist == sum(1 << kind for kind in kinds)
        for kind in kinds:
            assert domain.hypercall(VM_ASSIST, 1, kind) == 0
        assert domain.vm_assist == 0


# -- callback_op ------------------------------------------------------------------------------------------------------


def test_callbacks_are_for_pv(domain: FakeDomain, pv_domain: FakeDomain) -> None:
    for guest, result in ((domain, -Errno.ENOSYS), (pv_domain, 0)):
        guest.put(ARG, (2, 2), (1, 4 + 2), (0xFFFF_FFFF_8100_0000, 8))
        assert guest.hypercall(CALLBACK_OP, 0, ARG) == result
        assert guest.hypercall(CALLBACK_OP, 1, ARG) == result
    assert domain.vcpus[0].asked == []
    assert pv_domain.vcpus[0].asked == [
        ("register_callback", 2, 1, 0xFFFF_FFFF_8100_0000),
        ("unregister_callback", 2),
    ]
    assert pv_domain.hypercall(CALLBACK_OP, 0, UNMAPPED) == -Errno.EFAULT


# -- physdev_op -------------------------------------------------------------------------------------------------------


def test_physdev_op_does_not_exist_for_hvm(domain: FakeDomain) -> None:
    for command in (physdev.PHYSDEVOP_set_iopl, physdev.PHYSDEVOP_map_pirq, physdev.PHYSDEVOP_eoi):
        assert domain.hypercall(PHYSDEV_OP, command.number, ARG) == -Errno.ENOSYS


@pytest.mark.parametrize(("iopl", "result"), [(0, 0), (3, 0), (4, -22), ((1 << 32) - 1, -22)])
def test_iopl(pv_domain: FakeDomain, iopl: int, result: int) -> None:
    pv_domain.put(ARG, (iopl, 4))
    assert pv_domain.hypercall(PHYSDEV_OP, physdev.PHYSDEVOP_set_iopl.number, ARG, vcpu=1) == result
    assert pv_domain.vcpus[1].iopl == (0 if result else iopl)


@pytest.mark.parametrize(("ports", "result"), [(0, 0), (65536, 0), (65537, -22)])
def test_iobitmap(pv_domain: FakeDomain, ports: int, result: int) -> None:
    pv_domain.put(ARG, (UNMAPPED, 8), (ports, 4))
    assert pv_domain.hypercall(PHYSDEV_OP, physdev.PHYSDEVOP_set_iobitmap.number, ARG) == result
    assert pv_domain.vcpus[0].io_bitmap == ((0, 0) if result else (UNMAPPED, ports))


def test_physical_interrupts_are_refused(pv_domain: FakeDomain) -> None:
    for command in physdev._OPS:
        assert pv_domain.hypercall(PHYSDEV_OP, command.number, ARG) == -Errno.EPERM


# -- event_channel_op -------------------------------------------------------------------------------------------------


def event(domain: FakeDomain, command: evtchn.Op, *values: tuple[int, int], wide: bool = True) -> int:
    domain.put(ARG, *values)
    return domain.hypercall(EVENT_CHANNEL_OP, command.number, ARG, wide=wide)


@pytest.mark.parametrize("wide", [False, True])
def test_ports_are_made_connected_and_told_of(domain: FakeDomain, wide: bool) -> None:
    other = domain.peers[OTHER_DOMID]
    assert event(domain, evtchn.EVTCHNOP_alloc_unbound, (evtchn.DOMID_SELF, 2), (OTHER_DOMID, 2), wide=wide) == 0
    port = domain.number(ARG + 4, 4)
    assert event(domain, evtchn.EVTCHNOP_status, (DOMID, 4), (port, 4), wide=wide) == 0
    assert domain.number(ARG + 8, 4) == evtchn.EVTCHNSTAT.unbound
    assert domain.number(ARG + 16, 2) == OTHER_DOMID
    assert event(other, evtchn.EVTCHNOP_bind_interdomain, (DOMID, 4), (port, 4), wide=wide) == 0
    remote = other.number(ARG + 8, 4)
    assert event(domain, evtchn.EVTCHNOP_status, (evtchn.DOMID_SELF, 4), (port, 4), wide=wide) == 0
    assert domain.number(ARG + 8, 4) == evtchn.EVTCHNSTAT.interdomain
    assert (domain.number(ARG + 16, 2), domain.number(ARG + 20, 4)) == (OTHER_DOMID, remote)
    assert event(other, evtchn.EVTCHNOP_send, (remote, 4)) == 0
    assert domain.shared_info.is_pending(port)
    assert event(domain, evtchn.EVTCHNOP_close, (port, 4)) == 0


def test_virqs_and_ipis(domain: FakeDomain) -> None:
    assert event(domain, evtchn.EVTCHNOP_bind_virq, (evtchn.VIRQ.TIMER, 4), (1, 4)) == 0
    port = domain.number(ARG + 8, 4)
    assert event(domain, evtchn.EVTCHNOP_status, (evtchn.DOMID_SELF, 4), (port, 4)) == 0
    assert [domain.number(ARG + offset, 4) for offset in (8, 12, 16)] == [evtchn.EVTCHNSTAT.virq, 1, evtchn.VIRQ.TIMER]
    assert event(domain, evtchn.EVTCHNOP_bind_virq, (evtchn.VIRQ.TIMER, 4), (1, 4)) == -Errno.EEXIST
    assert event(domain, evtchn.EVTCHNOP_bind_ipi, (0, 4)) == 0
    assert event(domain, evtchn.EVTCHNOP_bind_ipi, (9, 4)) == -Errno.ENOENT


@pytest.mark.parametrize("command", [evtchn.EVTCHNOP_status, evtchn.EVTCHNOP_alloc_unbound, evtchn.EVTCHNOP_reset])
def test_ports_of_others_are_theirs(domain: FakeDomain, command: evtchn.Op) -> None:
    assert event(domain, command, (OTHER_DOMID, 2)) == -Errno.EPERM
    assert event(domain, command, (99, 2)) == -Errno.ESRCH


@pytest.mark.parametrize("number", range(14))
def test_every_event_channel_command_needs_its_argument(domain: FakeDomain, number: int) -> None:
    assert domain.hypercall(EVENT_CHANNEL_OP, number, UNMAPPED) == -Errno.EFAULT
