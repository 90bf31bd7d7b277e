"""A debugger's hold on a domain: stopping all vCPUs, letting some go on, breakpoints in guest memory.

Breakpoints are instructions of one byte, INT3 or OUT, written past the page tables, so that read-only text takes them. An INT3
that the guest itself has executed is the guest's. While a debugger keeps the domain from running its time stands still, too.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenpy.domain.watching import Watchpoints
from xenpy.errors import HostError, XenError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu

INT3: Final = b"\xcc"
OUT_DX: Final = b"\xee"
ONE_STEP: Final = range(0)
_AGAIN_S: Final = 0.002
_SHORT_NS: Final = 20_000_000
"""A stop so short is not worth the calls that take it out of the guest's time."""


class Trap(Enum):
    """Why a domain has stopped."""

    BREAKPOINT = "breakpoint"
    STEP = "step"
    INTERRUPT = "interrupt"
    WATCHPOINT = "watchpoint"


class Debugger:
    """What holds `domain`. Methods belong to the loop's thread but for `trapped` and `owns`, which are a vCPU's.

    `on_stop(why, vcpu_id, gva)` is called when all vCPUs stand still, with the address of a watchpoint if it is one, `on_end()` when
    the domain has ended.
    """

    def __init__(self, domain: Domain, on_stop: Callable[[Trap, int, int], None], on_end: Callable[[], None]) -> None:
        self.domain = domain
        self.watchpoints = Watchpoints(domain)
        self.holds = False
        """Whether all vCPUs are, or are about to be, kept from running."""
        self.ready = False
        """Whether all vCPUs stand still, and the debugger has been told."""
        self._on_stop = on_stop
        self._on_end = on_end
        self._lock = threading.Lock()
        self._why: tuple[Trap, int, int] | None = None
        self._stopped_at: int | None = None
        self._looks = False
        self._steps: Mapping[int, range | None] = {}
        """What vCPUs were let do last: the addresses within which they go on after a step, or whatever they like."""
        self._breakpoints: dict[int, tuple[int, int]] = {}
        """gva -> (gpa, how often it was set)"""
        self._patches: dict[int, tuple[bytes, bytes]] = {}
        """gpa -> the byte that belongs there, and that which stops the guest"""

    def attach(self) -> None:
        """Take hold of the domain, which goes on meanwhile. Raises HostError if another debugger has it."""
        if self.domain.debugger is not None:
            raise HostError(f"{self.domain.name} has a debugger already")
        self.domain.debugger = self
        if self.domain.kernel_events is not None:
            self.domain.kernel_events.forbid()  # timers must stand still with the guest

    # -- stopping -----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop all vCPUs; `on_stop` follows."""
        self._hold(Trap.INTERRUPT, 0)
        self._look()

    def on_next_stop(self, action: Callable[[], None]) -> None:
        """Call `action` when all vCPUs stand still, instead of telling the debugger, who is gone."""
        self._on_stop = lambda _why, _vcpu_id, _gva: action()

    def _hold(self, why: Trap, vcpu_id: int, gva: int = 0) -> None:
        with self._lock:
            if self._why is None:
                self._why = why, vcpu_id, gva
            self.holds = True

    def trapped(self, vcpu: Vcpu, why: Trap) -> None:
        """Stop all vCPUs because one has come to a breakpoint or made its step; return when it is to go on. In its thread."""
        within = self._steps.get(vcpu.vcpu_id)
        if why is Trap.STEP and within and not self.holds and vcpu.caught is None and vcpu.kvm.regs.rip in within:
            vcpu.arm(step=True)
            return
        if why is Trap.STEP and vcpu.caught is not None:
            self.caught(vcpu)
        else:
            self._hold(why, vcpu.vcpu_id)
            self.domain.host.loop.call_soon(self._look)
        self.domain.wait_unpaused(vcpu)

    def caught(self, vcpu: Vcpu) -> None:
        """Stop all vCPUs because one has seen what is watched change. In its thread."""
        gva, vcpu.caught = vcpu.caught, None
        if gva is not None:
            self._hold(Trap.WATCHPOINT, vcpu.vcpu_id, gva)
            self.domain.host.loop.call_soon(self._look)

    def _look(self) -> None:
        """Find out whether all vCPUs stand still."""
        if self._looks or not self.holds or self.ready or self.domain.ending is not None:
            return  # a later look will do, or there is nothing to see
        running = [vcpu for vcpu in self.domain.vcpus if vcpu.thread is not None]
        late = [vcpu for vcpu in running if not vcpu.stands]
        for vcpu in late or self.domain.vcpus:
            vcpu.kick()  # those too that have not been started yet
        if late:
            self._looks = True
            self.domain.host.loop.call_later(_AGAIN_S, self._look_again)
            return
        why = self._why or (Trap.INTERRUPT, 0, 0)
        self._why, self.ready = None, True
        self._stopped_at = self.domain.clock.now()
        for vcpu in running:
            vcpu.arm(step=False)
        self._on_stop(*why)

    def _look_again(self) -> None:
        self._looks = False
        self._look()

    # -- going on -----------------------------------------------------------------------------------------------------

    def resume(self, steps: Mapping[int, range | None]) -> None:
        """Have vCPUs go on: for each number None, or to make a step, and others as long as they lead to addresses within a range.

        The others stand still.
        """
        self._steps = steps
        for vcpu in self.domain.vcpus:
            vcpu.held = vcpu.vcpu_id not in steps
            vcpu.arm(step=steps.get(vcpu.vcpu_id) is not None)
        self.watchpoints.apply()
        self._let_go()

    def _let_go(self) -> None:
        self._stand_for(self._stopped_at)
        self.ready = self.holds = False
        self._stopped_at = None
        self.domain.look_again()

    def _stand_for(self, since: int | None) -> None:
        """Take the time since then out of the guest's."""
        if since is None or self.domain.clock.now() - since < _SHORT_NS:
            return
        with suppress(HostError):
            self.domain.timekeeper.change(lambda clock: clock.leap(since - clock.now()))

    def release(self) -> None:
        """Take all breakpoints away and let the domain go on by itself. While it stands still, or has ended."""
        for gpa, patch in self._patches.items():
            self._restore(gpa, *patch)
        self._patches.clear()
        self._breakpoints.clear()
        if self.domain.debugger is not self:
            return
        if self.domain.ending is None:
            self.watchpoints.drop()
            for vcpu in self.domain.vcpus:
                vcpu.held, vcpu.caught = False, None
                vcpu.disarm()
        self._let_go()
        self.domain.debugger = None
        if self.domain.kernel_events is not None:
            self.domain.kernel_events.allow()
        self.domain.look_again()

    def ended(self) -> None:
        """Take note that the domain has ended."""
        self.ready = self.holds = False
        self._on_end()

    # -- memory and breakpoints ---------------------------------------------------------------------------------------

    def set_watchpoint(self, vcpu: Vcpu, gva: int, size: int) -> None:
        """Stop whoever changes what is at an address, by the page tables that a vCPU has now. Raises XenError: EFAULT, EPERM, EINVAL."""
        self.watchpoints.set(gva, size, self._pieces(vcpu, gva, size))

    def _pieces(self, vcpu: Vcpu, gva: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield (gpa, size) within pages. Raises XenError(EFAULT)."""
        while size > 0:
            step = min(size, PAGE_SIZE - gva % PAGE_SIZE)
            yield self._translate(vcpu, gva), step
            gva += step
            size -= step

    @staticmethod
    def _translate(vcpu: Vcpu, gva: int) -> int:
        try:
            return vcpu.translate_any(gva)
        except XenError:
            return vcpu.translate(gva)  # a PV kernel's own while its user mode runs

    def read(self, vcpu: Vcpu, gva: int, size: int) -> bytes:
        """Return memory without our breakpoints, as far as there is some. Raises XenError(EFAULT) if there is none."""
        data = bytearray()
        try:
            for gpa, step in self._pieces(vcpu, gva, size):
                piece = bytearray(self.domain.memory.read(gpa, step))
                for at, (byte, _) in self._patches.items():
                    if gpa <= at < gpa + step:
                        piece[at - gpa : at - gpa + 1] = byte
                data += piece
        except XenError:
            if not data:
                raise
        return bytes(data)

    def write(self, vcpu: Vcpu, gva: int, data: bytes) -> None:
        """Write memory, read-only or not; breakpoints stay. Raises XenError: EFAULT, EPERM for a PV guest's page tables."""
        pieces = list(self._pieces(vcpu, gva, len(data)))
        for gpa, _ in pieces:
            self.domain.check_writable(gpa)
        rest = memoryview(data)
        for gpa, step in pieces:
            self.domain.memory.write(gpa, rest[:step])
            for at in [at for at in self._patches if gpa <= at < gpa + step]:
                stop = self._patches[at][1]
                self._patches[at] = bytes(rest[at - gpa : at - gpa + 1]), stop
                self.domain.memory.write(at, stop)
            rest = rest[step:]

    def set_breakpoint(self, vcpu: Vcpu, gva: int) -> None:
        """Stop whoever executes what is at an address, by the page tables that a vCPU has now. Raises XenError: EFAULT, EPERM."""
        if gva in self._breakpoints:
            gpa, count = self._breakpoints[gva]
            self._breakpoints[gva] = gpa, count + 1
            return
        gpa = self._translate(vcpu, gva)
        self.domain.check_writable(gpa)
        if gpa not in self._patches:
            stop = vcpu.breakpoint_at(gva)
            self._patches[gpa] = self.domain.memory.read(gpa, 1), stop
            self.domain.memory.write(gpa, stop)
        self._breakpoints[gva] = gpa, 1

    def clear_breakpoint(self, gva: int) -> None:
        """Take a breakpoint away, as often as it was set."""
        gpa, count = self._breakpoints.get(gva, (None, 0))
        if gpa is None:
            return
        if count > 1:
            self._breakpoints[gva] = gpa, count - 1
            return
        del self._breakpoints[gva]
        if all(other != gpa for other, _ in self._breakpoints.values()):
            self._restore(gpa, *self._patches.pop(gpa))

    def _restore(self, gpa: int, byte: bytes, stop: bytes) -> None:
        with suppress(XenError):  # the guest gave the page away
            if self.domain.memory.read(gpa, 1) == stop:  # else it has written something else there
                self.domain.memory.write(gpa, byte)

    def owns(self, vcpu: Vcpu, gva: int) -> bool:
        """Tell whether what is at an address is one of our breakpoints. In the vCPU's thread."""
        try:
            gpa = self._translate(vcpu, gva)
        except XenError:
            return False
        if gpa in self._patches:
            return True
        known = self._breakpoints.get(gva)
        if known is None or known[0] not in self._patches:
            return False
        # The guest has copied the page, our breakpoint with it.
        with self._lock:
            self._restore(gpa, *self._patches[known[0]])
        return True
