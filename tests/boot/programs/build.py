"""Builds the programs that run in a guest's user mode, from the sources beside this file."""

from __future__ import annotations

import subprocess
from pathlib import Path

OPTIONS = {
    "torture": ("-O2", "-static", "-pthread"),
    "clocks": ("-O2", "-static"),
    "compat32": (
        "-m32", "-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector",
    ),
}  # fmt: skip


def build(name: str, directory: Path) -> Path:
    """Return a static executable in `directory`; raises subprocess.CalledProcessError, whose output is on stderr."""
    source = Path(__file__).with_name(f"{name}.c")
    program = directory / name
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", *OPTIONS[name], source, "-o", program], check=True)
    return program
