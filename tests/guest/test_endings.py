"""How a guest ends: each reason it may give, and the ways that need no hypercall."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from harness import run_kernel

from xenpy.domain.ending import End

if TYPE_CHECKING:
    from harness import Mode, Runs

_ENDINGS = {
    "poweroff": End.POWEROFF,
    "reboot": End.REBOOT,
    "suspend": End.SUSPEND,
    "crash": End.CRASH,
    "watchdog": End.WATCHDOG,
    "soft_reset": End.SOFT_RESET,
    "halt": End.POWEROFF,
    "triple_fault": End.REBOOT,
    "starve_watchdog": End.WATCHDOG,
    "announced": End.CRASH,
    "nameless": End.CRASH,
    "last_vcpu_down": End.POWEROFF,
}


@pytest.mark.parametrize("way", _ENDINGS)
def test_ends_as_the_guest_says(runs: Runs, mode: Mode, way: str) -> None:
    result = run_kernel(runs.elf("ending", mode), config_extra=f'{mode.config}\ncmdline="{way}"', timeout=60)
    assert result.lines == [f"ending: {way}"]
    assert result.ending is not None
    assert result.ending.kind is _ENDINGS[way]


def test_triple_fault_is_named(runs: Runs, mode: Mode) -> None:
    result = run_kernel(runs.elf("ending", mode), config_extra=f'{mode.config}\ncmdline="triple_fault"')
    assert "triple fault on vCPU 0" in str(result.ending)


def test_guest_that_does_not_end_is_ended(runs: Runs, mode: Mode) -> None:
    started = time.monotonic()
    result = run_kernel(runs.elf("ending", mode), config_extra=f'{mode.config}\ncmdline="spin"', timeout=0.5)
    assert result.ending is None
    assert time.monotonic() - started < 20  # not a measurement: a guest that cannot be stopped would never come here
