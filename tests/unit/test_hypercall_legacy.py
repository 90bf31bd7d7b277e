"""Hypercalls in the form that they had before Xen 3.2."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import UNMAPPED, FakeDomain, fake_domain

from xenpy.abi import event_channel as evtchn
from xenpy.abi.sched import SHUTDOWN, SCHEDOP_block, SCHEDOP_poll, SCHEDOP_shutdown, SCHEDOP_yield
from xenpy.errors import Errno
from xenpy.hypercalls import physdev

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHED_OP, EVENT_CHANNEL_OP, PHYSDEV_OP = 6, 16, 19
ARG = 0x8000


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain(is_pv=True) as made:
        yield made


def test_sched_op(domain: FakeDomain) -> None:
    assert domain.hypercall(SCHED_OP, SCHEDOP_yield.number) == domain.hypercall(SCHED_OP, SCHEDOP_block.number) == 0
    assert domain.vcpus[0].asked == [("yield",), ("block",)]
    assert domain.hypercall(SCHED_OP, SCHEDOP_poll.number, ARG) == -Errno.ENOSYS
    for reason, taken in ((SHUTDOWN.crash, SHUTDOWN.crash), (0x4000_1703, 3), (252, 252)):
        domain.asked.clear()
        assert domain.hypercall(SCHED_OP, SCHEDOP_shutdown.number, reason) == 0
        assert domain.asked == [("shutdown", taken)]


def test_event_channel_op(domain: FakeDomain) -> None:
    domain.put(ARG, (evtchn.EVTCHNOP_bind_ipi.number, 4), (1, 4), (0, 4))
    assert domain.hypercall(EVENT_CHANNEL_OP, ARG) == 0
    port = int.from_bytes(domain.memory.read(ARG + 8, 4), "little")
    assert domain.evtchn.status(port).vcpu_id == 1
    domain.put(ARG, (evtchn.EVTCHNOP_close.number, 4), (port, 4))
    assert domain.hypercall(EVENT_CHANNEL_OP, ARG) == 0
    assert domain.hypercall(EVENT_CHANNEL_OP, ARG) == -Errno.EINVAL
    domain.put(ARG, (evtchn.EVTCHNOP_reset.number, 4), (0x7FF0, 2))
    assert domain.hypercall(EVENT_CHANNEL_OP, ARG) == -Errno.ENOSYS
    assert domain.hypercall(EVENT_CHANNEL_OP, UNMAPPED) == -Errno.EFAULT


@pytest.mark.parametrize("wide", [False, True])
def test_physdev_op(domain: FakeDomain, wide: bool) -> None:
    word = 8 if wide else 4
    domain.put(ARG, (physdev.PHYSDEVOP_set_iobitmap.number, word), (ARG + 64, word), (77, 4))
    assert domain.hypercall(PHYSDEV_OP, ARG, wide=wide) == 0
    assert domain.vcpus[0].io_bitmap == (ARG + 64, 77)
    domain.put(ARG, (99, 4))
    assert domain.hypercall(PHYSDEV_OP, ARG, wide=wide) == -Errno.ENOSYS
    assert domain.hypercall(PHYSDEV_OP, UNMAPPED, wide=wide) == -Errno.EFAULT


def test_they_are_for_pv_guests() -> None:
    with fake_domain() as domain:
        for number in (SCHED_OP, EVENT_CHANNEL_OP, PHYSDEV_OP):
            assert domain.hypercall(number, 0) == -Errno.ENOSYS
