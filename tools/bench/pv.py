"""PV Linux on this machine's /dev/kvm: how long it boots, and what processes, system calls and page faults cost inside.

The costs inside are told by the guest's own clock, /proc/uptime, of loops long enough for its hundredths of a second.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Final, NamedTuple

import tiny_pv
from report import Row
from watch import BenchError, environment, watch, xenpy_command

from xenpy.guests import provide
from xenpy.initramfs import make_initramfs

KERNELS: Final = ("debian-6.1-cloud", "debian-6.12-cloud")
GOAL_INIT_S: Final = 1.5
_FORKS: Final = 100
_CALLS: Final = 10_000
_PAGES: Final = 4096
_PAGE_KIB: Final = 4
_ROUNDS: Final = 2000
_COUNTS: Final = _FORKS, _CALLS, _PAGES, _ROUNDS
_HYPERCALLS: Final = 2_000_000
_MARK: Final = "bench:"
_INIT: Final = b"Run /init"
_TIMEOUT_S: Final = 300


def command(forks: int, calls: int, pages: int, rounds: int) -> str:
    """Return what a guest does between marks: so many processes, system calls times two, new pages, and rounds between two processes."""
    return f"""
now() {{ read up rest < /proc/uptime; echo $up; }}
echo {_MARK} idle $(now) $(now)
start=$(now); i=0; while [ $i -lt {forks} ]; do /bin/busybox true; i=$((i+1)); done; echo {_MARK} fork $start $(now)
start=$(now); dd if=/dev/zero of=/dev/null bs=1 count={calls} 2>/dev/null; echo {_MARK} call $start $(now)
start=$(now); dd if=/dev/zero of=/dev/null bs={pages * _PAGE_KIB}k count=1 2>/dev/null; echo {_MARK} fault $start $(now)
mkfifo /tmp/to /tmp/fro
while read word; do echo $word; done </tmp/to >/tmp/fro &
exec 3>/tmp/to 4</tmp/fro
start=$(now); i=0; while [ $i -lt {rounds} ]; do echo x >&3; read word <&4; i=$((i+1)); done; echo {_MARK} round $start $(now)
exec 3>&- 4<&-
"""


def loop_rows(label: str, loops: dict[str, float], forks: int, calls: int, pages: int, rounds: int) -> list[Row]:
    """Return what the loops of `command` tell, in seconds by their names, as rows."""
    return [
        Row("pv", f"{label}: fork, exec and wait", "ms", loops["fork"] * 1000 / forks),
        Row("pv", f"{label}: system call", "us", loops["call"] * 1e6 / (2 * calls)),
        Row("pv", f"{label}: page fault of a new page", "us", loops["fault"] * 1e6 / pages),
        Row("pv", f"{label}: to another process and back", "us", loops["round"] * 1e6 / rounds),
    ]


def hypercall_row(directory: Path) -> Row:
    """Return what a call of XENVER_version costs, which never leaves the guest."""
    config = tiny_pv.write_guest(directory, _HYPERCALLS)
    seen = watch(xenpy_command("-v", "run", str(config)), timeout=_TIMEOUT_S)
    seconds = seen.at(tiny_pv.LAST_MARK)[0] - seen.at(tiny_pv.FIRST_MARK)[0]
    return Row("pv", "hypercall within the guest", "ns", seconds * 1e9 / _HYPERCALLS)


def _processor_s(pid: int) -> float:
    """Return the processor time of a process's threads so far, the guest's included. Ref: linux/Documentation/scheduler/sched-stats.rst"""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


class Boot(NamedTuple):
    """What one boot took, in seconds: to init, of that processor time, to the end; and each loop."""

    init: float
    processor: float
    end: float
    loops: dict[str, float]


def run(config: Path) -> Boot:
    """Boot a guest."""
    started = time.monotonic()
    process = subprocess.Popen(
        xenpy_command("run", str(config)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    init, processor, output = 0.0, 0.0, b""
    for line in process.stdout:
        output += line
        if _INIT in line:
            init, processor = time.monotonic() - started, _processor_s(process.pid)
    total = time.monotonic() - started
    if process.wait(_TIMEOUT_S) or not init:
        raise BenchError(f"{config}: ended with {process.returncode}:\n{output[-2000:].decode(errors='replace')}")
    found = re.findall(rf"{_MARK} (\w+) ([\d.]+) ([\d.]+)", output.decode(errors="replace"))
    return Boot(init, processor, total, {name: float(end) - float(start) for name, start, end in found})


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement."""
    rows = [hypercall_row(directory)]
    for name in KERNELS:
        images = provide(name)
        ramdisk = make_initramfs(command=command(*_COUNTS), ending="poweroff", images=images)
        for extra in ("", " noreplace-smp"):
            config = directory / "pv.cfg"
            config.write_text(
                f'name="bench"\ntype="pv"\nmemory=256\nkernel="{images.kernel}"\nramdisk="{ramdisk}"\n'
                f'cmdline="console=hvc0{extra}"\n'
            )
            results = [run(config) for _ in range(runs)]
            label = f"{name}{extra}"
            init, processor, end = (statistics.median(column) for column in list(zip(*results, strict=True))[:3])
            rows.append(Row("pv", f"{label}: start to init", "s", init, goal=GOAL_INIT_S))
            rows.append(Row("pv", f"{label}: of it processor time", "s", processor))
            rows.append(Row("pv", f"{label}: start to power-off", "s", end))
        loops = {key: statistics.median(result.loops[key] for result in results) for key in results[0].loops}
        rows += loop_rows(name, loops, *_COUNTS)
    return rows
