"""PV Linux on the emulated host, where SYSCALL enters ring 0, beside PVH with the same kernel and root filesystem, in one run.

Both are timed inside, on the clock that QEMU's emulation keeps, so the proportions are what counts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pv import command, hypercall_row, loop_rows, run
from report import Row
from watch import BenchError

KERNEL: Final = "debian-6.1-cloud"
_SWITCHING: Final = "pvh-pti"
"""A PVH guest that, as a PV one must, changes page tables when it goes into its kernel and when it leaves it."""
_COUNTS: Final = 20, 20_000, 4096, 200
"""Processes, system calls, pages and rounds."""
_HOST_TIMEOUT_S: Final = 1800.0


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement; `runs` is not heeded, each guest boots once."""
    del runs
    from xenpy.emulated import EmulatedHost
    from xenpy.guests import provide
    from xenpy.initramfs import make_initramfs

    images = provide(KERNEL)
    ramdisk = make_initramfs(command=command(*_COUNTS), ending="poweroff", images=images)
    for name, kind, extra in (("pv", "pv", ""), ("pvh", "pvh", ""), (_SWITCHING, "pvh", " pti=on nopcid")):
        (directory / f"{name}.cfg").write_text(
            f'name="bench"\ntype="{kind}"\nmemory=256\nkernel="{images.kernel}"\nramdisk="{ramdisk}"\n'
            f'cmdline="console=hvc0{extra}"\n'
        )
    with EmulatedHost(writable=[directory]) as host:
        done = host.run([sys.executable, str(Path(__file__)), str(directory)], timeout=_HOST_TIMEOUT_S)
    if done.returncode:
        raise BenchError(f"in the emulated host: {done.stderr.decode(errors='replace')[-2000:]}")
    return [Row(**row) for row in json.loads(done.stdout)]


def inside(directory: Path) -> list[Row]:
    """Measure on this machine, which is the emulated one."""
    rows, tables = [hypercall_row(directory)], {}
    for kind in ("pvh", _SWITCHING, "pv"):
        init, _, total, loops = run(directory / f"{kind}.cfg")
        tables[kind] = [
            Row("pv", f"{KERNEL}: start to init", "s", init),
            Row("pv", f"{KERNEL}: start to power-off", "s", total),
            *loop_rows(KERNEL, loops, *_COUNTS),
        ]
    for pv, pvh in zip(tables["pv"], tables["pvh"], strict=True):
        rows.append(Row("pv", pv.name, pv.unit, pv.value, pvh.value, "PVH"))
    for switching, pvh in zip(tables[_SWITCHING][2:], tables["pvh"][2:], strict=True):
        rows.append(
            Row("pv", f"{switching.name}, PVH with pti=on nopcid", switching.unit, switching.value, pvh.value, "PVH")
        )
    return rows


if __name__ == "__main__":
    try:
        sys.stdout.write(json.dumps([asdict(row) for row in inside(Path(sys.argv[1]))]))
    except BenchError as error:
        sys.exit(str(error))
