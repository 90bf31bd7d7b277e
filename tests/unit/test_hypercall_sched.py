"""sched_op."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import OTHER_DOMID, UNMAPPED, FakeDomain, fake_domain

from xenpy.abi import sched as abi
from xenpy.errors import Errno

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.abi.op import Op

SCHED_OP = 29
ARG = 0x8000
PORTS = 0x9000


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


def op(domain: FakeDomain, command: Op, arg: int = ARG, *, wide: bool = True) -> int:
    return domain.hypercall(SCHED_OP, command.number, arg, wide=wide)


def poll(domain: FakeDomain, ports: list[int], *, wide: bool, count: int | None = None, timeout: int = 0) -> int:
    word = 8 if wide else 4
    domain.put(PORTS, *((port, 4) for port in ports))
    count = len(ports) if count is None else count
    domain.put(ARG, (PORTS, word), (count, word), (timeout, 8))
    return op(domain, abi.SCHEDOP_poll, wide=wide)


def test_yield_and_block(domain: FakeDomain) -> None:
    assert op(domain, abi.SCHEDOP_yield, UNMAPPED) == op(domain, abi.SCHEDOP_block, UNMAPPED) == 0
    assert domain.vcpus[0].asked == [("yield",), ("block",)]


@pytest.mark.parametrize("reason", list(abi.SHUTDOWN))
def test_shutdown(domain: FakeDomain, reason: abi.SHUTDOWN) -> None:
    domain.put(ARG, (reason, 4))
    assert op(domain, abi.SCHEDOP_shutdown_code) == 0
    assert domain.shutdown_code == reason
    assert domain.asked == []
    assert op(domain, abi.SCHEDOP_shutdown) == 0
    assert domain.asked == [("shutdown", reason)]


@pytest.mark.parametrize("reason", [6, 255, (1 << 32) - 2])
def test_reasons_without_a_name_are_taken(domain: FakeDomain, reason: int) -> None:
    domain.put(ARG, (reason, 4))
    assert op(domain, abi.SCHEDOP_shutdown_code) == 0
    assert domain.shutdown_code == reason & 0xFF
    assert op(domain, abi.SCHEDOP_shutdown) == 0
    assert domain.asked == [("shutdown", reason & 0xFF)]


def test_the_first_code_counts(domain: FakeDomain) -> None:
    for reason in (abi.SHUTDOWN.crash, abi.SHUTDOWN.reboot):
        domain.put(ARG, (reason, 4))
        assert op(domain, abi.SCHEDOP_shutdown_code) == 0
    assert domain.shutdown_code == abi.SHUTDOWN.crash


@pytest.mark.parametrize("wide", [False, True])
def test_polling_sleeps_unless_a_port_is_pending(domain: FakeDomain, wide: bool) -> None:
    ports = [domain.evtchn.bind_ipi(0), domain.evtchn.bind_ipi(1)]
    assert poll(domain, ports, wide=wide, timeout=1 << 40) == 0
    assert domain.vcpus[0].asked == [("poll", tuple(ports), 1 << 40)]
    domain.shared_info.mark_pending(ports[1])
    assert poll(domain, ports, wide=wide) == 0
    assert len(domain.vcpus[0].asked) == 1


def test_polling_does_not_sleep_over_an_upcall(domain: FakeDomain) -> None:
    vcpu, info = domain.vcpus[0], domain.shared_info.vcpu_info[0]
    ports = [domain.evtchn.bind_ipi(0)]
    info.set_upcall_pending()
    assert poll(domain, ports, wide=True) == poll(domain, [], wide=True) == 0
    assert vcpu.asked == []
    info.upcall_mask = True
    assert poll(domain, ports, wide=True) == 0
    assert vcpu.asked == [("poll", tuple(ports), 0)], "the guest holds it off"


def test_closed_ports_are_not_polled(domain: FakeDomain) -> None:
    port = domain.evtchn.bind_ipi(0)
    assert poll(domain, [port, port + 1], wide=True) == -Errno.EINVAL
    domain.shared_info.mark_pending(port)
    assert poll(domain, [port, port + 1], wide=True) == 0, "it looks no further than the first that is pending"


def test_polling_no_ports_sleeps_for_a_time(domain: FakeDomain) -> None:
    domain.put(ARG, (UNMAPPED, 8), (0, 8), (5, 8))
    assert op(domain, abi.SCHEDOP_poll) == 0
    assert domain.vcpus[0].asked == [("poll", (), 5)]


@pytest.mark.parametrize("wide", [False, True])
def test_polls_that_are_refused(domain: FakeDomain, wide: bool) -> None:
    port = domain.evtchn.bind_ipi(0)
    assert poll(domain, [port] * 128, wide=wide) == 0
    domain.vcpus[0].asked.clear()
    assert poll(domain, [port] * 129, wide=wide) == -Errno.EINVAL
    assert poll(domain, [], wide=wide, count=(1 << 32) - 1) == -Errno.EINVAL
    for bad in (1 << 20, (1 << 32) - 1):
        assert poll(domain, [port, bad], wide=wide) == -Errno.EINVAL
    word = 8 if wide else 4
    domain.put(ARG, (0x7FF0_0000, word), (1, word), (0, 8))
    assert op(domain, abi.SCHEDOP_poll, wide=wide) == -Errno.EFAULT
    assert domain.vcpus[0].asked == []


def test_watchdogs(domain: FakeDomain) -> None:
    domain.put(ARG, (0, 4), (30, 4))
    assert op(domain, abi.SCHEDOP_watchdog) == 1
    assert domain.asked == [("watchdog", 0, 30)]


def test_other_domains_are_not_ended(domain: FakeDomain) -> None:
    for domid, result in [(OTHER_DOMID, -Errno.EPERM), (99, -Errno.ESRCH)]:
        domain.put(ARG, (domid, 4), (0, 4))
        assert op(domain, abi.SCHEDOP_remote_shutdown) == result


def test_pinning_is_refused(domain: FakeDomain) -> None:
    assert op(domain, abi.SCHEDOP_pin_override) == -Errno.EPERM


@pytest.mark.parametrize(
    "command", [value for name, value in vars(abi).items() if name.startswith("SCHEDOP_") and value.struct]
)
def test_bad_pointers(domain: FakeDomain, command: Op) -> None:
    assert op(domain, command, UNMAPPED) == -Errno.EFAULT
