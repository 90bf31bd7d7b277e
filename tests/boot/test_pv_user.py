"""User mode of PV guests: processes that check all they do, and 32-bit ones, on Debian's kernel."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.boot.programs.build import build
from tests.boot.test_pv_linux import DEFAULT, arguments, lines, on_kvm
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.boot, on_kvm]
SECONDS = int(os.environ.get("XENPY_TORTURE_SECONDS", "10"))
FORKS = 100
TIMEOUT = 240 + 4 * SECONDS
COMPLAINTS = (
    "dmesg | grep -E 'BUG:|WARNING: CPU|cut here|Oops|segfault|Call Trace|unexpected|soft lockup|detected stalls'"
    " | sed 's/^/complaint /'"
)


def run(directory: Path, program: str, command: str, *settings: str) -> list[str]:
    """Boot with a program in /bin and return what the console showed."""
    import subprocess

    ramdisk = make_initramfs(
        command=f"{command}; echo ended $?; {COMPLAINTS}",
        ending="poweroff",
        files={f"bin/{program}": build(program, directory)},
    )
    argv = arguments(directory, DEFAULT, (f'ramdisk="{ramdisk}"', *settings), "true", "poweroff", TIMEOUT)
    result = subprocess.run(argv, capture_output=True, check=False, timeout=TIMEOUT + 30)
    assert result.returncode == 0, (lines(result), result.stderr)
    console = lines(result)
    assert not [line for line in console if line.startswith("complaint")], console
    return console


@pytest.mark.parametrize("vcpus", [1, 4])
def test_processes_that_check_all_they_do(tmp_path: Path, vcpus: int) -> None:
    console = run(tmp_path, "torture", f"torture {SECONDS} {FORKS}", f"vcpus={vcpus}")
    assert "ended 0" in console, console
    (totals,) = [line for line in console if line.endswith(" errors")]
    done = {what: int(count) for count, what in re.findall(r"(\d+) ([a-zA-Z]+)", totals)}
    assert done["errors"] == 0
    assert done["forks"] >= FORKS
    assert min(done[what] for what in ("execs", "maps", "faults", "signals", "threads")) > 0, totals


def test_a_32_bit_process(tmp_path: Path) -> None:
    console = run(tmp_path, "compat32", "compat32")
    said = [line.removeprefix("compat32: ") for line in console if line.startswith("compat32: ")]
    assert said == [
        "INT 0x80: right", "the vDSO's system call: right", "modify_ldt: right", "a segment in the LDT: right",
        "rt_sigaction: right", "a signal for a fault: right", "end",
    ]  # fmt: skip
    assert "ended 0" in console
