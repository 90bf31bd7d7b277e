"""hvm_op: parameters, time, memory types and upcall vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import DOMID, OTHER_DOMID, UNMAPPED, FakeDomain, fake_domain

from xenpy.abi import hvm_op as abi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno
from xenpy.pv.hvm_params import CALLBACK_TYPE_SHIFT, CALLBACK_TYPE_VECTOR, HVM_NR_PARAMS, HVM_PARAM
from xenpy.pv.shared_info import LAYOUT_32, LAYOUT_64

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.abi.op import Op

HVM_OP = 34
ARG = 0x8000
NOBODY = 99
VECTOR_CALLBACK = CALLBACK_TYPE_VECTOR << CALLBACK_TYPE_SHIFT | 0xF3


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


def op(domain: FakeDomain, command: Op, *, wide: bool = True) -> int:
    return domain.hypercall(HVM_OP, command.number, ARG, wide=wide)


def set_param(domain: FakeDomain, index: int, value: int, *, domid: int = DOMID_SELF, wide: bool = True) -> int:
    domain.put(ARG, (domid, 4), (index, 4), (value, 8))
    return op(domain, abi.HVMOP_set_param, wide=wide)


def get_param(domain: FakeDomain, index: int, *, domid: int = DOMID_SELF, wide: bool = True) -> int:
    domain.put(ARG, (domid, 4), (index, 4), (0, 8))
    result = op(domain, abi.HVMOP_get_param, wide=wide)
    return result or domain.number(ARG + 8, 8)


@pytest.mark.parametrize("wide", [False, True])
def test_parameters_of_the_toolstack_are_read(domain: FakeDomain, wide: bool) -> None:
    domain.hvm_params.values[HVM_PARAM.STORE_PFN] = 0xFEFF_C000_1
    for domid in (DOMID_SELF, DOMID):
        assert get_param(domain, HVM_PARAM.STORE_PFN, domid=domid, wide=wide) == 0xFEFF_C000_1
    assert get_param(domain, HVM_PARAM.CONSOLE_EVTCHN, wide=wide) == 0
    assert get_param(domain, HVM_PARAM.X87_FIP_WIDTH, wide=wide) == 8


@pytest.mark.parametrize("index", [HVM_NR_PARAMS, 1 << 31, (1 << 32) - 1, 4, 13, 30])
def test_parameters_that_do_not_exist(domain: FakeDomain, index: int) -> None:
    assert get_param(domain, index) == set_param(domain, index, 1) == -Errno.EINVAL


@pytest.mark.parametrize("index", range(HVM_NR_PARAMS))
def test_no_parameter_of_the_toolstacks_can_be_set(domain: FakeDomain, index: int) -> None:
    domain.hvm_params.values.clear()
    result = set_param(domain, index, 8)
    assert result in (0, -Errno.EPERM, -Errno.EINVAL)
    assert (index in domain.hvm_params.values) == (result == 0)
    if index in (HVM_PARAM.STORE_PFN, HVM_PARAM.CONSOLE_PFN, HVM_PARAM.IDENT_PT, HVM_PARAM.TRIPLE_FAULT_REASON):
        assert result == -Errno.EPERM


def test_some_parameters_stay_as_first_set(domain: FakeDomain) -> None:
    assert set_param(domain, HVM_PARAM.STORE_EVTCHN, 0) == 0
    assert set_param(domain, HVM_PARAM.STORE_EVTCHN, 5) == 0
    assert set_param(domain, HVM_PARAM.STORE_EVTCHN, 5) == 0
    assert set_param(domain, HVM_PARAM.STORE_EVTCHN, 6) == -Errno.EEXIST
    assert get_param(domain, HVM_PARAM.STORE_EVTCHN) == 5


@pytest.mark.parametrize(("value", "result"), [(0, 0), (4, 0), (8, 0), (2, -22), (1 << 63, -22)])
def test_the_fip_width_is_checked(domain: FakeDomain, value: int, result: int) -> None:
    assert set_param(domain, HVM_PARAM.X87_FIP_WIDTH, value) == result


@pytest.mark.parametrize(("wide", "layout"), [(False, LAYOUT_32), (True, LAYOUT_64)])
def test_setting_the_callback_tells_the_word_size(domain: FakeDomain, wide: bool, layout: object) -> None:
    assert set_param(domain, HVM_PARAM.CALLBACK_IRQ, VECTOR_CALLBACK, wide=wide) == 0
    assert domain.shared_info.layout is layout
    assert domain.asked == [("callback",)]
    assert get_param(domain, HVM_PARAM.CALLBACK_IRQ) == VECTOR_CALLBACK


def test_a_callback_needs_no_interrupt_controller_we_lack(domain: FakeDomain) -> None:
    assert set_param(domain, HVM_PARAM.CALLBACK_IRQ, 1 << CALLBACK_TYPE_SHIFT) == -Errno.EINVAL
    assert domain.asked == []
    assert get_param(domain, HVM_PARAM.CALLBACK_IRQ) == 0


def test_parameters_of_others_are_not_the_callers(domain: FakeDomain) -> None:
    for domid, result in [(OTHER_DOMID, -Errno.EPERM), (NOBODY, -Errno.ESRCH)]:
        assert set_param(domain, HVM_PARAM.CALLBACK_IRQ, 0, domid=domid) == result
        assert get_param(domain, HVM_PARAM.STORE_PFN, domid=domid) == result


def test_pv_guests_have_no_parameters() -> None:
    with fake_domain(is_pv=True) as domain:
        assert get_param(domain, HVM_PARAM.STORE_PFN) == -Errno.EINVAL
        assert set_param(domain, HVM_PARAM.CALLBACK_IRQ, 0) == -Errno.EINVAL


def test_flush_tlbs_takes_no_argument(domain: FakeDomain) -> None:
    assert domain.hypercall(HVM_OP, abi.HVMOP_flush_tlbs.number) == 0
    assert domain.hypercall(HVM_OP, abi.HVMOP_flush_tlbs.number, ARG) == -Errno.EINVAL


def test_pagetable_dying_is_refused(domain: FakeDomain) -> None:
    domain.put(ARG, (DOMID_SELF, 8), (0, 8))
    assert op(domain, abi.HVMOP_pagetable_dying) == -Errno.EINVAL


@pytest.mark.parametrize("wide", [False, True])
def test_time(domain: FakeDomain, wide: bool) -> None:
    domain.clock.set(1 << 40)
    assert op(domain, abi.HVMOP_get_time, wide=wide) == 0
    assert 1 << 40 <= domain.number(ARG, 8) <= domain.clock.now()


def test_memory_types(domain: FakeDomain) -> None:
    def kind(gfn: int) -> int:
        domain.put(ARG, (DOMID_SELF, 2), (0xFFFF, 2), (0, 4), (gfn, 8))
        assert op(domain, abi.HVMOP_get_mem_type) == 0
        return domain.number(ARG + 2, 2)

    domain.memory.place(0x5000, domain.shared_info.frame)
    assert kind(1) == kind(0x5000) == abi.HVMMEM_ram_rw
    domain.memory.release(1)
    assert {kind(gfn) for gfn in (1, 0x5001, 1 << 40, (1 << 64) - 1)} == {abi.HVMMEM_mmio_dm}


@pytest.mark.parametrize(
    ("vcpu", "vector", "result"), [(1, 0x20, 0), (0, 255, 0), (1, 15, -22), (0, 0, -22), (2, 32, -2), (1 << 31, 32, -2)]
)
def test_upcall_vectors(domain: FakeDomain, vcpu: int, vector: int, result: int) -> None:
    domain.put(ARG, (vcpu, 4), (vector, 1))
    assert op(domain, abi.HVMOP_set_evtchn_upcall_vector) == result
    asked = [vcpu.asked for vcpu in domain.vcpus]
    assert any(asked) == (result == 0)
    if not result:
        assert asked[vcpu] == [("upcall_vector", vector)]


@pytest.mark.parametrize(
    "command", [abi.HVMOP_set_param, abi.HVMOP_get_param, abi.HVMOP_get_time, abi.HVMOP_get_mem_type]
)
def test_bad_pointers(domain: FakeDomain, command: Op) -> None:
    assert domain.hypercall(HVM_OP, command.number, UNMAPPED) == -Errno.EFAULT
