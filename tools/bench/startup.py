"""From the start of the process to the guest's first instruction, and what it is spent on."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Final

import tiny
from report import Row
from watch import environment, watch, xenpy_command

if TYPE_CHECKING:
    from pathlib import Path

GOAL_MS: Final = 120.0
_TIMEOUT: Final = 60.0
_IMPORT_LINE: Final = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement: medians, after one run that fills the byte code cache.

    The reference is a Python that does nothing, timed alternately.
    """
    config = tiny.write_guest(directory, "first", tiny.first_instruction())
    command = xenpy_command("-v", "run", str(config))
    idle = [sys.executable, "-c", f"import os; os.write(1, {tiny.FIRST_MARK!r})"]
    watch(command, timeout=_TIMEOUT)
    ours, used, bare = [], [], []
    for _ in range(max(5, 4 * runs)):
        seen = watch(command, timeout=_TIMEOUT)
        when, cpu = seen.at(tiny.FIRST_MARK)
        ours.append((when - seen.started) * 1e3)
        used.append(cpu * 1e3)
        seen = watch(idle, timeout=_TIMEOUT)
        bare.append((seen.at(tiny.FIRST_MARK)[0] - seen.started) * 1e3)
    rows = [
        Row("startup", "first instruction", "ms", _median(ours), goal=GOAL_MS),
        Row("startup", "of it processor time", "ms", _median(used)),
        Row("startup", "of it Python itself", "ms", _median(bare)),
    ]
    return rows + [Row("startup", f"imports: {name}", "ms", cost) for name, cost in _imports(command)]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _imports(command: list[str]) -> list[tuple[str, float]]:
    """Return what imports cost in milliseconds by package, as the interpreter accounts them: it adds about a third to each."""
    traced = [command[0], "-X", "importtime", *command[1:]]
    result = subprocess.run(
        traced, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), check=False
    )
    costs: dict[str, float] = {"all": 0.0, "xenpy": 0.0, "click": 0.0, "library": 0.0}
    for match in _IMPORT_LINE.finditer(result.stderr):
        cost, package = int(match[1]) / 1e3, match[2].partition(".")[0]
        costs[package if package in costs else "library"] += cost
        costs["all"] += cost
    return list(costs.items())
