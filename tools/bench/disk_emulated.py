"""A PVH guest's disk against the Xen disk of an HVM guest of QEMU's, on the emulated host, with one program, kernel and image.

The image is in the emulated host's memory for both, and the guests bypass their own caches (O_DIRECT).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from disk import LOADS, SIZE
from load import DURATION_MS, KERNEL, PROGRAM, Result, alternate, compile_load, row
from newer_qemu import find_qemu
from watch import BenchError, xenpy_command

from xenpy.emulated import EmulatedHost
from xenpy.guests import provide
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from report import Row

_MEMORY_MIB: Final = 256
_TIMEOUT_S: Final = 300
_IMAGE: Final = "/tmp/xenpy-bench-disk.img"
"""Inside the emulated host, whose root is its own."""
_DEVICE: Final = "xvda"
_MARK: Final = "XENPY-BENCH"
_BLOCK: Final = 1 << 20
_UNITS: Final = {"k/s": "/s"}
"""What is counted in thousands elsewhere is a few hundred here."""


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement, medians of `runs` boots each, taken alternately."""
    qemu = find_qemu()
    if not qemu.has_xen:
        raise BenchError(f"{qemu.words} has no Xen disks, and Debian's backports cannot be had")
    ours, theirs = _commands(directory, [*qemu.command, "-accel", qemu.accel])
    with EmulatedHost(writable=[directory]) as host:
        count = SIZE // _BLOCK
        host.run(
            ["dd", "if=/dev/zero", f"of={_IMAGE}", f"bs={_BLOCK}", f"count={count}"], timeout=_TIMEOUT_S, check=True
        )
        tables = [(_run(host, ours), _run(host, theirs)) for _ in range(runs)]
    rows = []
    for index, (name, unit, _, _) in enumerate(LOADS):
        first: Iterator[Result] = iter([mine[index] for mine, _ in tables])
        second: Iterator[Result] = iter([other[index] for _, other in tables])
        middle = alternate(runs, first.__next__, second.__next__)
        rows.append(row("disk", name, _UNITS.get(unit, unit), *middle, qemu.words))
    return rows


def _commands(directory: Path, qemu: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command lines of both guests, which run every load and print its result after a mark."""
    program, images = compile_load(directory), provide(KERNEL)
    script = [f"while [ ! -b /dev/{_DEVICE} ]; do usleep 100000; done"]
    for _, _, load, threads in LOADS:
        words = " ".join(map(str, load))
        script.append(f"echo {_MARK} $(/{PROGRAM} disk /dev/{_DEVICE} {words} {DURATION_MS} {threads} direct)")
    ramdisks = {
        console: make_initramfs(
            command="\n".join(script), ending="poweroff", images=images, modules=["xen-blkfront"],
            files={PROGRAM: program}, console=console,
        )
        for console in ("hvc0", "ttyS0")
    }  # fmt: skip
    config = directory / "disk.cfg"
    config.write_text(
        f'name = "disk"\ntype = "pvh"\nkernel = "{images.kernel}"\nramdisk = "{ramdisks["hvc0"]}"\n'
        f'memory = {_MEMORY_MIB}\nvcpus = 1\ncmdline = "console=hvc0 quiet panic=1"\n'
        f'disk = ["{_IMAGE},raw,{_DEVICE},rw"]\n',
        encoding="utf-8",
    )
    theirs = [
        *qemu, "-cpu", "host", "-m", str(_MEMORY_MIB), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-serial", "stdio", "-kernel", str(images.kernel), "-initrd", str(ramdisks["ttyS0"]),
        "-append", "console=ttyS0 quiet panic=1", "-drive", f"file={_IMAGE},format=raw,if=none,id=disk",
        "-device", f"xen-disk,drive=disk,vdev={_DEVICE}",
    ]  # fmt: skip
    return xenpy_command("run", str(config)), theirs


def _run(host: EmulatedHost, command: Sequence[str]) -> list[Result]:
    """Run one guest to its end and return what it printed, in the order of the loads. Raises BenchError."""
    done = host.run(list(command), timeout=_TIMEOUT_S)
    text = (done.stdout + done.stderr).decode(errors="replace")
    found = re.findall(rf"{_MARK} (\d+) (\d+) (\d+)", text)
    if done.returncode or len(found) != len(LOADS):
        raise BenchError(f"{command[0]} ended with {done.returncode} and {len(found)} results:\n{text[-2000:]}")
    return [Result(*map(int, fields)) for fields in found]
