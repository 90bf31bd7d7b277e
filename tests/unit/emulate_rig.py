"""A PV vCPU in plain Python for the emulation of instructions, and GNU as to write those."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from xenpy.errors import Errno, XenError
from xenpy.pv.emulate import GuestFault
from xenpy.pv.emulate.decode import REGISTERS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CODE = 0x40_0000
DATA = 0x50_0000
PAGE = 0x1000
MASK = (1 << 64) - 1
RESERVED_FLAG = 2
"""Bit 1 of RFLAGS, which is always set."""
TF = 1 << 8
RF = 1 << 16


class FakeMachine:
    """A kernel-mode vCPU with a page of code and one of data; `calls` records what hooks were asked to change."""

    def __init__(self, code: bytes = b"") -> None:
        self.regs: Any = SimpleNamespace(**dict.fromkeys(REGISTERS, 0), rip=CODE, rflags=RESERVED_FLAG)
        self.in_kernel = True
        self.long_mode = True
        self.fs_base = 0
        self.gs_base = 0
        self.iopl = 1
        self.architectural_iopl = False
        self.pages = {CODE: bytearray(PAGE), DATA: bytearray(PAGE)}
        self.pages[CODE][: len(code)] = code
        self.readonly: set[int] = set()
        self.crs = {0: 0x8000_0033 | 8, 2: 0x1234, 3: 0x5000, 4: 0x20}
        self.drs = dict.fromkeys((0, 1, 2, 3, 6, 7), 0)
        self.msrs: dict[int, int] = {}
        self.ports: dict[int, int] = {}
        self.open_ports: set[int] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.tsc = 0x1_2345_6789

    def bitmap_permits(self, port: int, size: int) -> bool:
        return self.open_ports.issuperset(range(port, port + size))

    def read_code(self, gva: int, size: int) -> bytes:
        page = self.pages.get(gva & -PAGE, b"")
        return bytes(page[gva % PAGE : gva % PAGE + size])

    def _page(self, gva: int, size: int) -> bytearray:
        page = self.pages.get(gva & -PAGE)
        if page is None or gva % PAGE + size > PAGE:
            raise XenError(Errno.EFAULT, f"{gva:#x}")
        return page

    def read(self, gva: int, size: int) -> bytes:
        return bytes(self._page(gva, size)[gva % PAGE : gva % PAGE + size])

    def write(self, gva: int, data: bytes) -> None:
        if gva & -PAGE in self.readonly:
            raise XenError(Errno.EFAULT, f"{gva:#x}")
        self.poke(gva, data)

    def poke(self, gva: int, data: bytes) -> None:
        self._page(gva, len(data))[gva % PAGE : gva % PAGE + len(data)] = data

    def number(self, gva: int, size: int = 8) -> int:
        return int.from_bytes(self.read(gva, size), "little")

    def update(self, gva: int, old: int, new: int) -> bool:
        """Change a page-table entry, as the memory management would."""
        assert gva % 8 == 0
        self.calls.append(("update", gva, old, new))
        if self.number(gva) != old:
            return False
        self.poke(gva, new.to_bytes(8, "little"))
        return True

    def read_cr(self, index: int) -> int:
        return self.crs[index]

    def write_cr(self, index: int, value: int) -> None:
        self.calls.append(("cr", index, value))
        self.crs[index] = value

    def read_dr(self, index: int) -> int:
        return self.drs[index]

    def write_dr(self, index: int, value: int) -> None:
        self.drs[index] = value

    def rdmsr(self, index: int) -> int:
        if index not in self.msrs:
            raise GuestFault(13)
        return self.msrs[index]

    def wrmsr(self, index: int, value: int) -> None:
        self.rdmsr(index)
        self.msrs[index] = value

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        self.calls.append(("cpuid", leaf, subleaf))
        return 1, 2, 3, 0xFFFF_FFFF

    def xsetbv(self, index: int, value: int) -> None:
        if index:
            raise GuestFault(13)
        self.calls.append(("xsetbv", index, value))

    def rdtsc(self) -> int:
        return self.tsc

    def port_in(self, port: int, size: int) -> int:
        self.calls.append(("in", port, size))
        return self.ports.get(port, (1 << 8 * size) - 1)

    def port_out(self, port: int, size: int, value: int) -> None:
        self.calls.append(("out", port, size, value))


def assemble(directory: Path, lines: Sequence[str]) -> list[bytes]:
    """Return the code of each piece of Intel-syntax assembly, placed one after the other. Skips the test without GNU as."""
    if not shutil.which("as") or not shutil.which("objcopy"):
        pytest.skip("no GNU as and objcopy (Debian: binutils)")
    source = directory / "code.S"
    labelled = "".join(f"i{number}: {line}\n" for number, line in enumerate(lines))
    source.write_text(
        f".intel_syntax noprefix\n{labelled}i{len(lines)}:\n.section .map\n"
        + "".join(f".long i{number} - i0\n" for number in range(len(lines) + 1))
    )
    subprocess.run(["as", "--64", "-o", directory / "code.o", source], check=True, capture_output=True)
    text, offsets = (_section(directory, name) for name in (".text", ".map"))
    ends = [int.from_bytes(offsets[at : at + 4], "little") for at in range(0, len(offsets), 4)]
    return [text[start:end] for start, end in pairwise(ends)]


def _section(directory: Path, name: str) -> bytes:
    target = directory / "section.bin"
    command = [
        "objcopy",
        "-O",
        "binary",
        "--set-section-flags",
        f"{name}=alloc",
        "-j",
        name,
        directory / "code.o",
        target,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return target.read_bytes()
