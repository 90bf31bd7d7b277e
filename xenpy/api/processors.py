"""A guest's vCPUs from outside: stopping them, their registers, and what their addresses mean."""

from __future__ import annotations

import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy.api.errors import GuestEnded
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.api.progress import Progress
    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu

_STOP_TIMEOUT_S: Final = 10.0
_AGAIN_S: Final = 0.02


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
        self._lock = threading.RLock()
        """Held while it is being decided whether the vCPUs run."""

    def pause(self) -> None:
        """Stop all vCPUs and wait until none executes guest code any more. Raises GuestEnded."""
        with self._lock:
            self._pause()

    def _pause(self) -> None:
        domain = self._domain
        if domain.stands:
            domain.paused = True
            return
        if not self._running():
            domain.pause()
            return
        try:
            self._have_all(self._stop, "stop of all vCPUs")
        except BaseException:
            domain.unpause()
            raise

    def unpause(self) -> None:
        """Let the vCPUs run again, and wait until each has begun to."""
        with self._lock:
            self._domain.unpause()
            # One that has not would take the next pause for the last, and never see that it is asked to take part in it.
            with suppress(GuestEnded):
                self._have_all(lambda _vcpu: None, "start of all vCPUs")

    def _running(self) -> list[Vcpu]:
        return [vcpu for vcpu in self._domain.vcpus if vcpu.thread is not None]

    def _have_all(self, action: Callable[[Vcpu], None], what: str) -> None:
        """Have each vCPU's thread do something, and wait until all have. Raises Timeout, GuestEnded."""
        # A vCPU that finds the domain paused looks at no more requests: so the first to get here waits until all have theirs.
        asked = threading.Event()
        running = self._running()
        done: set[int] = set()
        for vcpu in running:
            vcpu.request(partial(self._act, vcpu, action, asked, done))
        asked.set()

        def look() -> bool | None:
            late = [vcpu for vcpu in running if vcpu.vcpu_id not in done]
            for vcpu in late:
                vcpu.kick()  # again: were one lost, nobody else would notice
            return None if late else True

        self._progress.wait(look, _STOP_TIMEOUT_S, what, poll_s=_AGAIN_S)

    def _act(self, vcpu: Vcpu, action: Callable[[Vcpu], None], asked: threading.Event, done: set[int]) -> None:
        asked.wait()
        action(vcpu)
        done.add(vcpu.vcpu_id)
        self._progress.notify()

    def _stop(self, vcpu: Vcpu) -> None:
        """Have the vCPU pause next, its registers being those behind the instruction that left the guest. In its thread."""
        vcpu.kvm.complete()
        self._domain.paused = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the vCPUs from running meanwhile; they stay paused if they were, and may have ended."""
        with self._lock:
            if self._domain.stands:
                yield
                return
            with suppress(GuestEnded):  # and stands still for good
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
