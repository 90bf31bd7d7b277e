"""A PVH vCPU: the exits it takes, and how events reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi._kvm_ioctl import KVM_RUN
from xenpy.abi.debugcons import DEBUG_PORT
from xenpy.abi.vcpu import VCPU_HVM_MODE_32B, VCPU_HVM_MODE_64B
from xenpy.domain import cpuid
from xenpy.domain.debugging import INT3, OUT_DX, Trap
from xenpy.domain.hvm_context import StartState, load
from xenpy.domain.upcalls import RFLAGS_IF, Upcalls
from xenpy.domain.vcpu import HYPERCALL_PORT, Vcpu
from xenpy.errors import Errno, XenError
from xenpy.kvm.constants import (
    KVM_EXIT_IO_OUT,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_INJECT_BP,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_SW_BP,
    Exit,
    MpState,
    Sync,
)
from xenpy.pv import paging
from xenpy.pv.hvm_params import HVM_PARAM
from xenpy.threads import sleeps_in_ioctl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.domain.debugging import Debugger
    from xenpy.domain.pvh import PvhDomain
    from xenpy.domain.saved import PvhVcpuState

PIT_PORT: Final = 0x42
"""Reads as 0, not as all ones like other ports that nothing answers: Linux waits for this counter to run down, and gives up at once when
it does not start at 255, instead of after 100,000 exits."""
_PORT_READS: Final = {DEBUG_PORT: b"\xe9", PIT_PORT: b"\0"}
_ARGS_32: Final = ("rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
_MASK32: Final = 0xFFFF_FFFF
_DB, _BP = 1, 3
_UPPER_HALF: Final = 1 << 63
_DEBUGGED: Final = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP


class PvhVcpu(Vcpu):
    """A vCPU of a PVH domain."""

    domain: PvhDomain

    def __init__(self, domain: PvhDomain, vcpu_id: int) -> None:
        self.apic_id = cpuid.apic_id(vcpu_id)
        super().__init__(domain, vcpu_id, self.apic_id, Sync.REGS | Sync.SREGS)
        self.upcalls = Upcalls(self)
        self._initial: StartState | None = None
        self._goes_down = False
        """Whether somebody has taken the vCPU down that its thread may still be carrying out a hypercall for."""
        self._steps = False
        self._handlers |= {
            Exit.IO: self._on_io,
            Exit.XEN: self._on_xen,
            Exit.MMIO: self._on_mmio,
            Exit.X86_WRMSR: self._on_wrmsr,
            Exit.X86_RDMSR: self._on_rdmsr,
            Exit.DEBUG: self._on_debug,
        }

    # -- saving -----------------------------------------------------------------------------------------------------------

    def bring_to_rest(self) -> None:
        """Do what has been asked of the vCPU while it stood still, and have its registers be those behind what it did last."""
        while self._requests:
            self._requests.popleft()()
        self.kvm.get_mp_state()  # KVM obeys an INIT or SIPI that waits now: it would change registers that are read already
        self.kvm.complete()

    def state(self) -> PvhVcpuState:
        """Return what is not in KVM, of a vCPU that stands still."""
        from xenpy.domain.saved import PvhVcpuState

        return PvhVcpuState(self.upcalls.vector, self.upcalls.unsettled, self.time_area, self._initial)

    def restore(self, state: PvhVcpuState) -> None:
        """Take over what `state` returned."""
        self.upcalls.vector, self.upcalls.unsettled = state.upcall_vector, state.upcall_unsettled
        self.time_area = state.time_area
        self._initial = state.initial
        self.upcalls.tell_kernel()

    # -- a debugger's -------------------------------------------------------------------------------------------------

    def arm(self, *, step: bool) -> None:
        """Be ready for a debugger's breakpoints, and execute one instruction only if it is to `step`."""
        self.kvm.store()  # KVM steps from where RIP is for it
        self.kvm.set_guest_debug(_DEBUGGED | (KVM_GUESTDBG_SINGLESTEP if step else 0))
        self._steps = step

    def disarm(self) -> None:
        """Have exceptions be the guest's own again."""
        self.kvm.set_guest_debug(0)
        self._steps = False

    def after_store(self, reason: int) -> int:
        """Return Exit.DEBUG where a step has been made: KVM forgets to say so of instructions that it emulates."""
        if not self._steps:
            return reason
        self.kvm.run.debug.exception = _DB
        return Exit.DEBUG

    def breakpoint_at(self, gva: int) -> bytes:
        """Return the instruction that a debugger puts at an address where the guest is to stop.

        In ring 0 any OUT leaves the guest, on every host. Not so INT3: who interprets ring 0 does not know it, and QEMU's emulation of SVM
        keeps it in the guest.
        """
        small = not self.kvm.sregs.ss.dpl and self.kvm.regs.rip < _UPPER_HALF  # a kernel that is not in the upper half
        return OUT_DX if gva >= _UPPER_HALF or small else INT3

    def _at_breakpoint(self, debugger: Debugger) -> bool:
        """Stop if the instruction that left the guest by a port is a breakpoint; tell whether it was."""
        io, regs = self.kvm.run.io, self.kvm.regs
        if io.direction != KVM_EXIT_IO_OUT or io.size != 1 or io.count != 1:
            return False
        self.kvm.complete()  # some hosts go on to the next instruction before they tell us, and some when we are back
        gva = int(regs.rip) - 1
        if not debugger.owns(self, gva):
            return False
        regs.rip = gva
        self.kvm.dirty(Sync.REGS)
        debugger.trapped(self, Trap.BREAKPOINT)
        return True

    def _on_debug(self) -> None:
        """Deal with a breakpoint or a step, a debugger's or the guest's own."""
        debugger, exception = self.domain.debugger, self.kvm.run.debug.exception
        if debugger is not None and exception == _DB and self._steps:
            debugger.trapped(self, Trap.STEP)
        elif debugger is not None and exception == _BP and debugger.owns(self, int(self.kvm.run.debug.pc)):
            debugger.trapped(self, Trap.BREAKPOINT)
        elif exception == _BP:
            self.kvm.set_guest_debug(_DEBUGGED | KVM_GUESTDBG_INJECT_BP)

    def settle(self) -> None:
        """Go on with an upcall that could not be delivered at once."""
        if self.upcalls.unsettled:
            self.upcalls.work()

    # -- exits --------------------------------------------------------------------------------------------------------

    def _on_io(self) -> None:
        io = self.kvm.run.io
        if io.port == HYPERCALL_PORT and io.direction == KVM_EXIT_IO_OUT and io.size == 4:
            self._hypercall_by_registers()
            return
        if self.domain.debugger is not None and self._at_breakpoint(self.domain.debugger):
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
        if not self._up and not self._goes_down:
            self._set_online(True)
        result = self._call(number, args, wide=wide)
        if self.upcalls.unsettled:
            self.upcalls.work()
        return result

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

    # -- what hypercall handlers ask (under the host's lock) --------------------------------------------------------------

    def translate(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind a guest-virtual address. Raises XenError(EFAULT)."""
        sregs = self.kvm.sregs
        return paging.translate(self.domain.memory, sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer, gva, write=write)

    def translate_any(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind an address; before paging is on, behind that for which the kernel was linked. Raises XenError(EFAULT)."""
        if not self.kvm.sregs.cr0 & paging.CR0_PG:
            for first, gpa, size in self.domain.image:
                if first <= gva < first + size:
                    return gpa + gva - first
        return self.translate(gva, write=write)

    @property
    def is_up(self) -> bool:
        """Tell whether the vCPU is online: started by the toolstack, by VCPUOP_up, or by INIT and SIPI.

        The kernel does the last without telling; it is noticed when the vCPU makes its first hypercall.
        """
        return self._up

    def block(self) -> None:
        """Halt until an interrupt, as HLT would."""
        if not self.event_pending():
            self.kvm.set_mp_state(MpState.HALTED)

    def poll(self, ports: Sequence[int], timeout_ns: int) -> None:
        """Sleep until a port is pending, or not at all where events pass us by: Xen, too, may return early."""
        if self.timers.offload is None:
            super().poll(ports, timeout_ns)

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
            self._set_online(True)
            self.request(self._start)

    def _start(self) -> None:
        # In this order: entering a vCPU that waits to be started would throw the registers away.
        self.kvm.set_mp_state(MpState.RUNNABLE)
        if self._initial is not None:
            self._initial.apply(self.kvm)
            self._initial = None

    def down(self) -> None:
        """Take the vCPU offline, the calling one when its hypercall has returned."""
        self._goes_down = True
        self._set_online(False)
        self._requests.append(self._stop)
        self.kick()

    def _stop(self) -> None:
        self._goes_down = False
        self.kvm.complete()  # the hypercall's result must be in the registers before they are put aside
        if not self._up:
            self.kvm.set_mp_state(MpState.UNINITIALIZED)

    def register_callback(self, type_: int, flags: int, gva: int) -> None:
        """Refuse: callbacks are a PV kernel's."""
        raise XenError(Errno.ENOSYS, f"callback {type_} at {gva:#x}, flags {flags}")

    def unregister_callback(self, type_: int) -> None:
        """Refuse: callbacks are a PV kernel's."""
        raise XenError(Errno.ENOSYS, f"callback {type_}")

    # -- events -----------------------------------------------------------------------------------------------------------

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

    @property
    def is_idle(self) -> bool:
        """Tell whether the guest has nothing to do on this vCPU until an event comes: KVM lets its thread sleep then.

        A thread of ours that sleeps elsewhere, for a lock or for the interpreter, is about to run the guest.
        """
        return sleeps_in_ioctl(self.thread, self.kvm.fd, KVM_RUN)

    def is_halted_for_good(self) -> bool:
        """Tell whether the vCPU halts with interrupts off, or was never started. In its own thread."""
        return self.kvm.get_mp_state() in (MpState.UNINITIALIZED, MpState.INIT_RECEIVED) or self.halts_uninterruptibly()

    def halts_uninterruptibly(self) -> bool:
        """Tell whether the vCPU halts with interrupts off. In its own thread."""
        return self.kvm.get_mp_state() == MpState.HALTED and not self.kvm.regs.rflags & RFLAGS_IF
