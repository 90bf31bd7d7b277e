"""A vCPU: its thread, and what PVH and PV vCPUs have in common."""

from __future__ import annotations

import errno
import threading
import time
from abc import abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from xenpy import log
from xenpy.domain import areas
from xenpy.domain.debugging import INT3
from xenpy.domain.ending import End, Ending
from xenpy.domain.runstate import Runstate, ThreadRunstate
from xenpy.domain.waiting import LONGEST_DELAY_NS, Waiting
from xenpy.hypercalls.call import Call
from xenpy.kvm import exits
from xenpy.kvm.constants import Exit, Sync
from xenpy.kvm.vcpu import KvmVcpu
from xenpy.memory import PAGE_SIZE
from xenpy.pv.time import VcpuTimers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.domain import Domain

HYPERCALL_PORT: Final = 0xE1
"""The I/O port to which patched hypercall instructions write."""


class DomainDying(Exception):
    """Ends a hypercall whose domain has ended meanwhile."""


class Vcpu(Waiting):
    """A vCPU of a domain. Methods belong to its own thread or are called under the host's lock, as noted."""

    def __init__(self, domain: Domain, vcpu_id: int, kvm_id: int, sync: Sync) -> None:
        super().__init__(domain)
        self.vcpu_id = vcpu_id
        self.iopl = 0
        self.io_bitmap = 0, 0
        self.kvm = KvmVcpu(domain.vm, kvm_id, sync=sync)
        self.timers = VcpuTimers(domain.clock, domain.evtchn, vcpu_id, self.rearm)
        self.account = ThreadRunstate(domain.clock)
        self.retry_at: int | None = None
        """The host's monotonic time, in ns, at which `settle` wants to be called again."""
        self.held = False
        """Whether a debugger keeps this vCPU alone from running."""
        self.stands = False
        """Whether the thread is kept from running; set by itself."""
        self.caught: int | None = None
        """The address of a watchpoint whose change this vCPU has seen, until it stops for it."""
        self.time_area: areas.Area | None = None
        """Where the guest has registered a second vcpu_time_info."""
        self.time_published = b""
        """What has been written there; empty while KVM may be going to change the first at the next entry."""
        self._requests: deque[Callable[[], None]] = deque()
        self._started = self._up = vcpu_id == 0
        self.account.set_online(self._up)
        self._timer_cost_ns = 1
        self.thread: threading.Thread | None = None
        self.exits = 0
        self._handlers: dict[int, Callable[[], None]] = {
            Exit.SHUTDOWN: self._on_triple_fault,
            Exit.INTERNAL_ERROR: self._on_internal_error,
            Exit.FAIL_ENTRY: self._on_fail_entry,
            Exit.IRQ_WINDOW_OPEN: lambda: None,
            Exit.INTR: lambda: None,
        }

    # -- what each kind does its own way --------------------------------------------------------------------------------

    @abstractmethod
    def settle(self) -> None:
        """Deliver what waits to be delivered. In the vCPU's thread, out of the guest, without the host's lock."""

    @abstractmethod
    def upcall(self) -> None:
        """Get the guest to look at its pending events. Under the host's lock, from any thread."""

    @property
    @abstractmethod
    def is_up(self) -> bool:
        """Tell whether the vCPU is online."""

    @abstractmethod
    def translate(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind a guest-virtual address. Raises XenError(EFAULT)."""

    def translate_any(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind an address of the mode that runs, kernel or user. Raises XenError(EFAULT)."""
        return self.translate(gva, write=write)

    @property
    def segments(self) -> tuple[int, int]:
        """Return the guest's CS and SS."""
        return self.kvm.sregs.cs.selector, self.kvm.sregs.ss.selector

    def breakpoint_at(self, gva: int) -> bytes:
        """Return the instruction, of one byte, that a debugger puts at an address where the guest is to stop."""
        del gva
        return INT3

    @abstractmethod
    def arm(self, *, step: bool) -> None:
        """Be ready for a debugger's breakpoints, and execute one instruction only if it is to `step`. While the vCPU stands still."""

    @abstractmethod
    def disarm(self) -> None:
        """Have exceptions be the guest's own again. While the vCPU stands still."""

    def after_store(self, reason: int) -> int:
        """Return what KVM_RUN would have returned after a store that we have carried out, instead of what it has returned."""
        return reason

    @abstractmethod
    def block(self) -> None:
        """Halt until an interrupt or event, when the hypercall returns."""

    @abstractmethod
    def send_nmi(self) -> None:
        """Make an NMI pending."""

    @abstractmethod
    def initialise(self, context: Any) -> None:
        """Load the context of VCPUOP_initialise into a vCPU that waits to be started. Raises XenError: EEXIST, EINVAL."""

    @abstractmethod
    def up(self) -> None:
        """Bring the vCPU online. Raises XenError(EINVAL) if it was never initialised."""

    @abstractmethod
    def down(self) -> None:
        """Take the vCPU offline, the calling one when its hypercall has returned."""

    @abstractmethod
    def register_callback(self, type_: int, flags: int, gva: int) -> None:
        """Register an entry point of a PV kernel. Raises XenError."""

    @abstractmethod
    def unregister_callback(self, type_: int) -> None:
        """Forget an entry point of a PV kernel. Raises XenError."""

    @abstractmethod
    def set_upcall_vector(self, vector: int) -> None:
        """Deliver upcalls as this vector through the LAPIC."""

    @abstractmethod
    def is_halted_for_good(self) -> bool:
        """Tell whether the vCPU halts with interrupts off, or was never started. In its own thread."""

    @abstractmethod
    def _on_triple_fault(self) -> None:
        """Take note that the processor has given up."""

    # -- thread -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        name = f"{self.domain.name}/{self.vcpu_id}"
        with self._wake:
            self.thread = threading.Thread(target=self._main, name=name, daemon=True)
            self.thread.start()

    def request(self, action: Callable[[], None]) -> None:
        """Have the vCPU's thread do something before it enters the guest again. From any thread.

        Without a thread it is done at once, and none is started meanwhile: in the guest it would keep KVM from everybody else, for as
        long as it waits to be brought up.
        """
        if self.thread is threading.current_thread():
            action()
            return
        with self._wake:
            if self.thread is None:
                action()
                return
            self._requests.append(action)
            self.kick()

    def kick(self) -> None:
        """Make the thread look at what has changed. From any thread."""
        self.kvm.kick()
        with self._wake:
            self._woken = True
            self._wake.notify_all()

    @property
    def is_asked(self) -> bool:
        """Tell whether somebody has asked the thread to do something before the guest goes on."""
        return bool(self._requests)

    def _main(self) -> None:
        try:
            self.kvm.adopt_thread()
            self.account.adopt_thread()
            self.rearm()
            self._loop()
        except DomainDying:
            pass
        except Exception as error:  # a bug of ours must cost this guest only
            self.domain.internal_error(error)
        finally:
            self.kvm.release_thread()

    def _loop(self) -> None:
        kvm, run, domain, handlers = self.kvm, self.kvm.run, self.domain, self._handlers
        while True:
            if run.immediate_exit:
                kvm.clear_kick()
                self._attend()
            if domain.ending is not None:
                return
            reason = kvm.enter()
            self.exits += 1
            handler = handlers.get(reason)
            if handler is not None:
                try:
                    handler()
                except DomainDying:
                    return
            elif reason == -errno.EINTR or reason == -errno.EAGAIN:
                run.immediate_exit = 1
            else:
                self._on_unknown(reason)

    def _attend(self) -> None:
        """Do what a kick may have been for."""
        while self._requests:
            self._requests.popleft()()
        if self.caught is not None and self.domain.debugger is not None:
            self.domain.debugger.caught(self)
        if self.domain.stands or self.held:
            if self.domain.debugger is not None:
                self.kvm.complete()  # the registers are those behind the instruction that left the guest
            self.domain.wait_unpaused(self)
        with self.domain.host.lock:
            self._woken = False
            started = time.monotonic_ns()
            if self.timers.expire():
                # The guest's setting the next timer costs about as much again.
                self._timer_cost_ns = 2 * (time.monotonic_ns() - started)
            self.rearm()
            self.account.publish(self)
            areas.publish_time(self)
        self.settle()

    def rearm(self) -> None:
        """Have a kick come when the next timer, or the next try to deliver an upcall, is due.

        The guest is let run for at least as long as the last timer kept us busy: on a slow host a guest that asks for a tick every
        millisecond would otherwise get nothing done between two.

        A kick that comes early enough as it is, or that nobody waits for any more, is left alone: changing it is a system call, and
        whoever is kicked looks again.
        """
        deadline = self.timers.next_deadline()
        if self.timers.offload is not None and (publication := self.account.publication_at()) is not None:
            # The guest's own timer does not bring us here.
            deadline = publication if deadline is None else min(deadline, publication)
        delay = None if deadline is None else self.domain.clock.delay_until(deadline)
        now = time.monotonic_ns()  # the clock by which the kick comes: it is never early
        if self.retry_at is not None:
            delay = self.retry_at - now if delay is None else min(delay, self.retry_at - now)
        if self.time_area is not None and not self.domain.timekeeper.kvm_copies(self):
            period = areas.TIME_PERIOD_NS if self.time_published else areas.TIME_SOON_NS
            delay = period if delay is None else min(delay, period)
        if delay is None:
            return
        delay = min(max(self._timer_cost_ns, delay), LONGEST_DELAY_NS)
        if now < self._kick_at <= now + delay:
            return
        self.kvm.kick_after(delay)
        self._kick_at = now + delay if self.thread is not None else 0  # no thread yet, no timer

    def kick_after(self, delay_ns: int) -> None:
        """Have a kick come so soon, whenever the next timer is due. In the vCPU's thread."""
        self._kick_at = time.monotonic_ns() + delay_ns  # it never comes earlier than that
        self.kvm.kick_after(delay_ns)

    def _set_online(self, online: bool) -> None:
        """Take note that the vCPU goes online or offline."""
        self._up = online
        self.account.set_online(online)

    # -- exits --------------------------------------------------------------------------------------------------------

    def _call(self, number: int, args: Sequence[int], *, wide: bool) -> int:
        """Carry out a hypercall and return its result."""
        domain = self.domain
        call = Call(domain, self, number, args, wide=wide, checkpoint=self._checkpoint)
        with domain.host.lock:
            self.take_over()
            return domain.dispatch(call)

    def take_over(self) -> None:
        """Be the vCPU in whose name the domain changes. Under the host's lock, each time that it has been taken."""
        return  # a PVH domain does not care

    def _checkpoint(self) -> None:
        """Let others have the lock during a long hypercall, and end it if the domain is going."""
        lock = self.domain.host.lock
        lock.release()
        lock.acquire()
        if self.domain.ending is not None:
            raise DomainDying

    def _on_internal_error(self) -> None:
        text = exits.internal_error(self.kvm)
        hint = self.domain.unsupported_hint()
        self.domain.end(Ending(End.UNSUPPORTED, f"{text}{hint}"))

    def _on_fail_entry(self) -> None:
        reason = int(self.kvm.run.fail_entry.hardware_entry_failure_reason)
        self.domain.end(Ending(End.UNSUPPORTED, f"the processor refused to enter the guest (reason {reason:#x})"))

    def _on_unknown(self, reason: int) -> None:
        self.domain.end(Ending(End.UNSUPPORTED, exits.unexpected(self.kvm, reason)))

    # -- what hypercall handlers ask (under the host's lock) --------------------------------------------------------------

    def event_pending(self) -> bool:
        """Tell whether an upcall waits."""
        return self.domain.shared_info.vcpu_info[self.vcpu_id].upcall_pending

    # -- time and runstate ----------------------------------------------------------------------------------------------

    def register_runstate(self, address: int, *, physical: bool) -> None:
        """Keep struct vcpu_runstate_info current at a guest address. Raises XenError: EFAULT, ENXIO."""
        areas.register_runstate(self, address, physical=physical)

    def register_time(self, address: int, *, physical: bool) -> None:
        """Keep a second vcpu_time_info current at a guest address. Raises XenError: EFAULT, ENXIO."""
        areas.register_time(self, address, physical=physical)

    def area_at(self, address: int, size: int, *, physical: bool) -> areas.Area:
        """Return an area that the guest registers: by its gpa, whatever its address was. Raises XenError(EFAULT)."""
        found = []
        for start, length in areas.pages(address, size, PAGE_SIZE):
            gpa = start if physical else self.translate(start, write=True)
            self.domain.memory.check(gpa, length)
            found.append(gpa)
        return areas.Area(found[0], True, *found[1:])

    def area_pieces(self, address: int, size: int, *, physical: bool) -> list[tuple[int, int]]:
        """Return the (gpa, size) of what an area consists of. Raises XenError where it may not be written to."""
        del physical  # see `area_at`
        return [(address, size)]

    def runstate(self) -> Runstate:
        """Return the vCPU's account."""
        return self.account.read()

    # -- ending -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Wait for the thread and free the vCPU."""
        if self.thread is not None and self.thread is not threading.current_thread():
            self.kick()
            self.thread.join(timeout=10)
            if self.thread.is_alive():
                log.note(f"{self.thread.name} does not end")
                return
        self.kvm.close()
