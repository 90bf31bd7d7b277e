"""A kernel that writes wild values to what it shares with in-guest code, where it can: it may end by that, and nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import PV_MODES, run_kernel

from xenpy.domain.ending import End
from xenpy.pv.mmu import frames

if TYPE_CHECKING:
    from harness import PvRuns

_SCRIPT = Path(__file__).with_name("run_all.py")
_TIMEOUT = 120
_WHERE = ("kernel_cr3", "user_cr3", "owed", "l4", "fault")
_MODE = next(iter(PV_MODES))


@pytest.mark.parametrize("what", [*(f"{kind}{where}" for where in _WHERE for kind in "nb"), "ntype", "nuses"])
def test_wild_values_cost_only_that_guest(pv_runs: PvRuns, what: str) -> None:
    """In a process of its own, which is what one that is not checked has been seen to cost."""
    command = [sys.executable, str(_SCRIPT), "wild", str(pv_runs.elf("wild", _MODE)), "1", what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    told = json.loads(done.stdout)
    assert told["ending"] is not None, told["lines"][-3:]
    if what[1:] in ("kernel_cr3", "user_cr3"):
        assert told["ending"].startswith(("crash", "power-off")), told["ending"]
    else:
        assert told["ending"] == "power-off", told
        assert told["verdicts"]["wild_values"][0] in ("SUCCESS", "SKIP"), told["verdicts"]


def test_a_frame_that_stays_locked_ends_the_guest(pv_runs: PvRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_PATIENCE_S", 1)
    result = run_kernel(pv_runs.elf("wild", _MODE), kind="pv", memory=24, config_extra='cmdline="nlocked"', timeout=60)
    if result.verdict("wild_values")[0] == "SKIP":
        pytest.skip(result.verdict("wild_values")[1])
    assert result.ending is not None
    assert result.ending.kind is End.CRASH, result.ending
    assert "locked" in result.ending.detail
