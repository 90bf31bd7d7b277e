"""The table of exit codes is the same in the code, in the manual and in the command's help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xenpy.exitcodes import ExitCode

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "cli.md"


@pytest.mark.parametrize("code", list(ExitCode))
def test_the_manual_has_every_code_by_number_and_name(code: ExitCode) -> None:
    if not MANUAL.exists():
        pytest.skip("docs/cli.md is not written yet")
    rows = [line for line in MANUAL.read_text().splitlines() if re.search(rf"\b{int(code)}\b", line)]
    assert any(code.name in line for line in rows)


def test_the_help_of_run_has_every_code_it_can_end_with() -> None:
    from xenpy.cli.run import run

    listed = {
        int(number) for number in re.findall(r"(?:^|[ ,])(\d+) [a-z]", (run.help or "").partition("Exit codes:")[2])
    }
    assert listed == set(ExitCode) - {ExitCode.FAILURE}
