"""Guests that come and go leave nothing behind in the process that ran them."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness import run_kernel

from xenpy.domain.ending import End

if TYPE_CHECKING:
    import pytest
    from harness import Mode, Runs

_BOOTS = 40


def _tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _files() -> list[str]:
    return sorted(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


def test_boots_leave_nothing(runs: Runs, mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elf = runs.elf("ending", mode)
    extra = f'{mode.config}\ncmdline="poweroff"'
    for _ in range(3):  # what is made once, at the first use, is no leak
        run_kernel(elf, config_extra=extra)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads, tasks, files = threading.active_count(), _tasks(), _files()
    for _ in range(_BOOTS):
        result = run_kernel(elf, config_extra=extra)
        assert result.ending is not None
        assert result.ending.kind is End.POWEROFF
    give_up = time.monotonic() + 20  # the kernel frees a joined thread a moment later
    while _tasks() > tasks and time.monotonic() < give_up:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert _tasks() <= tasks
    assert _files() == files
    assert list(tmp_path.iterdir()) == []
