"""The kernels that need nothing from outside: every test in them gives its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import build
import pytest
from harness import check

if TYPE_CHECKING:
    from harness import Mode, Runs

_ITEMS = [
    (kernel, test) for kernel in build.PVH.names() if kernel not in build.STEERED for test in build.PVH.tests(kernel)
]


@pytest.mark.parametrize(("kernel", "test"), _ITEMS, ids=lambda value: value)
def test_verdict(runs: Runs, kernel: str, test: str, mode: Mode) -> None:
    check(runs.result(kernel, mode), test)


@pytest.mark.parametrize("kernel", [name for name in build.PVH.names() if name not in build.STEERED])
def test_ends_by_power_off(runs: Runs, kernel: str, mode: Mode) -> None:
    result = runs.result(kernel, mode)
    assert str(result.ending) == "power-off", result.lines[-5:]
