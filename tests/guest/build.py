"""Building the test kernels: one C file each, with what is in lib, for 32- or 64-bit mode."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
LIB = HERE / "lib"
TWO_VCPUS = frozenset({"shared", "smp"})
"""Kernels that want a second vCPU."""
IN_PYTHON = frozenset({"fifo"})
"""Kernels about events as KVM's Xen support does not deliver them."""
STEERED = frozenset({"ending", "debug", "clock", "console", "boot", "forked"})
"""Kernels that do what their command line says, or want somebody to talk to: a test module of their own runs each."""
_XEN_HEADER = Path("/usr/include/xen/xen.h")
_TEST = re.compile(r"^TEST\((\w+)\)", re.MULTILINE)
_CFLAGS = (
    "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pic", "-fno-stack-protector",
    "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-fno-strict-aliasing", "-fno-toplevel-reorder",
    "-mno-sse", "-mno-mmx", "-mno-red-zone",
)  # fmt: skip


class Kind(NamedTuple):
    """A kind of kernels: where they are, and what each is linked with."""

    kernels: Path
    lib: tuple[Path, ...]

    def names(self) -> list[str]:
        """Return the names of all kernels."""
        return sorted(path.stem for path in self.kernels.glob("*.c"))

    def tests(self, name: str) -> list[str]:
        """Return the names of the tests in a kernel, in order."""
        return _TEST.findall((self.kernels / f"{name}.c").read_text())


PVH = Kind(HERE / "kernels", (LIB / "start.S", LIB / "guest.c", LIB / "hvm.c"))
PV = Kind(HERE / "pv" / "kernels", (HERE / "pv" / "lib" / "start.S", LIB / "guest.c", HERE / "pv" / "lib" / "pv.c"))


class BuildError(Exception):
    """The compiler refused a test kernel; the message is what it said."""


def missing() -> str | None:
    """Return what is missing to build kernels, in a few words, or None."""
    if shutil.which("gcc") is None:
        return "no gcc"
    if not _XEN_HEADER.exists():
        return f"no {_XEN_HEADER} (Debian: libxen-dev)"
    return None


class Builder:
    """Builds kernels into a directory, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built: dict[tuple[Path, int, tuple[str, ...]], Path] = {}

    def build(self, name: str, bits: int = 64, kind: Kind = PVH, options: tuple[str, ...] = ()) -> Path:
        """Return the ELF file of a kernel, compiled and linked with further options. Raises BuildError."""
        objects = [self._object(source, bits, options) for source in (*kind.lib, kind.kernels / f"{name}.c")]
        kernel = objects[-1].with_suffix("")
        if not kernel.exists():
            _run(
                "gcc", f"-m{bits}", *options, "-static", "-nostdlib", "-no-pie", "-Wl,--build-id=none",
                "-Wl,-z,noexecstack", "-Wl,--no-warn-rwx-segments", f"-Wl,-T,{LIB / 'kernel.lds'}", "-o", str(kernel),
                *map(str, objects),
            )  # fmt: skip
        return kernel

    def _object(self, source: Path, bits: int, options: tuple[str, ...]) -> Path:
        """Return a source file's object file."""
        key = (source, bits, options)
        if key not in self._built:
            target = self._directory / f"{len(self._built)}-{source.name}.o"
            includes = ("-I", str(LIB), "-I", str(HERE / "pv" / "lib"))
            _run("gcc", f"-m{bits}", *_CFLAGS, *options, *includes, "-c", str(source), "-o", str(target))
            self._built[key] = target
        return self._built[key]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
