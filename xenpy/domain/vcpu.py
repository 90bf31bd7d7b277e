"""A PVH vCPU: its thread, the exits it takes, and how events reach it."""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from xenpy import log
from xenpy.abi.vcpu import VCPU_HVM_MODE_32B, VCPU_HVM_MODE_64B
from xenpy.domain import areas, cpuid
from xenpy.domain.ending import End, Ending
from xenpy.domain.hvm_context import StartState, load
from xenpy.domain.runstate import Runstate, ThreadRunstate
from xenpy.domain.upcalls import RFLAGS_IF, Upcalls
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.call import Call
from xenpy.kvm import exits
from xenpy.kvm.constants import KVM_EXIT_IO_OUT, Exit, MpState, Sync
from xenpy.kvm.vcpu import KvmVcpu
from xenpy.pv import paging
from xenpy.pv.hvm_params import HVM_PARAM
from xenpy.pv.time import VcpuTimers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.domain import Domain

HYPERCALL_PORT: Final = 0xE1
"""The I/O port to which patched hypercall instructions write."""
DEBUG_PORT: Final = 0xE9
"""Bytes written here go to the emergency console. Ref: arch-x86/xen.h, XEN_HVM_DEBUGCONS_IOPORT"""

PIT_PORT: Final = 0x42
"""Reads as 0, not as all ones like other ports that nothing answers: Linux waits for this counter to run down, and gives up at once when
it does not start at 255, instead of after 100,000 exits."""
_PORT_READS: Final = {DEBUG_PORT: b"\xe9", PIT_PORT: b"\0"}
_ARGS_32: Final = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
_MASK32: Final = 0xFFFF_FFFF


class DomainDying(Exception):
    """Ends a hypercall whose domain has ended meanwhile."""


class Vcpu:
    """A vCPU of a PVH domain. Methods belong to its own thread or are called under the host's lock, as noted."""

    def __init__(self, domain: Domain, vcpu_id: int) -> None:
        self.domain = domain
        self.vcpu_id = vcpu_id
        self.apic_id = cpuid.apic_id(vcpu_id)
        self.iopl = 0
        self.kvm = KvmVcpu(domain.vm, self.apic_id)
        self.timers = VcpuTimers(domain.clock, domain.evtchn, vcpu_id, self.rearm)
        self.account = ThreadRunstate(domain.clock)
        self.upcalls = Upcalls(self)
        self._requests: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition(domain.host.lock)
        self._poll_ports: frozenset[int] = frozenset()
        self._woken = False
        self._started = self._up = vcpu_id == 0
        self._initial: StartState | None = None
        self._timer_cost_ns = 1
        self._kick_at = 0
        self.thread: threading.Thread | None = None
        self.exits = 0
        self._handlers: dict[int, Callable[[], None]] = {
            Exit.IO: self._on_io,
            Exit.XEN: self._on_xen,
            Exit.MMIO: self._on_mmio,
            Exit.X86_WRMSR: self._on_wrmsr,
            Exit.X86_RDMSR: self._on_rdmsr,
            Exit.SHUTDOWN: self._on_triple_fault,
            Exit.INTERNAL_ERROR: self._on_internal_error,
            Exit.FAIL_ENTRY: self._on_fail_entry,
            Exit.IRQ_WINDOW_OPEN: lambda: None,
            Exit.INTR: lambda: None,
        }

    # -- thread -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread."""
        name = f"{self.domain.name}/{self.vcpu_id}"
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)
        self.thread.start()

    def request(self, action: Callable[[], None]) -> None:
        """Have the vCPU's thread do something before it enters the guest again. From any thread."""
        if self.thread is None or self.thread is threading.current_thread():
            action()
            return
        self._requests.append(action)
        self.kvm.kick()
        with self._wake:
            self._woken = True
            self._wake.notify_all()

    def kick(self) -> None:
        """Make the thread look at what has changed. From any thread."""
        self.kvm.kick()
        with self._wake:
            self._woken = True
            self._wake.notify_all()

    def _main(self) -> None:
        try:
            self.kvm.adopt_thread()
            self.account.adopt_thread()
            self.rearm()
            self._loop()
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
        if self.domain.paused:
            self.domain.wait_unpaused()
        with self.domain.host.lock:
            self._woken = False
            started = self.domain.clock.now()
            if self.timers.expire():
                # The guest's setting the next timer costs about as much again.
                self._timer_cost_ns = 2 * (self.domain.clock.now() - started)
            self.rearm()
            self.account.publish()
        if self.upcalls.unsettled:
            self.upcalls.work()

    def rearm(self) -> None:
        """Have a kick come when the next timer, or the next try to deliver an upcall, is due.

        The guest is let run for at least as long as the last timer kept us busy: on a slow host a guest that asks for a tick every
        millisecond would otherwise get nothing done between two.

        A kick that comes early enough as it is, or that nobody waits for any more, is left alone: changing it is a system call, and
        whoever is kicked looks again.
        """
        deadline = self.timers.next_deadline()
        retry_at = self.upcalls.retry_at
        if retry_at is not None:
            deadline = retry_at if deadline is None else min(deadline, retry_at)
        if deadline is None:
            return
        delay = max(self._timer_cost_ns, deadline - self.domain.clock.now())
        now = time.monotonic_ns()  # the clock by which the kick comes: it is never early
        if now < self._kick_at <= now + delay:
            return
        self.kvm.kick_after(delay)
        self._kick_at = now + delay if self.thread is not None else 0  # no thread yet, no timer

    # -- exits --------------------------------------------------------------------------------------------------------

    def _on_io(self) -> None:
        io = self.kvm.run.io
        if io.port == HYPERCALL_PORT and io.direction == KVM_EXIT_IO_OUT and io.size == 4:
            self._hypercall_by_registers()
            return
        size = io.size * io.count
        data = self.kvm.page[io.data_offset : io.data_offset + size]
        if io.direction != KVM_EXIT_IO_OUT:
            data[:] = _PORT_READS.get(io.port, b"\xff") * size
        elif io.port == DEBUG_PORT:
            self.domain.console_write(bytes(data))

    def _is_wide(self) -> bool:
        """Tell whether the vCPU executes 64-bit code."""
        return bool(self.kvm.sregs.cs.l and self.kvm.sregs.efer & paging.EFER_LMA)

    def _hypercall_by_registers(self) -> None:
        kvm, regs, sregs = self.kvm, self.kvm.regs, self.kvm.sregs
        wide = self._is_wide()
        if wide:
            args = (regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
            number = regs.rax & _MASK32
        else:
            args = tuple(getattr(regs, name) & _MASK32 for name in _ARGS_32)
            number = regs.rax & _MASK32
        result = self._hypercall(number, args, wide=wide, cpl=sregs.ss.dpl)
        regs.rax = result & (0xFFFF_FFFF_FFFF_FFFF if wide else _MASK32)
        kvm.run.kvm_dirty_regs |= Sync.REGS

    def _on_xen(self) -> None:
        hcall = self.kvm.run.xen.u.hcall
        wide = bool(hcall.longmode)
        result = self._hypercall(hcall.input & _MASK32, tuple(hcall.params), wide=wide, cpl=hcall.cpl)
        hcall.result = result & (0xFFFF_FFFF_FFFF_FFFF if wide else _MASK32)

    def _hypercall(self, number: int, args: Sequence[int], *, wide: bool, cpl: int) -> int:
        if cpl:
            return -Errno.EPERM
        domain = self.domain
        self._up = True
        call = Call(domain, self, number, args, wide=wide, checkpoint=self._checkpoint)
        with domain.host.lock:
            result = domain.dispatch(call)
        if self.upcalls.unsettled:
            self.upcalls.work()
        return result

    def _checkpoint(self) -> None:
        """Let others have the lock during a long hypercall, and end it if the domain is going."""
        lock = self.domain.host.lock
        lock.release()
        lock.acquire()
        if self.domain.ending is not None:
            raise DomainDying

    def _on_mmio(self) -> None:
        mmio = self.kvm.run.mmio
        if not mmio.is_write:
            mmio.data[0:8] = [0xFF] * 8

    def _on_wrmsr(self) -> None:
        msr = self.kvm.run.msr
        msr.error = 0
        if msr.index != cpuid.XEN_MSR:
            msr.error = 1
            return
        with self.domain.host.lock:
            try:
                self.domain.fill_hypercall_page(msr.data, wide=self._is_wide())
            except XenError:
                msr.error = 1

    def _on_rdmsr(self) -> None:
        msr = self.kvm.run.msr
        msr.data = 0
        msr.error = msr.index != cpuid.XEN_MSR

    def _on_triple_fault(self) -> None:
        rip = int(self.kvm.regs.rip)
        reason = self.domain.hvm_params.values.get(HVM_PARAM.TRIPLE_FAULT_REASON, 0)
        self.domain.shutdown(reason, f"triple fault on vCPU {self.vcpu_id} near rip {rip:#x}")

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

    def translate(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind a guest-virtual address. Raises XenError(EFAULT)."""
        sregs = self.kvm.sregs
        return paging.translate(self.domain.memory, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, gva, write=write)

    @property
    def is_up(self) -> bool:
        """Tell whether the vCPU is online: started by the toolstack, by VCPUOP_up, or by INIT and SIPI.

        The kernel does the last without telling; it is noticed when the vCPU makes its first hypercall.
        """
        return self._up

    def yield_(self) -> None:
        """Let other vCPUs run: their threads get the interpreter while this one sleeps for the shortest time."""
        self._wake.wait(0)

    def event_pending(self) -> bool:
        """Tell whether an upcall waits."""
        return self.domain.shared_info.vcpu_info[self.vcpu_id].upcall_pending

    def block(self) -> None:
        """Halt until an interrupt, as HLT would."""
        if not self.event_pending():
            self.kvm.set_mp_state(MpState.HALTED)

    def poll(self, ports: Sequence[int], timeout_ns: int) -> None:
        """Sleep until a port is pending, an upcall comes, or system time reaches `timeout_ns` (0: no limit)."""
        domain, evtchn = self.domain, self.domain.evtchn
        self._poll_ports = frozenset(ports)
        self._woken = False
        try:
            while not (self._woken or domain.ending is not None or any(evtchn.is_pending(port) for port in ports)):
                deadline = self.timers.next_deadline()
                if timeout_ns:
                    deadline = timeout_ns if deadline is None else min(deadline, timeout_ns)
                remaining = None if deadline is None else (deadline - domain.clock.now()) / 1e9
                if remaining is None or remaining > 0:
                    self._wake.wait(remaining)
                self.timers.expire()
                if timeout_ns and domain.clock.now() >= timeout_ns:
                    return
        finally:
            self._poll_ports = frozenset()

    def wake_if_polling(self, port: int) -> None:
        """End a poll that waits for a port."""
        if port in self._poll_ports:
            self._woken = True
            self._wake.notify_all()

    def send_nmi(self) -> None:
        """Make an NMI pending."""
        self.request(self.kvm.nmi)

    def initialise(self, context: Any) -> None:
        """Load struct vcpu_hvm_context into a vCPU that waits to be started. Raises XenError: EEXIST, EINVAL."""
        if self._started:
            raise XenError(Errno.EEXIST, f"vCPU {self.vcpu_id} has run already")
        if context.mode not in (VCPU_HVM_MODE_32B, VCPU_HVM_MODE_64B):
            raise XenError(Errno.EINVAL, f"vCPU mode {context.mode}")
        self._initial = load(context)
        self._started = True

    def up(self) -> None:
        """Bring the vCPU online. Raises XenError(EINVAL) if it was never initialised."""
        if not self._started:
            raise XenError(Errno.EINVAL, f"vCPU {self.vcpu_id} is not initialised")
        if not self._up:
            self._up = True
            self.request(self._start)

    def _start(self) -> None:
        # In this order: entering a vCPU that waits to be started would throw the registers away.
        self.kvm.set_mp_state(MpState.RUNNABLE)
        if self._initial is not None:
            self._initial.apply(self.kvm)
            self._initial = None

    def down(self) -> None:
        """Take the vCPU offline, the calling one when its hypercall has returned."""
        self._up = False
        self._requests.append(self._stop)
        self.kick()

    def _stop(self) -> None:
        self.kvm.complete()  # the hypercall's result must be in the registers before they are put aside
        if not self._up:
            self.kvm.set_mp_state(MpState.UNINITIALIZED)

    def register_callback(self, type_: int, flags: int, gva: int) -> None:
        """Refuse: callbacks are a PV kernel's."""
        raise XenError(Errno.ENOSYS, f"callback {type_} at {gva:#x}, flags {flags}")

    def unregister_callback(self, type_: int) -> None:
        """Refuse: callbacks are a PV kernel's."""
        raise XenError(Errno.ENOSYS, f"callback {type_}")

    # -- time, runstate and events ------------------------------------------------------------------------------------

    def register_runstate(self, address: int, *, physical: bool) -> None:
        """Keep struct vcpu_runstate_info current at a guest address. Raises XenError(EFAULT)."""
        areas.register_runstate(self, address, physical=physical)

    def runstate(self) -> Runstate:
        """Return the vCPU's account."""
        return self.account.read()

    def register_time(self, address: int, *, physical: bool) -> None:
        """Keep a second vcpu_time_info current at a guest address. Raises XenError: ENOSYS, EFAULT."""
        areas.register_time(self, address, physical=physical)

    def set_upcall_vector(self, vector: int) -> None:
        """Deliver upcalls as this vector through the LAPIC."""
        self.upcalls.set_vector(vector)

    def upcall(self) -> None:
        """Get the guest to look at its pending events. Under the host's lock, from any thread."""
        if self._poll_ports:
            self._woken = True
            self._wake.notify_all()
        self.upcalls.deliver()

    # -- ending -------------------------------------------------------------------------------------------------------

    def is_halted_for_good(self) -> bool:
        """Tell whether the vCPU halts with interrupts off, or was never started. In its own thread."""
        return self.kvm.get_mp_state() in (MpState.UNINITIALIZED, MpState.INIT_RECEIVED) or self.halts_uninterruptibly()

    def halts_uninterruptibly(self) -> bool:
        """Tell whether the vCPU halts with interrupts off. In its own thread."""
        return self.kvm.get_mp_state() == MpState.HALTED and not self.kvm.regs.rflags & RFLAGS_IF

    def close(self) -> None:
        """Wait for the thread and free the vCPU."""
        if self.thread is not None and self.thread is not threading.current_thread():
            self.kick()
            self.thread.join(timeout=10)
            if self.thread.is_alive():
                log.note(f"{self.thread.name} does not end")
                return
        self.kvm.close()
