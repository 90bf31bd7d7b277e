"""A PVH domain, from configuration to ending.

Ref: xen-doc misc/pvh.pandoc
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from xenpy import log
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.builder.patch import apply, find_hypercall_sites
from xenpy.domain import cpuid, supported
from xenpy.domain.areas import place_time
from xenpy.domain.ending import SHUTDOWN_ENDS, End, Ending
from xenpy.domain.hvm_context import make_first, pvh_entry
from xenpy.domain.upcalls import callback_vector
from xenpy.domain.vcpu import HYPERCALL_PORT, Vcpu
from xenpy.domain.watchdogs import Watchdogs
from xenpy.errors import Errno, HostError, XenError
from xenpy.hypercalls.dispatch import dispatch
from xenpy.kvm.constants import MSR_EXIT_REASON_FILTER, Cap, XenAttr, XenConfig
from xenpy.kvm.vm import Vm
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE, FramePool, GuestMemory
from xenpy.pv.evtchn import EventChannels
from xenpy.pv.gnttab import GrantTable
from xenpy.pv.hvm_params import HVM_PARAM, HvmParams
from xenpy.pv.shared_info import SharedInfo
from xenpy.pv.time import SystemClock
from xenpy.pv.version import XenVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.config import DomainConfig
    from xenpy.domain.services import Services
    from xenpy.hypercalls.call import Call
    from xenpy.pv.evtchn import PortTable

DOM0: Final = 0
_HYPERCALLS_PER_PAGE: Final = 128
_STUB_SIZE: Final = 32
_IRET: Final = 23
_XEN_MSR_COUNT: Final = 16
_BALLOON_SLACK_PAGES: Final = 256


def _ignore_output(_data: bytes) -> None:
    """Drop what nobody asked for."""


class Domain:
    """A PVH domain.

    Raises ConfigError for a kernel that cannot be one and HostError where KVM lacks something.
    """

    is_pv = False

    def __init__(self, host: Services, domid: int, config: DomainConfig) -> None:
        supported.check(config)
        self.host = host
        self.domid = domid
        self.config = config
        self.name = config.name
        self.handle = config.uuid.bytes
        major, minor = config.xen_version
        self.version = XenVersion(major, minor)
        self.ending: Ending | None = None
        self.paused = False
        self._unpaused = threading.Condition()
        self.on_emergency_output: Callable[[bytes], None] = _ignore_output
        self.shutdown_code: int | None = None
        self.vm_assist = 0
        self.callback_vector = 0
        self.shared_info_gfn: int | None = None
        self.dispatch: Callable[[Call], int] = dispatch
        self.clock = SystemClock()
        self.watchdogs = Watchdogs(self)
        self.vcpus: list[Vcpu] = []
        self._closed = False
        self.memory = GuestMemory()
        self.frames = FramePool()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    # -- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        config, vcpus = self.config, self.config.maxvcpus
        self._make_vm()
        self.shared_info = SharedInfo(self.frames, self.memory, vcpus)
        self.evtchn = EventChannels(
            self.domid, self.shared_info, self.memory, vcpus, lookup=self._peer_ports, upcall=self._upcall,
            wake_poller=self._wake_poller, max_ports=config.max_event_channels + 1,
        )  # fmt: skip
        self.gnttab = GrantTable(
            self.domid, self.frames, self.memory, lookup=self._peer_grants, max_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames, max_version=config.max_grant_version,
        )  # fmt: skip
        self.hvm_params = HvmParams()
        self._load_kernel()
        self.max_pages = max((config.maxmem_mib << 20) >> PAGE_SHIFT, self.memory.ram_pages) + _BALLOON_SLACK_PAGES
        self._write_wallclock()
        host_leaves = self.host.kvm.supported_cpuid()
        for vcpu_id in range(vcpus):
            vcpu = Vcpu(self, vcpu_id)
            khz = vcpu.kvm.tsc_khz()
            vcpu.kvm.set_cpuid(cpuid.policy(host_leaves, self.version, self.domid, vcpu_id, vcpus, khz))
            # Emulated SVM hosts do not tell KVM of a guest's XSETBV, and CPUID would go on reporting the size for XCR0 = 1.
            if features := cpuid.xcr0_features(host_leaves):
                vcpu.kvm.set_xcr0(features)
            self.vcpus.append(vcpu)
        make_first(self.vcpus[0].kvm, pvh_entry(self.entry, self.start_info))

    def _make_vm(self) -> None:
        kvm = self.host.kvm
        missing = [cap.name for cap in (Cap.SPLIT_IRQCHIP, Cap.SYNC_REGS, Cap.IMMEDIATE_EXIT) if not kvm.check(cap)]
        if missing:
            raise HostError(f"/dev/kvm of this kernel lacks {', '.join(missing)}: Linux 5.10 or later is needed")
        offered = kvm.check(Cap.XEN_HVM)
        wanted = XenConfig.INTERCEPT_HCALL
        self.kvm_xen = bool(offered & wanted) and self.config.kvm_xen is not False
        if self.config.kvm_xen and not self.kvm_xen:
            raise HostError("xenpy_kvm_xen = 1, but this kernel's KVM has no Xen support (CONFIG_KVM_XEN)")
        self.vm = Vm(kvm)
        self.vm.split_irqchip()
        self.memory.on_region = self.vm.set_region
        if self.kvm_xen:
            self.vm.xen_hvm_config(wanted, cpuid.XEN_MSR)  # without an MSR the kernel leaves its Xen support off
        self.vm.trap_msrs([(cpuid.XEN_MSR, _XEN_MSR_COUNT)], MSR_EXIT_REASON_FILTER)

    def _load_kernel(self) -> None:
        from xenpy.builder.kernel import load_kernel
        from xenpy.builder.layout import CONSOLE_GFN, XENSTORE_GFN
        from xenpy.builder.pvh import build_pvh

        config = self.config
        with load_kernel(config.kernel) as kernel:
            start = build_pvh(
                self.memory,
                kernel,
                size=config.maxmem_mib << 20,
                cmdline=config.cmdline,
                ramdisk=config.ramdisk,
                vcpus=config.vcpus,
                max_vcpus=config.maxvcpus,
                apic_id=cpuid.apic_id,
            )
            if not self.kvm_xen:
                apply(self.memory, find_hypercall_sites(kernel), HYPERCALL_PORT, moved=start.load_offset)
        self.entry, self.start_info, self.e820 = start.entry_eip, start.start_info_gpa, start.memory_map
        self.store_gfn, self.console_gfn = XENSTORE_GFN, CONSOLE_GFN
        values = self.hvm_params.values
        values[HVM_PARAM.STORE_PFN], values[HVM_PARAM.CONSOLE_PFN] = self.store_gfn, self.console_gfn
        values[HVM_PARAM.TRIPLE_FAULT_REASON] = SHUTDOWN_ENDS.index(End.REBOOT)

    def _write_wallclock(self) -> None:
        seconds, nanoseconds = self.clock.wallclock()
        layout, view = self.shared_info.layout, self.shared_info.view
        for offset, value in (
            (layout.wc_version + 4, seconds & 0xFFFF_FFFF),
            (layout.wc_version + 8, nanoseconds),
            (layout.wc_sec_hi, seconds >> 32),
        ):
            view[offset : offset + 4] = value.to_bytes(4, "little")
        version = int.from_bytes(view[layout.wc_version : layout.wc_version + 4], "little")
        view[layout.wc_version : layout.wc_version + 4] = (version + 2 & 0xFFFF_FFFE).to_bytes(4, "little")

    # -- running ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the vCPUs run."""
        self.vm.set_clock(self.clock.now())
        for vcpu in self.vcpus:
            vcpu.start()

    def pause(self) -> None:
        """Stop the vCPUs before they next enter the guest."""
        self.paused = True
        for vcpu in self.vcpus:
            vcpu.kick()

    def unpause(self) -> None:
        """Let the vCPUs run again."""
        with self._unpaused:
            self.paused = False
            self._unpaused.notify_all()

    def wait_unpaused(self) -> None:
        """Block the calling vCPU thread while the domain is paused."""
        with self._unpaused:
            while self.paused and self.ending is None:
                self._unpaused.wait()

    # -- ending -------------------------------------------------------------------------------------------------------

    def end(self, ending: Ending) -> None:
        """End the domain, unless it has ended already. From any thread."""
        with self.host.lock:
            if self.ending is not None:
                return
            self.ending = ending
        self.unpause()
        for vcpu in self.vcpus:
            vcpu.kick()
        self.host.ended(self)

    def shutdown(self, reason: int, detail: str = "") -> None:
        """End the domain for a SHUTDOWN_* reason."""
        code = self.shutdown_code if self.shutdown_code is not None else reason
        self.end(Ending(SHUTDOWN_ENDS[code], detail))

    def internal_error(self, error: BaseException) -> None:
        """End the domain because of a bug of ours, and say where it is."""
        import traceback

        frame = traceback.extract_tb(error.__traceback__)[-1]
        if log.verbose:
            traceback.print_exception(error, file=sys.stderr)
        self.end(Ending(End.INTERNAL, f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"))

    def unsupported_hint(self) -> str:
        """Return what to add to the report of an instruction KVM cannot emulate."""
        return ' (this host interprets ring 0: run it as type="pv", or with --host emulated)'

    def close(self) -> None:
        """Free everything the domain holds; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.ending is None:
            self.ending = Ending(End.DESTROYED)
        self.unpause()
        self.watchdogs.close()
        for vcpu in self.vcpus:
            vcpu.close()
        if hasattr(self, "evtchn"):
            with self.host.lock:
                self.evtchn.destroy()
                if hasattr(self, "gnttab"):
                    self.gnttab.destroy()
        if hasattr(self, "vm"):
            self.vm.close()
        # Views of guest memory may live on in reference cycles; a mapping that is still exported stays until they go.
        with suppress(BufferError):
            self.memory.close()
        with suppress(BufferError):
            self.frames.close()

    # -- what hypercall handlers ask --------------------------------------------------------------------------------------

    def peer(self, domid: int) -> Domain:
        """Return another domain, or this one. Raises XenError(ESRCH)."""
        return self if domid in (DOMID_SELF, self.domid) else self.host.domain(domid)

    def _peer_ports(self, domid: int) -> PortTable:
        if domid == DOM0:
            return self.host.ports
        return self.peer(domid).evtchn

    def _peer_grants(self, domid: int) -> GrantTable:
        return self.peer(domid).gnttab

    def _upcall(self, vcpu_id: int) -> None:
        if vcpu_id < len(self.vcpus):
            self.vcpus[vcpu_id].upcall()

    def _wake_poller(self, port: int) -> None:
        for vcpu in self.vcpus:
            vcpu.wake_if_polling(port)

    def set_watchdog(self, timer_id: int, timeout_s: int) -> int:
        """Arm, re-arm or stop a watchdog; return its id. Raises XenError."""
        return self.watchdogs.set(timer_id, timeout_s)

    def console_write(self, data: bytes) -> None:
        """Take output of the emergency console."""
        self.on_emergency_output(data)

    def log(self, key: str, message: str) -> None:
        """Log a message about the guest, once per key."""
        log.once(f"{self.domid}:{key}", f"{self.name}: {message}")

    def shared_info_placed(self, gfn: int) -> None:
        """Take note that the guest has placed shared_info at a gfn."""
        self.shared_info_gfn = gfn
        self._word_size_changed()
        for vcpu in self.vcpus:
            place_time(vcpu)

    def _word_size_changed(self) -> None:
        """Write what lies elsewhere in the other layout, and tell KVM."""
        self._write_wallclock()
        if self.kvm_xen:
            self.vm.xen_set_attr(XenAttr.LONG_MODE, long_mode=self.shared_info.layout.word_bits == 64)

    def vcpu_info_placed(self, vcpu_id: int) -> None:
        """Take note that the guest has placed a vCPU's vcpu_info."""
        place_time(self.vcpus[vcpu_id])

    def callback_changed(self) -> None:
        """Take note that the guest has set HVM_PARAM_CALLBACK_IRQ."""
        self.callback_vector = callback_vector(self.hvm_params.values[HVM_PARAM.CALLBACK_IRQ])
        self._word_size_changed()
        if self.kvm_xen:
            self.vm.xen_set_attr(XenAttr.UPCALL_VECTOR, vector=self.callback_vector)
        for vcpu in self.vcpus:
            if vcpu.event_pending():
                vcpu.upcall()

    def fill_hypercall_page(self, gpa: int, *, wide: bool) -> None:
        """Write the hypercall stubs into a page of the guest's; its word size is from now on that of the code that asked.

        Raises XenError(EINVAL, EFAULT).
        """
        if gpa % PAGE_SIZE:
            raise XenError(Errno.EINVAL, f"hypercall page at gpa {gpa:#x}")
        self.memory.write(gpa, hypercall_page(in_kernel=self.kvm_xen, amd=self._is_amd()))
        self.shared_info.set_word_size(64 if wide else 32)
        self._word_size_changed()

    def _is_amd(self) -> bool:
        return any(
            leaf == 0 and registers[1] in _AMD_VENDORS for leaf, _, _, registers in self.host.kvm.supported_cpuid()
        )

    def wait_closed(self, seconds: float) -> bool:
        """Wait for all vCPU threads to end; tell whether they did."""
        deadline = time.monotonic() + seconds
        for vcpu in self.vcpus:
            if vcpu.thread is not None:
                vcpu.thread.join(max(0.0, deadline - time.monotonic()))
        return not any(vcpu.thread is not None and vcpu.thread.is_alive() for vcpu in self.vcpus)


_AMD_VENDORS: Final = (0x6874_7541, 0x6F67_7948)  # EBX of leaf 0: "Auth"enticAMD, "Hygo"nGenuine


def hypercall_page(*, in_kernel: bool, amd: bool) -> bytes:
    """Return 128 stubs of 32 bytes, which serve 32- and 64-bit code alike.

    Each is mov eax, number; VMCALL, VMMCALL or OUT; ret. iret cannot be called this way: UD2, as Xen has it.
    """
    vmcall = bytes.fromhex("0f01d9" if amd else "0f01c1")
    leave = vmcall if in_kernel else bytes((0xE7, HYPERCALL_PORT))
    stubs: Sequence[bytes] = [
        b"\x0f\x0b" if number == _IRET else b"\xb8" + number.to_bytes(4, "little") + leave + b"\xc3"
        for number in range(_HYPERCALLS_PER_PAGE)
    ]
    return b"".join(stub.ljust(_STUB_SIZE, b"\xcc") for stub in stubs)
