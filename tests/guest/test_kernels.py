"""The kernels that need nothing from outside: every test in them gives its verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import build
import pytest
from harness import check

if TYPE_CHECKING:
    from harness import Mode, Runs

_KNOWN = {
    "latch": "asking for the hypercall page does not tell the guest's word size yet",
    "smp": "a vCPU that never started counts as up, and one that is initialised and brought up at once may lose its registers",
}
"""Kernels that tell of a fault of xenpy's which is not mended yet."""

_ITEMS = [(kernel, test) for kernel in build.names() if kernel not in build.STEERED for test in build.tests_of(kernel)]


def _expect_known(kernel: str, request: pytest.FixtureRequest) -> None:
    if kernel in _KNOWN:
        request.applymarker(pytest.mark.xfail(reason=_KNOWN[kernel], strict=False))


@pytest.mark.parametrize(("kernel", "test"), _ITEMS, ids=lambda value: value)
def test_verdict(runs: Runs, kernel: str, test: str, mode: Mode, request: pytest.FixtureRequest) -> None:
    _expect_known(kernel, request)
    check(runs.result(kernel, mode), test)


@pytest.mark.parametrize("kernel", [name for name in build.names() if name not in build.STEERED])
def test_ends_by_power_off(runs: Runs, kernel: str, mode: Mode, request: pytest.FixtureRequest) -> None:
    _expect_known(kernel, request)
    result = runs.result(kernel, mode)
    assert str(result.ending) == "power-off", result.lines[-5:]
