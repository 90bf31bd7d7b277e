"""Where a PV vCPU stops for what a kick was for: never within the shim, from where it could be neither saved nor called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import PV_MODES, run_kernel

from xenpy.domain.pv.vcpu import PvVcpu

if TYPE_CHECKING:
    from harness import PvRuns

_MODE = next(iter(PV_MODES))


def test_a_vcpu_does_not_attend_to_a_kick_within_the_shim(pv_runs: PvRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """In-guest code has met a bad pointer of a hypercall's, and is to leave the call to us, when the kick comes."""
    kicks = 0
    attended: list[bool] = []
    in_shim_code, attend = PvVcpu.in_shim_code, PvVcpu._attend

    def kicked(self: PvVcpu, vector: int) -> bool:
        nonlocal kicks
        goes_on = in_shim_code(self, vector)
        if goes_on:
            kicks += 1
            self.kvm.run.immediate_exit = 1
        return goes_on

    def attends(self: PvVcpu) -> None:
        attended.append(self.domain.shim.has(self.kvm.regs.rip))
        attend(self)

    monkeypatch.setattr(PvVcpu, "in_shim_code", kicked)
    monkeypatch.setattr(PvVcpu, "_attend", attends)
    result = run_kernel(pv_runs.elf("memory", _MODE), kind="pv", memory=24, timeout=60)
    assert str(result.ending) == "power-off", result.lines[-5:]
    if not kicks:
        pytest.skip("no in-guest code of this host's accesses the guest's memory in ring 3")
    assert attended
    assert True not in attended
