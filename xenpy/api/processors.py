"""A guest's vCPUs from outside: stopping them, their registers, and what their addresses mean."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.api.progress import Progress
    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu

_STOP_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Registers:
    """The registers of a vCPU that stands still; `str` shows them in hexadecimal."""

    rip: int
    rflags: int
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    cs: int
    ss: int
    fs_base: int
    gs_base: int

    def __str__(self) -> str:
        return " ".join(f"{field.name}={getattr(self, field.name):#x}" for field in fields(self))


_SYSTEM: Final = ("cr0", "cr2", "cr3", "cr4", "efer")


class Processors:
    """The vCPUs of a domain. Methods may be called from any thread that is not one of theirs."""

    def __init__(self, domain: Domain, progress: Progress) -> None:
        self._domain = domain
        self._progress = progress

    def pause(self) -> None:
        """Stop all vCPUs and wait until none executes guest code any more. Raises GuestEnded."""
        domain = self._domain
        if domain.paused:
            return
        if domain.ending is not None:
            raise self._progress.ended("and cannot be paused")
        running = [vcpu for vcpu in domain.vcpus if vcpu.thread is not None]
        if not running:
            domain.pause()
            return
        # A vCPU that found the domain paused before its request came would not look at requests again: so the first one to
        # get here waits for all to have theirs, and only then is the domain paused.
        asked = threading.Event()
        stopped: set[int] = set()
        for vcpu in running:
            vcpu.request(partial(self._stop, vcpu, asked, stopped))
        asked.set()
        try:
            self._progress.wait(lambda: len(stopped) == len(running) or None, _STOP_TIMEOUT_S, "stop of all vCPUs")
        except BaseException:
            domain.unpause()
            raise

    def _stop(self, vcpu: Vcpu, asked: threading.Event, stopped: set[int]) -> None:
        """Have the vCPU pause next, its registers being those behind the instruction that left the guest. In its thread."""
        asked.wait()
        vcpu.kvm.complete()
        self._domain.paused = True
        stopped.add(vcpu.vcpu_id)
        self._progress.notify()

    def unpause(self) -> None:
        """Let the vCPUs run again."""
        self._domain.unpause()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the vCPUs from running meanwhile; they stay paused if they were, and may have ended."""
        if self._domain.paused or self._domain.ending is not None:
            yield
            return
        self.pause()
        try:
            yield
        finally:
            self.unpause()

    def vcpu(self, vcpu_id: int) -> Vcpu:
        """Return a vCPU. Raises ConfigError if there is none of this number."""
        vcpus = self._domain.vcpus
        if not 0 <= vcpu_id < len(vcpus):
            raise ConfigError(f"{self._domain.name}: no vCPU {vcpu_id}, there are {len(vcpus)}")
        return vcpus[vcpu_id]

    def registers(self, vcpu_id: int) -> Registers:
        """Return the registers of a vCPU, which is stopped for it if it runs. Raises ConfigError, GuestEnded."""
        vcpu = self.vcpu(vcpu_id)
        with self.held():
            regs, sregs = vcpu.kvm.regs, vcpu.kvm.sregs
            special = {name: int(getattr(sregs, name)) for name in _SYSTEM}
            special.update(cs=sregs.cs.selector, ss=sregs.ss.selector, fs_base=sregs.fs.base, gs_base=sregs.gs.base)
            general = {
                each.name: int(getattr(regs, each.name)) for each in fields(Registers) if each.name not in special
            }
        return Registers(**general, **special)

    def pages(self, gva: int, size: int, vcpu_id: int) -> Iterator[tuple[int, int]]:
        """Yield the (gpa, size) pieces behind a range of a vCPU's virtual addresses. Raises XenError(EFAULT)."""
        from xenpy.memory import PAGE_SIZE

        vcpu = self.vcpu(vcpu_id)
        while size > 0:
            step = min(size, PAGE_SIZE - gva % PAGE_SIZE)
            yield vcpu.translate(gva), step
            gva += step
            size -= step
