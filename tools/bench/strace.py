"""What tracing costs: the boot of PV Linux with every hypercall in a file, and with counts only, against the same boot untraced."""

from __future__ import annotations

import statistics
import subprocess
import time
from typing import TYPE_CHECKING, Final

from report import Row
from watch import BenchError, environment, xenpy_command

from xenpy.guests import provide
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from pathlib import Path

KERNEL: Final = "debian-6.12-cloud"
GOAL_RATIO: Final = 2.0
_TIMEOUT_S: Final = 300


def _seconds(command: list[str]) -> float:
    """Return how long a boot to power-off took."""
    started = time.monotonic()
    done = subprocess.run(
        xenpy_command(*command),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environment(),
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise BenchError(
            f"{' '.join(command)}: ended with {done.returncode}:\n{done.stderr[-2000:].decode(errors='replace')}"
        )
    return time.monotonic() - started


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement."""
    ramdisk = make_initramfs(command="uname -r", ending="poweroff")
    config = directory / "strace.cfg"
    config.write_text(
        f'name="bench"\ntype="pv"\nmemory=256\nkernel="{provide(KERNEL).kernel}"\nramdisk="{ramdisk}"\ncmdline="console=hvc0"\n'
    )
    out = str(directory / "trace")
    commands = {
        "untraced": ["run", str(config)],
        "every hypercall, message and event in a file": ["strace", "-o", out, str(config)],
        "counts only": ["strace", "-c", "-o", out, str(config)],
    }
    # In turns, so that what else the machine does costs all of them alike.
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            seconds[name].append(_seconds(command))
    off, *others = ((name, statistics.median(values)) for name, values in seconds.items())
    return [Row("strace", name, "s", value, off[1], off[0], GOAL_RATIO) for name, value in others]
