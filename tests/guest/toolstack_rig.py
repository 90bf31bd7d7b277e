"""Running the toolstack's commands as a user does: each in a process of its own, with a runtime directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 60.0


class Done:
    """What a command came to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


class Toolstack:
    """The commands, and a kernel for guests."""

    def __init__(self, directory: Path, kernel: Path) -> None:
        self.runtime = directory / "xenpy"
        self.kernel = kernel
        self.directory = directory
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(directory)}

    def popen(self, *args: str, program: str = "xl", **options: Any) -> subprocess.Popen[bytes]:
        """Start a command."""
        module = {"xl": ["-m", "xenpy.cli.xl"], "xenpy": ["-m", "xenpy"]}[program]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, *module, *args], env=self.environment, **{**pipes, **options})

    def xl(self, *args: str, stdin: bytes = b"") -> Done:
        """Run a command to its end."""
        with self.popen(*args) as process:
            out, err = process.communicate(stdin, timeout=TIMEOUT_S)
        done = Done(process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
        assert "Traceback" not in done.err
        return done

    def ok(self, *args: str) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.xl(*args)
        assert done.code == 0, done.err
        return done.out

    def settings(self, name: str, *more: str) -> list[str]:
        """Return the arguments of `create` for a guest."""
        return ["/dev/null", f"name={name}", "type=pvh", f"kernel={self.kernel}", "memory=16", *more]

    def create(self, name: str, *options: str, settings: tuple[str, ...] = ()) -> None:
        """Create a guest."""
        self.ok("create", "-q", *options, *self.settings(name, *settings))

    def listed(self) -> dict[str, list[str]]:
        """Return the columns of `xl list` behind the name, by name, without Domain-0."""
        title, host, *lines = self.ok("list").splitlines()
        assert title.split() == ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]
        assert host.split()[:2] == ["Domain-0", "0"]
        return {line.split()[0]: line.split()[1:] for line in lines}

    def record(self, name: str) -> dict[str, Any]:
        """Return what the registry says of a guest."""
        domid = self.ok("domid", name).strip()
        record: dict[str, Any] = json.loads((self.runtime / "domains" / domid / "record").read_text())
        return record

    def entries(self) -> list[str]:
        """Return what is in the directory of domains."""
        directory = self.runtime / "domains"
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []

    def destroy_all(self) -> None:
        """Leave nothing behind, whatever a test did."""
        for name in self.listed():
            self.xl("destroy", name)

    @contextmanager
    def viewer(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """Watch a guest's console, whose process is killed at the end if it is still there."""
        process = self.popen("console", name)
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Tell whether a process is there and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False
