"""Forks of a PV Linux on this machine's /dev/kvm: how soon they run, what memory they take, and fifty of them at once."""

from __future__ import annotations

import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

from report import Row
from watch import BenchError

import xenpy
from xenpy.guests import provide
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.api.snapshot import Snapshot

KERNEL: Final = "debian-6.12-cloud"
GOAL_FIRST_MS: Final = 20.0
GOAL_PRIVATE_MIB: Final = 8.0
_AT_ONCE: Final = 50
_SAMPLES: Final = 10
_TYPING: Final = 8
"""Threads that run commands in guests."""
_DISK: Final = 16 << 20
_TIMEOUT_S: Final = 600
_SETTLE_S: Final = 2.0


def _first_entry(snap: Snapshot) -> float:
    """Return the seconds from the call of `fork` until its vCPU enters the guest, which is idle and gets something to do at once: a key.

    Left alone, it would do so when the first of its timers is due, whenever that is.
    """
    entered: list[float] = []
    started = time.perf_counter()
    fork = snap.fork()
    enter: Callable[[], int] = fork.domain.vcpus[0].kvm.enter

    def stamp() -> int:
        if not entered:
            entered.append(time.perf_counter())
        return enter()

    fork.domain.vcpus[0].kvm.enter = stamp
    with fork:
        fork.console.sendline()
        fork.wait_for(lambda: entered or None, what="entry")
    return entered[0] - started


def _private_kib() -> int:
    """Return what this process alone has dirtied. Ref: proc(5), smaps_rollup"""
    found = re.search(r"^Private_Dirty: *(\d+) kB$", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError("/proc/self/smaps_rollup does not tell of private memory")
    return int(found[1])


def _boot(**settings: xenpy.api.settings.Setting) -> xenpy.Guest:
    images = provide(KERNEL)
    ramdisk = make_initramfs(images=images, modules=("xen-blkfront", "xen-netfront")) if settings else make_initramfs()
    return xenpy.Guest.from_kernel(
        images.kernel, type="pv", name="bench", memory=256, ramdisk=ramdisk, cmdline="console=hvc0 quiet",
        timeout=_TIMEOUT_S, **settings,
    )  # fmt: skip


def _at_once(snap: Snapshot) -> list[Row]:
    before = _private_kib()
    with ExitStack() as stack:
        started = time.perf_counter()
        forks = [stack.enter_context(snap.fork(name=f"fork-{number}")) for number in range(_AT_ONCE)]
        made = time.perf_counter() - started
        time.sleep(_SETTLE_S)
        memory = (_private_kib() - before) / _AT_ONCE / 1024
        started = time.perf_counter()

        def ask(number: int) -> bool:
            return forks[number].run(f"echo {number}").stdout == f"{number}\n"

        with ThreadPoolExecutor(_TYPING) as pool:
            answers = list(pool.map(ask, range(_AT_ONCE)))
        answered = time.perf_counter() - started
        used = (_private_kib() - before) / _AT_ONCE / 1024
    if not all(answers):
        raise BenchError(f"{answers.count(False)} of {_AT_ONCE} forks gave a wrong answer")
    return [
        Row("fork", f"{_AT_ONCE} forks at once: made and started, each", "ms", made / _AT_ONCE * 1000),
        Row("fork", "... private memory of each at start", "MiB", memory, goal=GOAL_PRIVATE_MIB),
        Row("fork", "... each has run a command and answered", "s", answered),
        Row("fork", "... private memory of each then", "MiB", used),
    ]


def measure(directory: Path, _runs: int) -> list[Row]:
    """Return the rows of this measurement."""
    rows = []
    with _boot() as guest:
        guest.run("true")
        started = time.perf_counter()
        snap = guest.snapshot()
        rows.append(Row("fork", "snapshot of 256 MiB", "ms", (time.perf_counter() - started) * 1000))
    with snap:
        first = [_first_entry(snap) * 1000 for _ in range(_SAMPLES)]
        rows.append(Row("fork", "call to first entry, median", "ms", statistics.median(first), goal=GOAL_FIRST_MS))
        rows.append(Row("fork", "call to first entry, best", "ms", min(first)))
        rows += _at_once(snap)
    disk = directory / "disk.img"
    with disk.open("wb") as file:
        file.truncate(_DISK)
    with _boot(disk=[f"{disk},raw,xvda,rw"], vif=["bridge=xenpy-bench"]) as guest:
        guest.run("until [ -e /dev/xvda ] && [ -e /sys/class/net/eth0 ]; do sleep 0.1; done").check_returncode()
        snap = guest.snapshot()
    with snap:
        first = [_first_entry(snap) * 1000 for _ in range(_SAMPLES)]
        rows.append(Row("fork", "with a disk and a network, median", "ms", statistics.median(first)))
        with snap.fork() as fork:
            check = "echo changed | dd of=/dev/xvda conv=fsync 2>/dev/null && dd if=/dev/xvda bs=8 count=1 2>/dev/null"
            if fork.run(check).stdout.split("\0")[0] != "changed\n" or disk.read_bytes().strip(b"\0"):
                raise BenchError("a fork's disk does not hold what was written, or its image does")
    return rows
