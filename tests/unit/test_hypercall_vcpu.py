"""vcpu_op and set_timer_op."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import RAM_SIZE, UNMAPPED, FakeDomain, fake_domain

from xenpy.abi import vcpu as abi
from xenpy.abi.sched import SHUTDOWN
from xenpy.errors import Errno
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.abi.op import Op

VCPU_OP, SET_TIMER_OP = 24, 15
ARG = 0x8000
HOUR = 3_600_000_000_000


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


def op(domain: FakeDomain, command: Op, vcpu: int = 0, arg: int = ARG, *, wide: bool = True, caller: int = 0) -> int:
    return domain.hypercall(VCPU_OP, command.number, vcpu, arg, wide=wide, vcpu=caller)


ALL = [value for name, value in vars(abi).items() if name.startswith("VCPUOP_")]


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize("vcpu", [2, 4095, (1 << 32) - 1])
def test_a_vcpu_that_does_not_exist_is_enoent_whatever_the_argument(domain: FakeDomain, command: Op, vcpu: int) -> None:
    assert op(domain, command, vcpu) == op(domain, command, vcpu, UNMAPPED) == -Errno.ENOENT


def test_the_vcpu_number_has_32_bits(domain: FakeDomain) -> None:
    assert op(domain, abi.VCPUOP_is_up, 1 << 32) == 1


def test_up_and_down(domain: FakeDomain) -> None:
    assert [op(domain, abi.VCPUOP_is_up, vcpu) for vcpu in (0, 1)] == [1, 0]
    assert op(domain, abi.VCPUOP_down, 1) == 0
    assert op(domain, abi.VCPUOP_up, 1) == 0
    assert op(domain, abi.VCPUOP_is_up, 1) == 1
    assert op(domain, abi.VCPUOP_down) == 0
    assert domain.asked == []
    assert op(domain, abi.VCPUOP_down, 1, caller=1) == 0
    assert domain.asked == [("shutdown", SHUTDOWN.poweroff)], "nobody is left"


@pytest.mark.parametrize("wide", [False, True])
def test_initialise_hands_over_the_context(domain: FakeDomain, wide: bool) -> None:
    domain.put(ARG, (abi.VCPU_HVM_MODE_32B, 8), (0x11, 4), (0x22, 4))
    assert op(domain, abi.VCPUOP_initialise, 1, wide=wide) == 0
    ((name, context),) = domain.vcpus[1].asked
    registers = context.cpu_regs.x86_32
    assert (name, context.mode, registers.eax, registers.ecx) == ("initialise", abi.VCPU_HVM_MODE_32B, 0x11, 0x22)
    assert op(domain, abi.VCPUOP_initialise, 1, UNMAPPED) == -Errno.EFAULT


def test_initialise_of_pv_takes_its_own_context() -> None:
    with fake_domain(is_pv=True) as domain:
        assert op(domain, abi.VCPUOP_initialise, 1) == 0
        ((_, context),) = domain.vcpus[1].asked
        assert context.user_regs.rip == 0
        assert op(domain, abi.VCPUOP_initialise, 1, RAM_SIZE - PAGE_SIZE) == -Errno.EFAULT
        assert op(domain, abi.VCPUOP_initialise, 1, wide=False) == -Errno.ENOSYS, "PV guests are 64-bit guests"


@pytest.mark.parametrize(("wide", "size"), [(False, 44), (True, 48)])
def test_runstate_info(domain: FakeDomain, wide: bool, size: int) -> None:
    assert op(domain, abi.VCPUOP_get_runstate_info, 1, wide=wide) == 0
    first = 8 if wide else 4
    assert domain.number(ARG, 4) == abi.RUNSTATE.running
    assert [domain.number(ARG + first + 8 * index, 8) for index in range(5)] == [1000, 1, 2, 3, 4]
    assert domain.memory.read(ARG + size, 8) == bytes(8)


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (abi.VCPUOP_register_runstate_memory_area, ("runstate_area", 0x12345678, False)),
        (abi.VCPUOP_register_runstate_phys_area, ("runstate_area", 0x12345678, True)),
        (abi.VCPUOP_register_vcpu_time_memory_area, ("time_area", 0x12345678, False)),
        (abi.VCPUOP_register_vcpu_time_phys_area, ("time_area", 0x12345678, True)),
    ],
)
@pytest.mark.parametrize("wide", [False, True])
def test_areas_are_registered(domain: FakeDomain, command: Op, asked: tuple[object, ...], wide: bool) -> None:
    domain.put(ARG, (0x12345678, 8))
    assert op(domain, command, 1, wide=wide) == 0
    assert domain.vcpus[1].asked == [asked]


def test_the_periodic_timer(domain: FakeDomain) -> None:
    timers = domain.vcpus[1].timers
    domain.put(ARG, (10_000_000, 8))
    assert op(domain, abi.VCPUOP_set_periodic_timer, 1) == 0
    assert timers.period == 10_000_000
    for period in (0, 1, 999_999, (1 << 64) - 1):
        domain.put(ARG, (period, 8))
        assert op(domain, abi.VCPUOP_set_periodic_timer, 1) == -Errno.EINVAL
    assert timers.period == 10_000_000
    assert op(domain, abi.VCPUOP_stop_periodic_timer, 1) == 0
    assert timers.next_deadline() is None


def test_the_singleshot_timer(domain: FakeDomain) -> None:
    timers = domain.vcpus[0].timers
    domain.put(ARG, (HOUR, 8), (0, 4))
    assert op(domain, abi.VCPUOP_set_singleshot_timer) == 0
    assert timers.next_deadline() == HOUR
    assert op(domain, abi.VCPUOP_set_singleshot_timer, 1) == -Errno.EINVAL, "only its own"
    assert op(domain, abi.VCPUOP_stop_singleshot_timer, 1) == -Errno.EINVAL
    domain.put(ARG, (1, 8), (abi.VCPU_SSHOTTMR_future, 4))
    assert op(domain, abi.VCPUOP_set_singleshot_timer) == 0
    assert timers.next_deadline() == 1
    domain.put(ARG, ((1 << 64) - 1, 8), (0, 4))
    assert op(domain, abi.VCPUOP_set_singleshot_timer) == 0
    assert timers.next_deadline() == 0, "a negative time has passed"
    assert op(domain, abi.VCPUOP_stop_singleshot_timer) == 0
    assert timers.next_deadline() is None


def test_set_timer_op_takes_one_word_or_two(domain: FakeDomain) -> None:
    timers = domain.vcpus[0].timers
    assert domain.hypercall(SET_TIMER_OP, 5 << 32 | 7) == 0
    assert timers.next_deadline() == 5 << 32 | 7
    assert domain.hypercall(SET_TIMER_OP, 8, 6, wide=False) == 0
    assert timers.next_deadline() == 6 << 32 | 8
    assert domain.hypercall(SET_TIMER_OP, 0, wide=False) == 0
    assert timers.next_deadline() is None


@pytest.mark.parametrize("deadline", [1, 1 << 63, (1 << 64) - 1])
def test_extreme_deadlines_do_not_break_the_timer(domain: FakeDomain, deadline: int) -> None:
    assert domain.hypercall(SET_TIMER_OP, deadline) == 0
    timers = domain.vcpus[0].timers
    assert timers.expire() == (deadline == 1)


def test_vcpu_info_moves(domain: FakeDomain) -> None:
    domain.put(ARG, (20, 8), (0x100, 4), (0, 4))
    assert op(domain, abi.VCPUOP_register_vcpu_info, 1) == 0
    assert domain.asked == [("vcpu_info", 1)]
    assert domain.shared_info.vcpu_info[1].gpa == 20 * PAGE_SIZE + 0x100
    assert op(domain, abi.VCPUOP_register_vcpu_info, 1) == -Errno.EINVAL, "once"


@pytest.mark.parametrize(
    ("mfn", "offset"),
    [(20, 4096 - 63), (20, 4), (20, 4096), (20, (1 << 32) - 64), (1 << 20, 0), ((1 << 64) - 1, 0), (1 << 52, 0)],
)
def test_vcpu_info_does_not_go_just_anywhere(domain: FakeDomain, mfn: int, offset: int) -> None:
    domain.put(ARG, (mfn, 8), (offset, 4), (0, 4))
    assert op(domain, abi.VCPUOP_register_vcpu_info) == -(Errno.ENXIO if offset else Errno.EINVAL)
    assert domain.asked == []


def test_the_vcpu_info_of_another_that_runs_stays_where_it_is(domain: FakeDomain) -> None:
    domain.put(ARG, (20, 8), (0x100, 4), (0, 4))
    assert op(domain, abi.VCPUOP_up, 1) == 0
    assert op(domain, abi.VCPUOP_register_vcpu_info, 1) == -Errno.EINVAL
    assert op(domain, abi.VCPUOP_register_vcpu_info, 1, caller=1) == 0


def test_nmis_are_sent(domain: FakeDomain) -> None:
    assert op(domain, abi.VCPUOP_send_nmi, 1) == 0
    assert domain.vcpus[1].asked == [("nmi",)]


def test_physical_ids_are_not_told(domain: FakeDomain) -> None:
    assert op(domain, abi.VCPUOP_get_physid) == -Errno.EINVAL
