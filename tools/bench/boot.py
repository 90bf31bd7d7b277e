"""Boots of PVH Linux on the emulated host: xenpy against QEMU, same kernel and root filesystem, in one run.

Both are timed inside, on the clock that QEMU's emulation keeps, so the proportions are what counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from newer_qemu import find_qemu
from report import Row
from watch import BenchError, watch, xenpy_command

KERNEL: Final = "debian-6.12-cloud"
MEMORY_MIB: Final = 256
GOAL: Final = 0.7
INIT_MARK: Final = "XENPY-BENCH-INIT"
_TIMEOUT: Final = 240.0
_HOST_TIMEOUT: Final = 1800.0


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement, medians of `runs` boots each, taken alternately."""
    from xenpy.emulated import EmulatedHost
    from xenpy.guests import provide
    from xenpy.initramfs import make_initramfs

    images = provide(KERNEL)
    qemu = find_qemu()
    plan = {
        "qemu": json.dumps([*qemu.command, "-accel", qemu.accel]),
        "runs": runs,
        "kernel": str(images.kernel),
        "hvc0": str(make_initramfs(command=f"echo {INIT_MARK}", console="hvc0")),
        "ttyS0": str(make_initramfs(command=f"echo {INIT_MARK}", console="ttyS0")),
        "directory": str(directory),
    }
    script = [sys.executable, str(Path(__file__)), json.dumps(plan)]
    with EmulatedHost(writable=[directory]) as host:
        done = host.run(script, timeout=_HOST_TIMEOUT)
    if done.returncode:
        raise BenchError(f"in the emulated host: {done.stderr.decode(errors='replace')[-2000:]}")
    result = json.loads(done.stdout)
    return [
        Row("boot", f"{KERNEL} to {what}", "s", result["xenpy"][index], result["qemu"][index], qemu.words, goal)
        for index, (what, goal) in enumerate((("init", None), ("power-off", GOAL)))
    ]


def _qemu_command(plan: dict[str, str]) -> list[str]:
    return [
        *json.loads(plan["qemu"]), "-cpu", "host", "-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-no-reboot",
        "-display", "none", "-serial", "stdio", "-kernel", plan["kernel"], "-initrd", plan["ttyS0"],
        "-append", "console=ttyS0 quiet panic=1",
    ]  # fmt: skip


def _xenpy_command(plan: dict[str, str]) -> list[str]:
    config = Path(plan["directory"]) / "boot.cfg"
    config.write_text(
        f'name = "boot"\ntype = "pvh"\nkernel = "{plan["kernel"]}"\nramdisk = "{plan["hvc0"]}"\n'
        f'memory = {MEMORY_MIB}\nvcpus = 1\ncmdline = "console=hvc0 quiet panic=1"\n',
        encoding="utf-8",
    )
    return xenpy_command("run", str(config))


def _boot(command: list[str]) -> tuple[float, float]:
    """Return the seconds from process start to init, and to the end of the process."""
    seen = watch(command, timeout=_TIMEOUT)
    return seen.at(INIT_MARK.encode())[0] - seen.started, seen.ended - seen.started


def inside(plan: dict[str, str]) -> dict[str, object]:
    """Measure on this machine, which is the emulated one."""
    qemu, ours = _qemu_command(plan), _xenpy_command(plan)
    times: dict[str, list[tuple[float, float]]] = {"xenpy": [], "qemu": []}
    for turn in range(int(plan["runs"]) + 1):
        for name, command in (("xenpy", ours), ("qemu", qemu)):
            took = _boot(command)
            if turn:  # the first fills the caches of the shared root
                times[name].append(took)
    middle = {
        name: [sorted(column)[len(column) // 2] for column in zip(*rows, strict=True)] for name, rows in times.items()
    }
    return dict(middle)


if __name__ == "__main__":
    try:
        print(json.dumps(inside(json.loads(sys.argv[1]))))
    except BenchError as error:
        sys.exit(str(error))
