"""The model-specific registers of a PV guest, by the table of its processor's maker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xenpy.pv.emulate import GuestFault, read_msr, write_msr

FS_BASE, GS_BASE, SHADOW_GS_BASE, TSC_AUX = range(0xC000_0100, 0xC000_0104)
ALL = (1 << 64) - 1


def state(**differences: Any) -> Any:
    values = {"fs_base": 1, "gs_base": 2, "kernel_gs_base": 3, "tsc_aux": 4, "vcpu_id": 0, "is_intel": True}
    return SimpleNamespace(**values | {"has_gp_handler": True, "rdtsc": lambda: 0x1234} | differences)


def refused(call: Any, *args: Any) -> bool:
    with pytest.raises(GuestFault) as caught:
        call(*args)
    return (caught.value.vector, caught.value.error_code) == (13, 0)


@pytest.mark.parametrize(
    ("index", "name"), [(FS_BASE, "fs_base"), (GS_BASE, "gs_base"), (SHADOW_GS_BASE, "kernel_gs_base")]
)
def test_segment_bases(index: int, name: str) -> None:
    vcpu = state()
    assert read_msr(vcpu, index) == getattr(vcpu, name)
    for gva in (0, (1 << 47) - 1, ALL - (1 << 47) + 1, ALL):
        write_msr(vcpu, index, gva)
        assert read_msr(vcpu, index) == getattr(vcpu, name) == gva
    for gva in (1 << 47, ALL - (1 << 47), 1 << 63):
        assert refused(write_msr, vcpu, index, gva)
        assert getattr(vcpu, name) == ALL


def test_tsc_aux() -> None:
    vcpu = state()
    write_msr(vcpu, TSC_AUX, 0xFFFF_FFFF)
    assert read_msr(vcpu, TSC_AUX) == 0xFFFF_FFFF
    assert refused(write_msr, vcpu, TSC_AUX, 1 << 32)


def test_the_time_stamp_counter_is_not_set() -> None:
    assert read_msr(state(), 0x10) == 0x1234
    assert refused(write_msr, state(), 0x10, 0x1234)


COMMON = [
    (0xC000_0080, 0xD01),  # EFER: SCE, LME, LMA, NXE
    (0x277, 0x0000_0501_0007_0406),  # PAT
    (0x1B, 0xFEE0_0900),  # APIC_BASE: enabled, and of the boot processor
    (0x8B, 0),
    (0x179, 0),
]


@pytest.mark.parametrize(("index", "value"), COMMON)
@pytest.mark.parametrize("is_intel", [True, False])
def test_values_that_may_be_written_back(index: int, value: int, is_intel: bool) -> None:
    vcpu = state(is_intel=is_intel)
    assert read_msr(vcpu, index) == value
    write_msr(vcpu, index, value)
    assert refused(write_msr, vcpu, index, value ^ 1)
    assert refused(write_msr, vcpu, index, value | 1 << 63)


def test_only_the_first_vcpu_booted_the_others() -> None:
    assert read_msr(state(vcpu_id=1), 0x1B) == 0xFEE0_0800


@pytest.mark.parametrize(
    ("index", "is_intel"),
    [(0x1A0, True), (0xCE, True), (0x140, True), (0x186, True), (0xC001_0015, False), (0xC001_0000, False)],
)
def test_each_maker_has_its_own(index: int, is_intel: bool) -> None:
    write_msr(state(is_intel=is_intel), index, read_msr(state(is_intel=is_intel), index))
    assert refused(read_msr, state(is_intel=not is_intel), index)
    assert refused(write_msr, state(is_intel=not is_intel), index, 0)


@pytest.mark.parametrize(
    ("index", "is_intel"), [(0xC1, True), (0x38F, True), (0xC001_0004, False), (0xC001_020B, False)]
)
def test_counters_do_not_count(index: int, is_intel: bool) -> None:
    vcpu = state(is_intel=is_intel)
    write_msr(vcpu, index, 0xABCD)
    assert read_msr(vcpu, index) == 0


@pytest.mark.parametrize("index", [0, 0xFE, 0x2FF, 0x48, 0xC000_0081, 0xC000_0082, 0xC001_0112, 0xFFFF_FFFF])
def test_others_fault_once_the_guest_can_take_it(index: int) -> None:
    assert refused(read_msr, state(), index)
    assert read_msr(state(has_gp_handler=False), index) == 0
    assert refused(write_msr, state(), index, 0)
    assert refused(write_msr, state(has_gp_handler=False), index, 0)


def test_xens_own_are_never_made_up() -> None:
    assert refused(read_msr, state(has_gp_handler=False), 0x4000_0000)
    assert refused(read_msr, state(has_gp_handler=False), 0x4000_0200)
