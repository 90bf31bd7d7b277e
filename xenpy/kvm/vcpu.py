"""One KVM vCPU: entering the guest, and its registers through the shared kvm_run page."""

from __future__ import annotations

import mmap
import os
import threading
from typing import TYPE_CHECKING, Any

from xenpy import libc
from xenpy.abi import _kvm_ioctl as request
from xenpy.abi._kvm import ffi
from xenpy.kvm.constants import (
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    MpState,
    Sync,
    XenVcpuAttr,
)
from xenpy.kvm.kick import KickTimer, kick
from xenpy.kvm.system import checked_ioctl, pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xenpy.kvm.vm import Vm

CpuidEntry = tuple[int, int, int, tuple[int, int, int, int]]
"""(leaf, subleaf, flags, (eax, ebx, ecx, edx))"""

_IMMEDIATE_EXIT_OFFSET = 1


class KvmVcpu:
    """A vCPU whose LAPIC id is `vcpu_id`.

    Registers are read and written in `regs`, `sregs` and `events`, which are live views of kvm_run; `dirty` has writes loaded.
    Every method but `kick` belongs to the thread that calls `enter`. Raises OSError where the kernel refuses.
    """

    def __init__(self, vm: Vm, vcpu_id: int, *, sync: Sync = Sync.REGS | Sync.SREGS) -> None:
        self.vcpu_id = vcpu_id
        self.fd = vm.create_vcpu(vcpu_id)
        self._map = mmap.mmap(self.fd, vm.kvm.run_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._buffer = ffi.from_buffer(self._map)
        self.page = memoryview(self._map)
        """The whole shared mapping: kvm_run, then the pages that port I/O data lies in."""
        self.run: Any = ffi.cast("struct kvm_run *", self._buffer)
        self.run.kvm_valid_regs = sync
        self.regs: Any = self.run.s.regs.regs
        self.sregs: Any = self.run.s.regs.sregs
        self.events: Any = self.run.s.regs.events
        self._flag = pointer(self.run) + _IMMEDIATE_EXIT_OFFSET
        self._kick_lock = threading.Lock()
        self._ident: int | None = None
        self._timer: KickTimer | None = None
        self.enter: Callable[[], int] = self.run_guest
        """What the vCPU's thread calls to run the guest; returns what `run_guest` does."""
        self._fetch()

    def _fetch(self) -> None:
        """Fill the shared registers before the first entry."""
        checked_ioctl(self.fd, request.KVM_GET_REGS, pointer(ffi.addressof(self.regs)), "read registers")
        checked_ioctl(self.fd, request.KVM_GET_SREGS, pointer(ffi.addressof(self.sregs)), "read system registers")

    # -- running ------------------------------------------------------------------------------------------------------

    def adopt_thread(self) -> None:
        """Make the calling thread the one that enters the guest, and give it its timer."""
        with self._kick_lock:
            self._ident = threading.get_ident()
        self._timer = KickTimer(threading.get_native_id(), self._flag)

    def release_thread(self) -> None:
        """Undo `adopt_thread`; to be called by that thread before it ends, for a signal to an ended thread is undefined."""
        with self._kick_lock:
            self._ident = None
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def run_guest(self) -> int:
        """Run the guest; return the exit reason, or -errno: -EINTR when kicked, others when KVM failed."""
        result = libc.ioctl(self.fd, request.KVM_RUN, 0)
        return int(self.run.exit_reason) if result >= 0 else result

    def complete(self) -> int:
        """Let KVM finish an instruction that exited (port I/O, MMIO, MSR) without running the guest further; return -errno.

        The next entry returns at once, as if kicked: a kick that came meanwhile looks the same, and must not be lost.
        """
        self.run.immediate_exit = 1
        return libc.ioctl(self.fd, request.KVM_RUN, 0)

    def dirty(self, classes: int) -> None:
        """Have the next entry load register classes (Sync) from the shared page."""
        self.run.kvm_dirty_regs |= classes

    def store(self) -> None:
        """Give KVM the registers that are marked as changed now, not at the next entry."""
        dirty = self.run.kvm_dirty_regs
        if dirty & Sync.REGS:
            checked_ioctl(self.fd, request.KVM_SET_REGS, pointer(ffi.addressof(self.regs)), "write registers")
        if dirty & Sync.SREGS:
            checked_ioctl(self.fd, request.KVM_SET_SREGS, pointer(ffi.addressof(self.sregs)), "write system registers")
        self.run.kvm_dirty_regs = dirty & ~(Sync.REGS | Sync.SREGS)

    def clear_kick(self) -> None:
        """Forget kicks so far; the next one makes `enter` return, however early it comes."""
        self.run.immediate_exit = 0

    def kick(self) -> None:
        """Make the thread leave `enter`, or not stay in it. May be called from any thread."""
        self.run.immediate_exit = 1
        with self._kick_lock:
            if self._ident is not None and self._ident != threading.get_ident():
                kick(self._ident, self._flag)

    def kick_after(self, delay_ns: int | None) -> None:
        """Kick after a delay in nanoseconds instead of whenever was said before; None: not at all."""
        if self._timer is None:
            return
        if delay_ns is None:
            self._timer.disarm()
        else:
            self._timer.arm(delay_ns)

    # -- set-up -------------------------------------------------------------------------------------------------------

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Say what CPUID answers."""
        table = ffi.new("struct kvm_cpuid2 *")
        table.nent = len(entries)
        for slot, (leaf, subleaf, flags, registers) in zip(table.entries, entries, strict=False):
            slot.function, slot.index, slot.flags = leaf, subleaf, flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            slot.eax, slot.ebx, slot.ecx, slot.edx = registers
        checked_ioctl(self.fd, request.KVM_SET_CPUID2, pointer(table), "set CPUID")

    def set_msrs(self, values: Mapping[int, int]) -> int:
        """Write MSRs; return how many, in order, the kernel accepted."""
        table = ffi.new("struct kvm_msrs *")
        table.nmsrs = len(values)
        for slot, (index, value) in zip(table.entries, values.items(), strict=False):
            slot.index, slot.data = index, value
        return checked_ioctl(self.fd, request.KVM_SET_MSRS, pointer(table), "write MSRs")

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """Read MSRs; those behind one that the kernel refuses are missing from the answer."""
        table = ffi.new("struct kvm_msrs *")
        table.nmsrs = len(indices)
        for slot, index in zip(table.entries, indices, strict=False):
            slot.index = index
        count = checked_ioctl(self.fd, request.KVM_GET_MSRS, pointer(table), "read MSRs")
        return {entry.index: entry.data for entry in table.entries[0:count]}

    def _get(self, number: int, struct: str, what: str) -> Any:
        value = ffi.new(f"struct {struct} *")
        checked_ioctl(self.fd, number, pointer(value), f"read {what}")
        return value

    def _set(self, number: int, value: Any, what: str) -> None:
        checked_ioctl(self.fd, number, pointer(value), f"write {what}")

    def get_events(self) -> Any:
        """Return struct kvm_vcpu_events: pending exceptions, interrupts, NMIs."""
        return self._get(request.KVM_GET_VCPU_EVENTS, "kvm_vcpu_events", "vCPU events")

    def set_events(self, events: Any) -> None:
        """Replace pending exceptions, interrupts, NMIs."""
        self._set(request.KVM_SET_VCPU_EVENTS, events, "vCPU events")

    def get_lapic(self) -> Any:
        """Return struct kvm_lapic_state."""
        return self._get(request.KVM_GET_LAPIC, "kvm_lapic_state", "LAPIC")

    def set_lapic(self, state: Any) -> None:
        """Replace the LAPIC's registers."""
        self._set(request.KVM_SET_LAPIC, state, "LAPIC")

    def get_xcrs(self) -> Any:
        """Return struct kvm_xcrs."""
        return self._get(request.KVM_GET_XCRS, "kvm_xcrs", "XCRs")

    def set_xcr0(self, value: int) -> None:
        """Set XCR0."""
        xcrs = ffi.new("struct kvm_xcrs *")
        xcrs.nr_xcrs = 1
        xcrs.xcrs[0].xcr = 0
        xcrs.xcrs[0].value = value
        self._set(request.KVM_SET_XCRS, xcrs, "XCR0")

    def get_debugregs(self) -> Any:
        """Return struct kvm_debugregs."""
        return self._get(request.KVM_GET_DEBUGREGS, "kvm_debugregs", "debug registers")

    def set_debugregs(self, value: Any) -> None:
        """Replace the debug registers."""
        self._set(request.KVM_SET_DEBUGREGS, value, "debug registers")

    def set_guest_debug(self, control: int, debugregs: Sequence[int] = ()) -> None:
        """Have debug exceptions leave the guest: KVM_GUESTDBG_*, and the debug registers for KVM_GUESTDBG_USE_HW_BP."""
        value = ffi.new("struct kvm_guest_debug *")
        value.control = control
        value.debugreg[0 : len(debugregs)] = list(debugregs)
        self._set(request.KVM_SET_GUEST_DEBUG, value, "guest debugging")

    def get_fpu(self) -> Any:
        """Return struct kvm_fpu."""
        return self._get(request.KVM_GET_FPU, "kvm_fpu", "FPU")

    def set_fpu(self, value: Any) -> None:
        """Replace the registers of FPU and SSE."""
        self._set(request.KVM_SET_FPU, value, "FPU")

    def get_mp_state(self) -> MpState:
        """Return whether the vCPU runs, halts or waits to be started."""
        return MpState(self._get(request.KVM_GET_MP_STATE, "kvm_mp_state", "MP state").mp_state)

    def set_mp_state(self, state: MpState) -> None:
        """Make the vCPU run, halt, or wait to be started."""
        value = ffi.new("struct kvm_mp_state *")
        value.mp_state = state
        self._set(request.KVM_SET_MP_STATE, value, "MP state")

    def inject_interrupt(self, vector: int) -> bool:
        """Queue an external interrupt as a PIC would; tell whether KVM took it."""
        value = ffi.new("struct kvm_interrupt *", [vector])
        return libc.ioctl(self.fd, request.KVM_INTERRUPT, pointer(value)) >= 0

    def nmi(self) -> None:
        """Make a non-maskable interrupt pending."""
        checked_ioctl(self.fd, request.KVM_NMI, 0, "inject an NMI")

    def tsc_khz(self) -> int:
        """Return the guest's TSC frequency in kHz, 0 if KVM does not tell."""
        return max(0, libc.ioctl(self.fd, request.KVM_GET_TSC_KHZ, 0))

    def xen_set_attr(self, type_: XenVcpuAttr, **fields: int) -> None:
        """Set a KVM_XEN_VCPU_ATTR_*: one of gpa=, vcpu_id=, vector=."""
        attr = ffi.new("struct kvm_xen_vcpu_attr *")
        attr.type = type_
        for name, value in fields.items():
            setattr(attr.u, name, value)
        self._set(request.KVM_XEN_VCPU_SET_ATTR, attr, f"Xen vCPU attribute {type_.name}")

    def xen_runstate(self) -> tuple[int, int, tuple[int, int, int, int]]:
        """Return KVM's account of the vCPU: (state, entry time, (running, runnable, blocked, offline)), times in ns."""
        attr = ffi.new("struct kvm_xen_vcpu_attr *")
        attr.type = XenVcpuAttr.RUNSTATE_DATA
        checked_ioctl(self.fd, request.KVM_XEN_VCPU_GET_ATTR, pointer(attr), "read the runstate")
        data = attr.u.runstate
        times = (data.time_running, data.time_runnable, data.time_blocked, data.time_offline)
        return data.state, data.state_entry_time, times

    def xen_set_timer(self, port: int, deadline: int) -> None:
        """Have the Xen guest's one-shot timer be KVM's and raise the event of a port; 0: be it KVM's no more.

        `deadline` is in ns of the VM's clock; 0: it is not set.
        """
        attr = ffi.new("struct kvm_xen_vcpu_attr *")
        attr.type = XenVcpuAttr.TIMER
        timer = attr.u.timer
        timer.port, timer.priority, timer.expires_ns = port, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, deadline
        self._set(request.KVM_XEN_VCPU_SET_ATTR, attr, "set the Xen timer")

    def xen_timer(self) -> tuple[int, int]:
        """Return (port, deadline) of the timer that KVM keeps, as `xen_set_timer` takes them."""
        attr = ffi.new("struct kvm_xen_vcpu_attr *")
        attr.type = XenVcpuAttr.TIMER
        checked_ioctl(self.fd, request.KVM_XEN_VCPU_GET_ATTR, pointer(attr), "read the Xen timer")
        return attr.u.timer.port, attr.u.timer.expires_ns

    def close(self) -> None:
        """Free the vCPU; its thread must have left it."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        if self.fd >= 0:
            self.page.release()
            self.regs = self.sregs = self.events = self.run = None
            ffi.release(self._buffer)
            self._map.close()
            os.close(self.fd)
            self.fd = -1
