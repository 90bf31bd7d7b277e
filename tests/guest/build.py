"""Building the test kernels: one C file each, with what is in lib, for 32- or 64-bit mode."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
LIB = HERE / "lib"
KERNELS = HERE / "kernels"
TWO_VCPUS = frozenset({"smp"})
"""Kernels that want a second vCPU."""
STEERED = frozenset({"ending", "console", "boot"})
"""Kernels that do what their command line says, or want somebody to talk to: a test module of their own runs each."""
_XEN_HEADER = Path("/usr/include/xen/xen.h")
_TEST = re.compile(r"^TEST\((\w+)\)", re.MULTILINE)
_CFLAGS = (
    "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-pic", "-fno-stack-protector",
    "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-fno-strict-aliasing", "-fno-toplevel-reorder",
    "-mno-sse", "-mno-mmx", "-mno-red-zone",
)  # fmt: skip


class BuildError(Exception):
    """The compiler refused a test kernel; the message is what it said."""


def missing() -> str | None:
    """Return what is missing to build kernels, in a few words, or None."""
    if shutil.which("gcc") is None:
        return "no gcc"
    if not _XEN_HEADER.exists():
        return f"no {_XEN_HEADER} (Debian: libxen-dev)"
    return None


def names() -> list[str]:
    """Return the names of all test kernels."""
    return sorted(path.stem for path in KERNELS.glob("*.c"))


def tests_of(name: str) -> list[str]:
    """Return the names of the tests in a kernel, in order."""
    return _TEST.findall((KERNELS / f"{name}.c").read_text())


class Builder:
    """Builds kernels into a directory, each once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built: dict[tuple[str, int], Path] = {}
        self._libs: dict[int, list[Path]] = {}

    def build(self, name: str, bits: int = 64) -> Path:
        """Return the ELF file of a kernel. Raises BuildError."""
        key = (name, bits)
        if key not in self._built:
            self._built[key] = self._link(KERNELS / f"{name}.c", bits)
        return self._built[key]

    def _link(self, source: Path, bits: int) -> Path:
        if bits not in self._libs:
            self._libs[bits] = [self._compile(LIB / each, bits) for each in ("start.S", "guest.c")]
        kernel = self._directory / f"{source.stem}-{bits}"
        _run(
            "gcc", f"-m{bits}", "-static", "-nostdlib", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack",
            "-Wl,--no-warn-rwx-segments", f"-Wl,-T,{LIB / 'kernel.lds'}", "-o", str(kernel),
            *map(str, self._libs[bits]), str(self._compile(source, bits)),
        )  # fmt: skip
        return kernel

    def _compile(self, source: Path, bits: int) -> Path:
        target = self._directory / f"{source.name}.{bits}.o"
        _run("gcc", f"-m{bits}", *_CFLAGS, "-I", str(LIB), "-c", str(source), "-o", str(target))
        return target


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")
