"""What a guest is handed and talks to: its start_info, and the PV console."""

from __future__ import annotations

from typing import TYPE_CHECKING

import build
import pytest
from harness import check, run_kernel

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Mode, Result, Runs

    from xenpy.host import Guest

_boots: dict[object, Result] = {}


@pytest.mark.parametrize("test", build.PVH.tests("boot"))
def test_boot(runs: Runs, mode: Mode, tmp_path: Path, test: str) -> None:
    if mode not in _boots:
        module = tmp_path / "module"
        module.write_bytes(bytes(index % 251 for index in range(5000)))
        extra = f'{mode.config}\ncmdline="one two=2"\nramdisk="{module}"'
        _boots[mode] = run_kernel(runs.elf("boot", mode), config_extra=extra)
    check(_boots[mode], test)


def test_console_echoes(runs: Runs, mode: Mode) -> None:
    long_line = b"0123456789" * 300  # more than either ring holds

    def talk(guest: Guest, line: str) -> None:
        if line == "listening":
            with guest.host.lock:
                guest.console.send_input(b"hello\n" + long_line + b"\nbye\n")

    result = run_kernel(runs.elf("console", mode), config_extra=mode.config, on_line=talk)
    check(result, "echo")
    assert result.console == b"ready\n[hello]\n[" + long_line + b"]\n"
