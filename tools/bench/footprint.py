"""Memory that `xenpy run` takes beyond the guest's own RAM."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Final

import tiny
from report import Row
from watch import BenchError, environment, xenpy_command

GOAL_MIB: Final = 40.0
RAM_NAME: Final = "/memfd:xenpy-ram"
_SETTLE_S: Final = 1.0
_HEADER: Final = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")


def resident_kib(pid: int) -> tuple[int, int]:
    """Return the resident KiB of a process: (guest RAM, everything else). Ref: proc(5), /proc/pid/smaps"""
    ram = other = 0
    name = ""
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        if match := _HEADER.match(line):
            name = match[1]
        elif line.startswith("Rss:"):
            if name.startswith(RAM_NAME):
                ram += int(line.split()[1])
            else:
                other += int(line.split()[1])
    return ram, other


def measure(directory: Path, _runs: int) -> list[Row]:
    """Return the row of this measurement, of a guest that halts."""
    config = tiny.write_guest(directory, "idle", tiny.idle())
    process = subprocess.Popen(
        xenpy_command("-v", "run", str(config)), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    try:
        output = process.stdout.read(1)
        if output != tiny.FIRST_MARK:
            raise BenchError(f"the guest did not start:\n{(output + process.stdout.read()).decode(errors='replace')}")
        time.sleep(_SETTLE_S)
        _, other = resident_kib(process.pid)
    finally:
        process.terminate()
        process.communicate()
    return [Row("memory", "resident beyond guest RAM", "MiB", other / 1024, goal=GOAL_MIB)]
