"""What tools/soak.py does with Linux as a PV guest: many boots in a row, user space under stress, clocks against the host's."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

ROOT: Final = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

_BOOT_LIMIT: Final = 300
"""Seconds that a boot may take, on a host with other work too."""
_STRESS_LIMIT: Final = 4
"""So many times longer than asked may user space take to come to its end."""
_COMPLAINT: Final = re.compile(
    r"BUG:|Oops|segfault|Call Trace|soft lockup|detected stalls|cut here|general protection|traps:|blocked for more|WRONG"
)
_END: Final = "init has come to its end"
_DMESG: Final = f"dmesg | grep -E '{_COMPLAINT.pattern}' | sed 's/^/complaint /'; echo {_END}"
_USER_SPACE: Final = "i=0; while [ $i -lt 30 ]; do /bin/busybox env A=$i sh -c 'test $A = '$i || echo WRONG environment; i=$((i + 1)); done"
_SHOWN: Final = 15
_PPM: Final = 1_000_000
_WINDOW: Final = 5
"""Samples at either end of which the one that came here fastest counts."""


def _config(options: Namespace, ramdisk: Path) -> str:
    from xenpy.guests import provide

    kernel = provide(options.pv).kernel
    return (
        f'name = "soak"\ntype = "pv"\nmemory = {options.memory}\nvcpus = {options.vcpus}\nkernel = "{kernel}"\n'
        f'ramdisk = "{ramdisk}"\ncmdline = "console=hvc0 quiet panic=1"\non_reboot = "destroy"\n'
    )


def _run(options: Namespace, ramdisk: Path, limit: int, wanted: str) -> str | None:
    """Run a guest to its end by `xenpy run`; return what was wrong, with the end of the console, or None. Prints "wanted" lines."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "soak.cfg"
        config.write_text(_config(options, ramdisk))
        command = [sys.executable, "-m", "xenpy", "run", str(config), "--timeout", str(limit)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT
        )
    console = [line.strip() for line in done.stdout.splitlines()]
    for line in console:
        if wanted and line.startswith(wanted):
            print(f"    {line}", flush=True)
    problem = None
    if done.returncode:
        problem = f"exit code {done.returncode}: {done.stderr.strip()}"
    elif _END not in console:
        problem = "init did not come to its end"
    elif any(_COMPLAINT.search(line) for line in console):
        problem = "the console shows a complaint"
    return None if problem is None else "\n    ".join([problem, *console[-_SHOWN:]])


def boots(options: Namespace) -> int:
    """Boot a kernel `options.boots` times in a row; return how many failed, at most 1."""
    from xenpy.initramfs import make_initramfs

    ramdisk = make_initramfs(command=f"{_USER_SPACE}\n{_DMESG}", ending="poweroff")
    failed, started = 0, time.monotonic()
    for boot in range(1, options.boots + 1):
        problem = _run(options, ramdisk, _BOOT_LIMIT, "")
        if problem is not None:
            failed += 1
            print(f"boot {boot}: {problem}", flush=True)
        if boot % 10 == 0 or boot == options.boots:
            print(f"{boot} boots, {failed} failed, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{options.pv}, {options.vcpus} vCPUs, {options.memory} MiB: {options.boots} boots, {failed} failed")
    return int(failed > 0)


def stress(options: Namespace) -> int:
    """Run programs that check all they do for `options.stress` seconds and `options.forks` processes; return 1 if anything was wrong."""
    from tests.boot.programs.build import build
    from xenpy.initramfs import make_initramfs

    with tempfile.TemporaryDirectory() as directory:
        files = {"bin/torture": build("torture", Path(directory))}
        command = f"torture {options.stress} {options.forks} || echo WRONG result\n{_DMESG}"
        ramdisk = make_initramfs(command=command, ending="poweroff", files=files)
    limit = _BOOT_LIMIT + _STRESS_LIMIT * (options.stress + options.forks)
    started = time.monotonic()
    problem = _run(options, ramdisk, limit, "torture: ")
    taken = time.monotonic() - started
    print(f"{options.pv}, {options.vcpus} vCPUs, {options.memory} MiB: {problem or 'nothing wrong'} in {taken:.0f} s")
    return int(problem is not None)


class _Samples:
    """What a guest's clocks showed, against the host's when the line came here."""

    def __init__(self) -> None:
        self._line = b""
        self.system_time: Callable[[], int] = lambda: 0
        self.lost = 0
        """By how much the guest's monotonic clock is behind system time: early in its boot Linux counts ticks, and may miss some."""
        self.monotonic: list[tuple[int, int]] = []
        self.realtime: list[tuple[int, int]] = []

    def take(self, data: bytes) -> int:
        """Take console output."""
        host = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.time_ns()
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            words = line.split()
            if len(words) == 3 and words[0] == b"clocks":
                for samples, now, word in zip((self.monotonic, self.realtime), host, words[1:], strict=True):
                    samples.append((now, now - int(word)))
                self.lost = self.system_time() - int(words[1])
        return len(data)


def _drift(samples: list[tuple[int, int]]) -> float:
    """Return by how many ppm the guest's clock is slower than the host's (host's time, its lead over the guest's) pairs say."""
    first, last = (min(part, key=lambda pair: pair[1]) for part in (samples[:_WINDOW], samples[-_WINDOW:]))
    return (last[1] - first[1]) * _PPM / (last[0] - first[0])


def clock(options: Namespace) -> int:
    """Compare the guest's clocks with the host's for `options.clock` seconds, and vCPUs' runstates with the time that has passed."""
    from tests.boot.programs.build import build
    from xenpy.config import build as build_config
    from xenpy.config import parse_text
    from xenpy.host import Host
    from xenpy.initramfs import make_initramfs

    with tempfile.TemporaryDirectory() as directory:
        files = {"bin/clocks": build("clocks", Path(directory))}
        ramdisk = make_initramfs(command=f"clocks {options.clock}\n{_DMESG}", ending="poweroff", files=files)
    samples = _Samples()
    host = Host()
    try:
        guest = host.create(build_config(parse_text(_config(options, ramdisk), "soak"), "soak"), samples.take)
        host.on_end = lambda _domain: host.loop.stop()
        guest.start()
        host.loop.call_later(_BOOT_LIMIT + _STRESS_LIMIT * options.clock, host.loop.stop)
        samples.system_time = guest.domain.clock.now
        looks: list[list[tuple[int, tuple[int, ...]]]] = []

        def look() -> None:
            with host.lock:
                looks.append([(guest.domain.clock.now(), vcpu.runstate()[2]) for vcpu in guest.domain.vcpus])

        for delay in (0, options.clock):
            host.loop.call_later(delay, look)
        host.loop.run()
        ending = guest.domain.ending
        guest.close()
    finally:
        host.close()
    print(f"ended: {ending}; {len(samples.monotonic)} samples")
    if len(samples.monotonic) < 2 * _WINDOW:
        print("too few samples")
        return 1
    raw, real = _drift(samples.monotonic), _drift(samples.realtime)
    print(f"CLOCK_MONOTONIC is {raw:+.1f} ppm slower than the host's CLOCK_MONOTONIC_RAW")
    behind = samples.realtime[-1][1]
    print(f"CLOCK_REALTIME is {real:+.1f} ppm slower than the host's and {behind / 1e6:.1f} ms behind it;")
    print(f"    its monotonic clock is {samples.lost / 1e6:.1f} ms behind system time, which began with the domain")
    for vcpu_id, (before, after) in enumerate(zip(*looks, strict=True)):
        times = [late - early for early, late in zip(before[1], after[1], strict=True)]
        shown = ", ".join(f"{ns / 1e9:.3f}" for ns in times)
        differ = (sum(times) - (after[0] - before[0])) / 1e3
        print(
            f"vCPU {vcpu_id}: running, runnable, blocked, offline {shown} s; differ from system time by {differ:+.0f} us"
        )
    return 0
