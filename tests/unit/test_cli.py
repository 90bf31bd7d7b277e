"""The command line: help, and every mistake a documented exit code, one line and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from xenpy import __version__
from xenpy.cli import main as cli
from xenpy.exitcodes import ExitCode

if TYPE_CHECKING:
    from pathlib import Path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Run the command line in this process; return exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return int(caught.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(cli._COMMANDS))])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(capsys: pytest.CaptureFixture[str], command: list[str], option: str) -> None:
    code, out, _ = run(capsys, *command, option)
    assert code == 0
    assert out.startswith("Usage: xenpy")
    if not command:
        assert all(name in out for name in cli._COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"xenpy, version {__version__}\n", "")


@pytest.mark.parametrize(
    "args",
    [
        ["frobnicate"],
        ["--frobnicate"],
        ["run"],
        ["run", "--timeout", "0", "x"],
        ["run", "--type", "hvm", "x"],
        ["--host", "moon"],
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    code, _, err = run(capsys, *args)
    assert code == ExitCode.CONFIG
    assert "Error:" in err


@pytest.mark.parametrize(
    ("text", "overrides", "word"),
    [
        (None, [], "guest.cfg"),
        ('name = "x', [], "guest.cfg:1"),
        ("kernel = [", [], "guest.cfg"),
        ('kernel = "/no/such/kernel"\ntype = "pvh"', [], "/no/such/kernel"),
        ('kernel = "/dev/null"\ntype = "pvh"', ["memory=lots"], "memory"),
        ('kernel = "/dev/null"\ntype = "pvh"', ["nonsense"], "nonsense"),
        ('type = "hvm"', [], "hvm"),
        ('type = "pvh"', [], "kernel"),
    ],
)
def test_a_wrong_configuration_names_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, overrides: list[str], word: str
) -> None:
    path = tmp_path / "guest.cfg"
    if text is not None:
        path.write_text(f'{text}\nname = "x"\n')
    code, out, err = run(capsys, "run", str(path), *overrides)
    assert (code, out) == (ExitCode.CONFIG, "")
    assert word in err


@pytest.mark.parametrize("content", [b"", b"not a kernel", b"\x7fELF" + bytes(100), bytes(range(256)) * 40])
def test_a_file_that_is_no_kernel(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(content)
    code, _, err = run(capsys, "run", "/dev/null", 'name="x"', f'kernel="{kernel}"', 'type="pvh"', "memory=16")
    assert code in (ExitCode.CONFIG, ExitCode.HOST)  # a host without KVM says so first
    assert err.startswith("xenpy: ")
    assert "kernel" in err if code == ExitCode.CONFIG else "kvm" in err


def test_the_doctor_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    document = json.loads(out)
    assert code == (ExitCode.POWEROFF if document["can_run"] else ExitCode.HOST)
    assert {"name", "status", "text", "remedy"} == set(document["findings"][0])


def test_as_a_module_with_nobody_reading() -> None:
    command = f"{sys.executable} -m xenpy --help | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("U", "")
