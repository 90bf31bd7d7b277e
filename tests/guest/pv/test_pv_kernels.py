"""The PV kernels that need nothing from outside: every test in them gives its verdict, and leaves the frame table in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import build
import pytest
from harness import check

if TYPE_CHECKING:
    from harness import PvRuns

_RANDOM = frozenset({"fuzz"})
"""Kernels that a test module of their own runs."""
_KERNELS = [name for name in build.PV.names() if name not in _RANDOM]
_ITEMS = [pytest.param(name, test, id=f"{name}-{test}") for name in _KERNELS for test in build.PV.tests(name)]


@pytest.mark.parametrize(("kernel", "test"), _ITEMS)
def test_verdict(pv_runs: PvRuns, pv_mode: str, kernel: str, test: str) -> None:
    check(pv_runs.result(kernel, pv_mode), test)


@pytest.mark.parametrize("kernel", _KERNELS)
def test_ends_by_power_off_with_frames_in_order(pv_runs: PvRuns, pv_mode: str, kernel: str) -> None:
    result = pv_runs.result(kernel, pv_mode)
    assert str(result.ending) == "power-off", result.lines[-5:]
    assert result.audit == []


def test_console_ring_is_heard(pv_runs: PvRuns, pv_mode: str) -> None:
    assert pv_runs.result("start", pv_mode).console == b"by the ring\n"
