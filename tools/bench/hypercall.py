"""Hypercall round trip: `xenpy run` against a C loop that does nothing, on the same KVM with the same guest code."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import tiny
from report import Row
from watch import BenchError, watch, xenpy_command

from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from watch import Watched

CALLS: Final = 50_000
GOAL: Final = 1.3
_SOURCE: Final = Path(__file__).with_name("cloop.c")
_TIMEOUT: Final = 120.0


def compile_loop(directory: Path) -> Path:
    """Compile the C loop; return the program. Raises BenchError without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("no C compiler: apt install gcc libc6-dev")
    program = directory / "cloop"
    result = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", str(program), str(_SOURCE)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise BenchError(f"{_SOURCE.name} does not compile:\n{result.stderr}")
    return program


def _per_call(seen: Watched) -> tuple[float, float]:
    """Return microseconds and microseconds of processor time per call, between the guest's two marks."""
    first, last = seen.at(tiny.FIRST_MARK), seen.at(tiny.LAST_MARK)
    return (last[0] - first[0]) / CALLS * 1e6, (last[1] - first[1]) / CALLS * 1e6


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement: the best of `runs` turns each, taken alternately."""
    config = tiny.write_guest(directory, "loop", tiny.hypercall_loop(CALLS))
    image = config.with_suffix(".elf")
    numbers = (PAGE_SIZE, tiny.LOAD_GPA, tiny.LOOP_GPA, tiny.SCHED_OP)
    bare_command = [str(compile_loop(directory)), str(image), *map(str, numbers)]
    ours_command = xenpy_command("-v", "run", str(config))
    bare, ours = [], []
    for _ in range(runs):
        bare.append(_per_call(watch(bare_command, timeout=_TIMEOUT)))
        ours.append(_per_call(watch(ours_command, timeout=_TIMEOUT)))
    wall, used = ((min(turn[each] for turn in bare), min(turn[each] for turn in ours)) for each in (0, 1))
    return [
        Row("hypercall", "round trip", "us", wall[1], wall[0], "C loop", GOAL),
        Row("hypercall", "processor time", "us", used[1], used[0], "C loop", GOAL),
    ]
