"""Random hypercalls from a PV kernel: it may be refused or crashed by name, but the frame table stays in order and the VMM whole."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from harness import run_kernel

from xenpy.domain.ending import End

if TYPE_CHECKING:
    from harness import PvRuns

_RUNS = 4
"""Guests that share the calls, in each mode."""
_CALLS = int(os.environ.get("XENPY_FUZZ_CALLS", "100000")) // _RUNS // 2
_FIRST_SEED = int(os.environ.get("XENPY_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 30)
"""A new one each time; each failure says which it was."""
_TIMEOUT = 60 + _CALLS // 50


@pytest.mark.timeout(2 * _TIMEOUT)
@pytest.mark.parametrize("run", range(_RUNS))
def test_random_hypercalls(pv_runs: PvRuns, pv_mode: str, run: int) -> None:
    seed = _FIRST_SEED + run
    again = f"again by XENPY_FUZZ_SEED={_FIRST_SEED} XENPY_FUZZ_CALLS={_CALLS * _RUNS * 2}"
    cmdline = f'cmdline="{seed} {_CALLS}"'
    elf = pv_runs.elf("fuzz", pv_mode)
    result = run_kernel(elf, kind="pv", memory=24, config_extra=cmdline, timeout=_TIMEOUT)
    assert result.ending is not None, (again, result.lines[-3:])
    assert result.ending.kind in (End.POWEROFF, End.CRASH), (again, result.ending, result.lines[-3:])
    assert result.audit == [], again
    if result.ending.kind is End.POWEROFF:
        assert result.verdict("survives") == ("SUCCESS", ""), again
