"""Running a test kernel in this process, and what came of it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import build as kernels
import pytest

from xenpy.config import build, parse_text
from xenpy.domain.pv.domain import PvDomain
from xenpy.errors import HostError
from xenpy.host import Guest, Host
from xenpy.kvm.constants import Cap
from xenpy.kvm.system import Kvm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xenpy.domain.ending import Ending
    from xenpy.pv.mmu import Difference

UUID = "12345678-9abc-def0-0102-030405060708"
NAME = "guest-test"
_VERDICT = re.compile(r"(\w+): (SUCCESS|SKIP|ERROR|FAILURE|CRASH) ?(.*)")


@dataclass
class Result:
    """What a kernel said and how it ended; `ending` is None if it did not within the time given."""

    ending: Ending | None = None
    lines: list[str] = field(default_factory=list)
    console: bytes = b""
    seconds: float = 0.0
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Test name -> (verdict, text)."""
    audit: list[Difference] = field(default_factory=list)
    """What was wrong with the frame table of a PV guest when it had ended."""

    def verdict(self, test: str) -> tuple[str, str]:
        """Return a test's verdict and text; CRASH if the kernel gave none."""
        if test in self.verdicts:
            return self.verdicts[test]
        ending = "is still running" if self.ending is None else f"ended: {self.ending}"
        last = self.lines[-1] if self.lines else "nothing"
        return "CRASH", f"no verdict; the kernel {ending}; it last said: {last}"


class _Run:
    def __init__(self, host: Host, guest_config: str, on_line: Callable[[Guest, str], None] | None) -> None:
        self._host = host
        self._on_line = on_line
        self._partial = b""
        self._console = bytearray()
        self.result = Result()
        self.guest = host.create(build(parse_text(guest_config, "guest test"), "guest test"), self._sink)
        self.guest.domain.on_emergency_output = self._on_output
        host.on_end = lambda _domain: host.loop.stop()

    def _sink(self, data: bytes) -> int:
        self._console += data
        return len(data)

    def _on_output(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        for raw in lines:
            line = raw.decode("ascii", "replace")
            self.result.lines.append(line)
            if match := _VERDICT.fullmatch(line):
                self.result.verdicts[match[1]] = (match[2], match[3])
            if self._on_line is not None:
                self._host.loop.call_soon(partial(self._on_line, self.guest, line))

    def run(self, timeout: float) -> Result:
        started = time.monotonic()
        deadline = self._host.loop.call_later(timeout, self._host.loop.stop)
        self.guest.start()
        self._host.loop.run()
        deadline.cancel()
        self.result.ending = self.guest.domain.ending
        if self.result.ending is not None:
            self.guest.domain.wait_closed(2)
            if isinstance(self.guest.domain, PvDomain):
                self.result.audit = self.guest.domain.mmu.audit()
        self.result.seconds = time.monotonic() - started
        self.result.console = bytes(self._console) + self.guest.console.drain()
        return self.result


def run_kernel(
    elf: Path,
    *,
    kind: str = "pvh",
    vcpus: int = 1,
    memory: int = 32,
    config_extra: str = "",
    timeout: float = 60.0,
    on_line: Callable[[Guest, str], None] | None = None,
) -> Result:
    """Boot a kernel as a guest of the type `kind` and wait for its end, `timeout` seconds at most; `memory` in MiB.

    `on_line(guest, line)` is called in this thread for each line of the emergency console while the guest runs.
    """
    config = (
        f'type="{kind}"\nname="{NAME}"\nuuid="{UUID}"\nkernel="{elf}"\nvcpus={vcpus}\nmemory={memory}\n{config_extra}\n'
    )
    host = Host()
    try:
        run = _Run(host, config, on_line)
        try:
            return run.run(timeout)
        finally:
            run.guest.close()
    finally:
        host.close()


class Mode(NamedTuple):
    """How a kernel is run: its word size, and whether by KVM's own Xen support (None: as the host has it)."""

    bits: int
    kvm_xen: bool | None

    def __str__(self) -> str:
        return f"{self.bits}" + {None: "", True: "-kvm_xen", False: "-fallback"}[self.kvm_xen]

    @property
    def config(self) -> str:
        return "" if self.kvm_xen is None else f"xenpy_kvm_xen={int(self.kvm_xen)}"


def _has_kvm_xen() -> bool:
    try:
        kvm = Kvm()
    except HostError:
        return False
    try:
        return bool(kvm.check(Cap.XEN_HVM))
    finally:
        kvm.close()


MODES = [Mode(bits, kvm_xen) for bits in (64, 32) for kvm_xen in ((True, False) if _has_kvm_xen() else (None,))]


class Runs:
    """Runs kernels that take nothing but themselves, each once a mode."""

    def __init__(self, builder: kernels.Builder) -> None:
        self._builder = builder
        self._results: dict[tuple[str, Mode], Result] = {}

    def elf(self, kernel: str, mode: Mode) -> Path:
        return self._builder.build(kernel, mode.bits)

    def result(self, kernel: str, mode: Mode) -> Result:
        key = (kernel, mode)
        if key not in self._results:
            vcpus = 2 if kernel in kernels.TWO_VCPUS else 1
            extra = f"{mode.config}\nxenpy_kvm_events=0" if kernel in kernels.IN_PYTHON else mode.config
            self._results[key] = run_kernel(self.elf(kernel, mode), vcpus=vcpus, config_extra=extra)
        return self._results[key]


CMDLINE = "first second=2"
"""That of PV kernels that are not told anything in particular."""
PV_MODES = {
    "syscall": (),
    "page": ("-DHYPERCALL_PAGE", "-mcmodel=kernel", "-Wl,--defsym=VIRT_BASE=0xffffffff80000000"),
}
"""How PV kernels call Xen, and the options of gcc for that. Ref: pv/lib/layout.h"""


class PvRuns:
    """Runs PV kernels that take nothing but themselves, each once a mode."""

    def __init__(self, builder: kernels.Builder) -> None:
        self._builder = builder
        self._results: dict[tuple[str, str], Result] = {}

    def elf(self, kernel: str, mode: str) -> Path:
        return self._builder.build(kernel, 64, kernels.PV, PV_MODES[mode])

    def result(self, kernel: str, mode: str) -> Result:
        key = (kernel, mode)
        if key not in self._results:
            vcpus = 2 if kernel in kernels.TWO_VCPUS else 1
            extra = f'cmdline="{CMDLINE}"'
            elf = self.elf(kernel, mode)
            self._results[key] = run_kernel(elf, kind="pv", vcpus=vcpus, memory=24, config_extra=extra, timeout=60)
        return self._results[key]


def check(result: Result, test: str) -> None:
    """Make a test's verdict in a kernel that of the calling pytest item."""
    what, text = result.verdict(test)
    if what == "SKIP":
        pytest.skip(text)
    assert what == "SUCCESS", f"{what} {text}"
