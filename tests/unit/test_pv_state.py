"""What a PV vCPU's in-guest code is told, and when it must no longer believe it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from xenpy.domain.pv.state import PvState
from xenpy.memory import PAGE_SIZE
from xenpy.shim.layout import ANY_SUBLEAF, CPUID_LEAVES, Selector, State

ANSWER = 1, 2, 3, 4
CS, SS = 0x1F, 0x27


def stub(*, with_subleaves: bool = False) -> Any:
    """Return what stands in for a vCPU, with a State."""
    table = SimpleNamespace(hypervisor_gap=lambda: range(5), has_subleaves=lambda _leaf: with_subleaves)
    tables = SimpleNamespace(ldt=())
    mmu = SimpleNamespace(tables_of=lambda _vcpu_id: tables)
    vcpu: Any = SimpleNamespace(
        vcpu_id=0,
        domain=SimpleNamespace(cpuid_table=table, mmu=mmu),
        kvm=SimpleNamespace(sregs=SimpleNamespace(ldt=SimpleNamespace()), dirty=lambda _sync: None),
        window=SimpleNamespace(page_va=lambda page: page * PAGE_SIZE, set_system_descriptor=lambda *_args: None),
        _show=lambda *_args: None,
        _words=memoryview(bytearray(PAGE_SIZE)).cast("Q"),
    )
    vcpu.forget_selectors = partial(PvState.forget_selectors, vcpu)
    return vcpu


def noted(vcpu: Any) -> list[int]:
    """Return the keys of the leaves that in-guest code knows."""
    count = vcpu._words[State.CPUID_COUNT]
    return vcpu._words[State.CPUID : State.CPUID + 3 * count : 3].tolist()


def test_a_leaf_is_noted_once() -> None:
    vcpu = stub(with_subleaves=True)
    for _ in range(3):
        PvState.note_cpuid(vcpu, 4, 1, ANSWER)
        PvState.note_cpuid(vcpu, 4, 2, ANSWER)
    assert noted(vcpu) == [4 | 1 << 32, 4 | 2 << 32]
    plain = stub()
    for subleaf in range(3):
        PvState.note_cpuid(plain, 1, subleaf, ANSWER)
    assert noted(plain) == [1 | ANY_SUBLEAF << 32]


def test_leaves_are_noted_while_there_is_room() -> None:
    vcpu = stub()
    for leaf in range(CPUID_LEAVES + 3):
        PvState.note_cpuid(vcpu, leaf, 0, ANSWER)
    assert len(noted(vcpu)) == CPUID_LEAVES


def test_selectors_are_forgotten_with_what_they_name() -> None:
    for change in (lambda vcpu: PvState.set_ldt(vcpu, 0, 0), lambda vcpu: PvState.set_gdt(vcpu, (), 0)):
        vcpu = stub()
        vcpu._words[State.USER_CS64], vcpu._words[State.USER_SS] = CS, SS
        change(vcpu)
        known = vcpu._words[State.USER_CS64], vcpu._words[State.USER_SS]
        assert known == (Selector.RING3_CS64, Selector.RING3_SS)
