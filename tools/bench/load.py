"""The load that disk and network measurements run, on the host and in guests: `io.c`, compiled once for both."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from report import Row
from watch import BenchError

import xenpy
from xenpy.guests import provide
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

KERNEL: Final = "debian-6.12-cloud"
PROGRAM: Final = "bin/io"
DURATION_MS: Final = 2000
_SOURCE: Final = Path(__file__).with_name("io.c")
_TIMEOUT_S: Final = 240
_MEMORY_MIB: Final = 256


@dataclass(frozen=True)
class Result:
    """What one run moved, and how long it took."""

    size: int
    operations: int
    ns: int

    @property
    def mib_s(self) -> float:
        """Return MiB per second."""
        return self.size / (1 << 20) / (self.ns / 1e9)

    @property
    def us(self) -> float:
        """Return microseconds per operation."""
        return self.ns / 1e3 / max(1, self.operations)

    @property
    def thousands_s(self) -> float:
        """Return thousands of operations per second."""
        return self.per_second / 1e3

    @property
    def per_second(self) -> float:
        """Return operations per second."""
        return self.operations / (self.ns / 1e9)


def compile_load(directory: Path) -> Path:
    """Compile the program, without any library; return it. Raises BenchError without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError("no C compiler: apt install gcc libc6-dev")
    program = directory / "io"
    command = [compiler, "-O2", "-Wall", "-static", "-pthread", "-o", str(program), str(_SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"{_SOURCE.name} does not compile:\n{result.stderr}")
    return program


def parse(output: str) -> Result:
    """Return what the program printed. Raises BenchError if it was something else."""
    fields = output.split()
    if len(fields) != 3 or not all(field.isdigit() for field in fields):
        raise BenchError(f"the load printed {output!r}")
    return Result(*map(int, fields))


def on_host(program: Path, arguments: Sequence[str]) -> Result:
    """Run the program here. Raises BenchError."""
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    if done.returncode:
        raise BenchError(f"io {' '.join(arguments)}: {done.stderr}")
    return parse(done.stdout)


def in_guest(guest: xenpy.Guest, arguments: Sequence[str]) -> Result:
    """Run the program in a guest. Raises BenchError."""
    done = guest.run(f"/{PROGRAM} {' '.join(arguments)}", timeout=_TIMEOUT_S)
    if done.returncode:
        raise BenchError(f"in the guest, io {' '.join(arguments)}: {done.stdout}")
    return parse(done.stdout)


def make_guest(host: xenpy.Host, name: str, program: Path, module: str, **devices: list[str]) -> xenpy.Guest:
    """Return a PV Linux that has the program, a driver and devices, not yet started."""
    images = provide(KERNEL)
    ramdisk = make_initramfs(images=images, modules=[module], files={PROGRAM: program})
    return xenpy.Guest.from_kernel(
        images.kernel, host=host, timeout=_TIMEOUT_S, name=name, type="pv", memory=_MEMORY_MIB, ramdisk=ramdisk,
        cmdline="console=hvc0 quiet", **devices,
    )  # fmt: skip


def alternate(runs: int, ours: Callable[[], Result], reference: Callable[[], Result]) -> tuple[Result, Result]:
    """Return the medians, by time per operation, of both, taken in turns."""
    results = [(ours(), reference()) for _ in range(runs)]
    middle = runs // 2
    first, second = (sorted(column, key=lambda result: result.us)[middle] for column in zip(*results, strict=True))
    return first, second


def row(group: str, name: str, unit: str, ours: Result, reference: Result, against: str) -> Row:
    """Return a row; the ratio is xenpy's figure by the reference's, whichever of them is better."""
    figures = {"MiB/s": Result.mib_s, "us": Result.us, "k/s": Result.thousands_s, "/s": Result.per_second}
    figure = figures[unit].fget
    assert figure is not None
    return Row(group, name, unit, figure(ours), figure(reference), against)


@contextmanager
def serving(program: Path, port: int) -> Iterator[None]:
    """Run the program's server on this host meanwhile."""
    process = subprocess.Popen([str(program), "serve", str(port)], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"serving\n":
            raise BenchError(f"port {port} cannot be served")
        yield
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
