"""The PV kernels in the emulated host, where SYSCALL enters ring 0: all of them by one command, so that Python starts once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import build
import pytest
from harness import CMDLINE, PV_MODES, Result, check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.emulated import EmulatedHost

pytestmark = pytest.mark.emulated
_RANDOM = frozenset({"fuzz"})
_KERNELS = [name for name in build.PV.names() if name not in _RANDOM]
_SCRIPT = Path(__file__).with_name("run_all.py")
_TIMEOUT = 900


@pytest.fixture(scope="session")
def results(emulated_host: EmulatedHost, builder: build.Builder) -> Mapping[str, Result]:
    arguments = []
    for name in _KERNELS:
        elf = builder.build(name, 64, build.PV, PV_MODES["syscall"])
        arguments += [name, str(elf), str(2 if name in build.TWO_VCPUS else 1), CMDLINE]
    done = emulated_host.run([sys.executable, str(_SCRIPT), *arguments], timeout=_TIMEOUT)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines()]
    return {entry.pop("key"): Result(**entry) for entry in told}


@pytest.mark.timeout(_TIMEOUT + 60)
@pytest.mark.parametrize("kernel", _KERNELS)
def test_ends_by_power_off_with_frames_in_order(results: Mapping[str, Result], kernel: str) -> None:
    result = results[kernel]
    assert str(result.ending) == "power-off", result.lines[-5:]
    assert result.audit == []


@pytest.mark.parametrize(("kernel", "test"), [(kernel, test) for kernel in _KERNELS for test in build.PV.tests(kernel)])
def test_verdict(results: Mapping[str, Result], kernel: str, test: str) -> None:
    check(results[kernel], test)
