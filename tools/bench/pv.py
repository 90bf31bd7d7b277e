"""PV Linux on this machine's /dev/kvm: how long it boots, and what processes, system calls and page faults cost inside.

The costs inside are told by the guest's own clock, /proc/uptime, of loops long enough for its hundredths of a second.
"""

from __future__ import annotations

import re
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

KERNELS: Final = ("debian-6.1-cloud", "debian-6.12-cloud")
GOAL_INIT_S: Final = 1.5
_FORKS: Final = 100
_CALLS: Final = 10_000
_PAGES: Final = 4096
_MARK: Final = "bench:"
_INIT: Final = b"Run /init"
_TIMEOUT_S: Final = 300

_COMMAND: Final = f"""
now() {{ read up rest < /proc/uptime; echo $up; }}
echo {_MARK} idle $(now) $(now)
start=$(now); i=0; while [ $i -lt {_FORKS} ]; do /bin/busybox true; i=$((i+1)); done; echo {_MARK} fork $start $(now)
start=$(now); dd if=/dev/zero of=/dev/null bs=1 count={_CALLS} 2>/dev/null; echo {_MARK} call $start $(now)
start=$(now); dd if=/dev/zero of=/dev/null bs={_PAGES}k count=4 2>/dev/null; echo {_MARK} fault $start $(now)
"""


def _run(config: Path) -> tuple[float, float, dict[str, float]]:
    """Return the seconds from process start to init and to the end, and those of each loop."""
    started = time.monotonic()
    process = subprocess.Popen(
        xenpy_command("run", str(config)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    init, output = 0.0, b""
    for line in process.stdout:
        output += line
        if _INIT in line:
            init = time.monotonic() - started
    total = time.monotonic() - started
    if process.wait(_TIMEOUT_S) or not init:
        raise BenchError(f"{config}: ended with {process.returncode}:\n{output[-2000:].decode(errors='replace')}")
    found = re.findall(rf"{_MARK} (\w+) ([\d.]+) ([\d.]+)", output.decode(errors="replace"))
    return init, total, {name: float(end) - float(start) for name, start, end in found}


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement."""
    rows = []
    for name in KERNELS:
        images = provide(name)
        ramdisk = make_initramfs(command=_COMMAND, ending="poweroff", images=images)
        for extra in ("", " noreplace-smp"):
            config = directory / "pv.cfg"
            config.write_text(
                f'name="bench"\ntype="pv"\nmemory=256\nkernel="{images.kernel}"\nramdisk="{ramdisk}"\n'
                f'cmdline="console=hvc0{extra}"\n'
            )
            results = [_run(config) for _ in range(runs)]
            label = f"{name}{extra}"
            init = statistics.median(result[0] for result in results)
            rows.append(Row("pv", f"{label}: start to init", "s", init, goal=GOAL_INIT_S))
            rows.append(
                Row("pv", f"{label}: start to power-off", "s", statistics.median(result[1] for result in results))
            )
        loops = {key: statistics.median(result[2][key] for result in results) for key in results[0][2]}
        rows.append(Row("pv", f"{name}: fork, exec and wait", "ms", loops["fork"] * 1000 / _FORKS))
        rows.append(Row("pv", f"{name}: system call", "us", loops["call"] * 1e6 / (2 * _CALLS)))
        rows.append(Row("pv", f"{name}: page fault of a new page", "us", loops["fault"] * 1e6 / _PAGES))
    return rows
