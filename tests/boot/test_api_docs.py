"""docs/testing.md: its examples run, on a distribution's kernel, in the order in which they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import xenpy
from tests.boot.test_api_linux import BOOT_TIMEOUT, KERNEL, ramdisk
from tests.conftest import images

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.boot, pytest.mark.kvm]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
TEXT = DOCUMENT.read_text()
_BLOCK = re.compile(
    r"^## (?P<title>[^\n]+)$|^(?P<note><!-- [^\n]+ -->\n)?```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield (heading, kind, text) of each code block; a program or suite of its own is of the kind "program" or "suite"."""
    title = ""
    for match in _BLOCK.finditer(TEXT):
        title = match["title"] or title
        if match["title"] is None:
            yield title, (match["note"] or "").strip("<!- >\n").removeprefix("a ") or match["kind"], match["text"]


FIRST = "Ten lines"
CONFIG = next(text for title, kind, text in blocks() if title == FIRST and not kind)
SUITE = next(text for title, kind, text in blocks() if title == FIRST and kind == "python")
PROGRAMS = [text for _, kind, text in blocks() if kind == "program"]
SUITES = [text for _, kind, text in blocks() if kind == "suite"]
FRAGMENTS = [(title, text) for title, kind, text in blocks() if kind == "python" and title != FIRST]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as the document's reader has it."""
    here = tmp_path_factory.mktemp("docs")
    (here / "guest.cfg").write_text(CONFIG)
    (here / "vmlinuz").symlink_to(images(KERNEL).kernel)
    (here / "initrd.img").symlink_to(ramdisk())
    return here


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=2 * BOOT_TIMEOUT,
        check=False,
    )


def test_the_first_suite_passes_and_its_failing_variant_shows_the_console(directory: Path) -> None:
    assert len(SUITE.splitlines()) <= 10
    (directory / "test_guest.py").write_text(SUITE)
    (directory / "test_wrong.py").write_text(SUITE.replace('"xen\\n"', '"kvm\\n"'))
    done = run(directory, "-m", "pytest", "-p", "no:cacheprovider")
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    expected = next(text for title, kind, text in blocks() if title == FIRST and text.startswith("E "))
    assertion, *rest = expected.splitlines()
    assert assertion in done.stdout, done.stdout
    section, trace = (line for line in rest if line.startswith("---"))
    assert trace.strip("-") in done.stdout
    assert section.strip("-") in done.stdout
    assert done.stdout.index(section.strip("-")) < done.stdout.rindex("cat /sys/hypervisor/type")


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_programs(directory: Path, program: str) -> None:
    done = run(directory, "-c", program)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{images(KERNEL).release}\n\nguest 1\n"


def test_suites(directory: Path) -> None:
    (suite,) = SUITES
    (directory / "test_forks.py").write_text(suite)
    done = run(directory, "-m", "pytest", "-p", "no:cacheprovider", "test_forks.py")
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_fragments(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    with xenpy.Guest.from_cfg("guest.cfg", timeout=BOOT_TIMEOUT) as guest:
        guest.run("true")
        names: dict[str, object] = {"g": guest, "xenpy": xenpy}
        for title, text in FRAGMENTS:
            exec(compile(text, f"{DOCUMENT.name}, {title}", "exec"), names)
        assert guest.ending is not None
    assert len(FRAGMENTS) >= 9
