"""A domain: what PVH and PV have in common, from configuration to ending."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from xenpy import log
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.domain.ending import SHUTDOWN_ENDS, End, Ending
from xenpy.domain.timekeeping import Timekeeper
from xenpy.domain.watchdogs import Watchdogs
from xenpy.errors import Errno, HostError, XenError
from xenpy.framepool import FramePool
from xenpy.hypercalls.dispatch import dispatch
from xenpy.hypercalls.vm_assist import VMASST_TYPE_runstate_update_flag
from xenpy.kvm.constants import Cap
from xenpy.kvm.vm import Vm
from xenpy.memory import PAGE_SHIFT, GuestMemory
from xenpy.pv.evtchn import EventChannels
from xenpy.pv.gnttab import GrantTable
from xenpy.pv.hvm_params import HvmParams
from xenpy.pv.shared_info import SharedInfo
from xenpy.pv.time import SystemClock
from xenpy.pv.version import XenVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.config import DomainConfig
    from xenpy.domain.debugging import Debugger
    from xenpy.domain.inguest import InGuest
    from xenpy.domain.kernel_events import KernelEvents
    from xenpy.domain.services import Services
    from xenpy.domain.vcpu import Vcpu
    from xenpy.hypercalls.call import Call
    from xenpy.memory import Frame
    from xenpy.pv.evtchn import PortTable

DOM0: Final = 0
_BALLOON_SLACK_PAGES: Final = 256


def _ignore_output(_data: bytes) -> None:
    """Drop what nobody asked for."""


class Domain(ABC):
    """A domain. Raises ConfigError for a kernel that cannot be one of its kind and HostError where KVM lacks something."""

    is_pv: bool
    kvm_xen = False
    """Whether KVM's Xen support is in use."""
    store_gfn: int
    console_gfn: int
    """Where the rings of xenstore and console are, in the guest-physical space."""
    e820: Sequence[tuple[int, int, int]]
    late_port = 0
    """A port of the guest's whose events need not reach us at once; 0 for none."""

    def __init__(self, host: Services, domid: int, config: DomainConfig) -> None:
        self.host = host
        self.domid = domid
        self.config = config
        self.name = config.name
        self.handle = config.uuid.bytes
        major, minor = config.xen_version
        self.version = XenVersion(major, minor)
        self.ending: Ending | None = None
        self.paused = False
        self.debugger: Debugger | None = None
        self._unpaused = threading.Condition()
        self.asleep = threading.Condition(host.lock)
        """Notified when a vCPU has nothing to do, where we see it."""
        self.on_emergency_output: Callable[[bytes], None] = _ignore_output
        self.shutdown_code: int | None = None
        self._vm_assist = 0
        self.shared_info_gfn: int | None = None
        self.dispatch: Callable[[Call], int] = dispatch
        self.clock = SystemClock()
        self.timekeeper = Timekeeper(self)
        self.watchdogs = Watchdogs(self)
        self.on_injected: list[Callable[[str, dict[str, Any]], None]] = []
        """Who hears, under the host's lock, of faults that a test has injected: their names, and what is known of them."""
        self.in_guest: InGuest | None = None
        """What tells of hypercalls that never leave the guest, where there are such."""
        self.kernel_events: KernelEvents | None = None
        """What the kernel serves of events and timers, where it does."""
        self._vcpus: list[Vcpu] = []
        self._closed = False
        self.memory = GuestMemory()
        self.frames = FramePool()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    # -- building -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _build(self) -> None:
        """Make the VM, load the kernel, make the vCPUs."""

    def _make_vm(self, *needed: Cap) -> None:
        kvm = self.host.kvm
        missing = [cap.name for cap in (*needed, Cap.SYNC_REGS, Cap.IMMEDIATE_EXIT) if not kvm.check(cap)]
        if missing:
            raise HostError(f"/dev/kvm of this kernel lacks {', '.join(missing)}: Linux 5.10 or later is needed")
        self.vm = Vm(kvm)
        self.memory.on_region = self.vm.set_region

    def _make_state(self, grant_frame_number: Callable[[Frame], int] | None = None) -> None:
        """Make what a domain shares with its hypervisor; see GrantTable for the number of a frame of grants."""
        config, vcpus = self.config, self.config.maxvcpus
        self.shared_info = SharedInfo(self.frames, self.memory, vcpus)
        self.evtchn = EventChannels(
            self.domid, self.shared_info, self.memory, vcpus, lookup=self._peer_ports, upcall=self._upcall,
            wake_poller=self._wake_poller, max_ports=config.max_event_channels + 1,
        )  # fmt: skip
        self.gnttab = GrantTable(
            self.domid, self.frames, self.memory, lookup=self._peer_grants, max_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames, max_version=config.max_grant_version,
            frame_number=grant_frame_number,
        )  # fmt: skip
        self.hvm_params = HvmParams()

    def _set_max_pages(self) -> None:
        config = self.config
        self.max_pages = max((config.maxmem_mib << 20) >> PAGE_SHIFT, self.memory.ram_pages) + _BALLOON_SLACK_PAGES

    @property
    def vm_assist(self) -> int:
        """The assists that the guest has turned on, a bit for each. Ref: xen/include/public/xen.h, VMASST_TYPE_*"""
        return self._vm_assist

    @vm_assist.setter
    def vm_assist(self, mask: int) -> None:
        self._vm_assist = mask
        for vcpu in self._vcpus:
            vcpu.account.update_flag = bool(mask >> VMASST_TYPE_runstate_update_flag & 1)

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """Return the domain's vCPUs by number."""
        return self._vcpus

    @abstractmethod
    def set_ports(self, store: int, console: int) -> None:
        """Tell the guest the event channels of its xenstore and console rings."""

    @property
    def kvm_upcalls(self) -> bool:
        """Tell whether KVM injects the callback vector by itself, for which it needs to know where vcpu_info is."""
        return self.kvm_xen and not self.timekeeper.own

    def write_wallclock(self) -> None:
        """Tell the guest the UTC of system time 0."""
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
        if self.kernel_events is not None:
            self.kernel_events.begin()
        for vcpu in self._vcpus:
            vcpu.start()

    def pause(self) -> None:
        """Stop the vCPUs before they next enter the guest."""
        self.paused = True
        for vcpu in self._vcpus:
            vcpu.kick()

    def unpause(self) -> None:
        """Let the vCPUs run again."""
        with self._unpaused:
            self.paused = False
            self._unpaused.notify_all()

    @property
    def stands(self) -> bool:
        """Tell whether vCPUs are kept from running: by a pause, or by a debugger."""
        return self.paused or (self.debugger is not None and self.debugger.holds)

    def describe_pfn(self, pfn: int) -> str:
        """Say what is behind a frame of the guest's own counting."""
        return f"gfn {pfn:#x}: {'RAM' if self.memory.is_ram(pfn) else 'no RAM'}"

    def check_room(self, gfn: int) -> None:
        """Raise XenError(ENOMEM) if a page that another domain gives away cannot be had at a gfn."""
        if self.memory.ram_pages >= self.max_pages or not self.memory.lacks(gfn):
            raise XenError(Errno.ENOMEM, f"gfn {gfn:#x} cannot have another domain's page")

    def accept_page(self, gfn: int, data: bytes) -> int:
        """Have such a page where there is room; return its frame number."""
        self.memory.populate(gfn)
        self.memory.write(gfn << PAGE_SHIFT, data)
        return gfn

    def check_writable(self, gpa: int) -> None:
        """Raise XenError: EFAULT for a page that is none, EPERM for one that nobody may write past the guest's page tables."""
        self.memory.check(gpa, 1)

    def look_again(self) -> None:
        """Have vCPUs that are kept from running find out whether they still are."""
        with self._unpaused:
            self._unpaused.notify_all()

    def wait_unpaused(self, vcpu: Vcpu) -> None:
        """Block the calling thread, that of a vCPU, while it is kept from running."""
        with self._unpaused:
            vcpu.stands = True
            while (self.stands or vcpu.held) and self.ending is None:
                self._unpaused.wait()
            vcpu.stands = False

    # -- ending -------------------------------------------------------------------------------------------------------

    def end(self, ending: Ending) -> None:
        """End the domain, unless it has ended already. From any thread."""
        with self.host.lock:
            if self.ending is not None:
                return
            self.ending = ending
        self.unpause()
        for vcpu in self._vcpus:
            vcpu.kick()
        if self.debugger is not None:
            self.host.loop.call_soon(self.debugger.ended)
        self.host.ended(self)

    def shutdown(self, reason: int, detail: str = "") -> None:
        """End the domain for a SHUTDOWN_* reason; for one that has no name, as after a crash."""
        code = self.shutdown_code if self.shutdown_code is not None else reason
        if code < len(SHUTDOWN_ENDS):
            self.end(Ending(SHUTDOWN_ENDS[code], detail))
        else:
            self.end(Ending(End.CRASH, detail or f"it shut down for reason {code}, which Xen has no name for"))

    def internal_error(self, error: BaseException) -> None:
        """End the domain because of a bug of ours, and say where it is."""
        import traceback

        frame = traceback.extract_tb(error.__traceback__)[-1]
        if log.verbose:
            traceback.print_exception(error, file=sys.stderr)
        self.end(Ending(End.INTERNAL, f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"))

    @abstractmethod
    def unsupported_hint(self) -> str:
        """Return what to add to the report of an instruction KVM cannot emulate."""

    def close(self) -> None:
        """Free everything the domain holds; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.ending is None:
            self.ending = Ending(End.DESTROYED)
        self.unpause()
        self.watchdogs.close()
        if self.in_guest is not None:
            self.in_guest.finish()
        if self.kernel_events is not None:
            self.kernel_events.end()
        for vcpu in self._vcpus:
            vcpu.close()
        if hasattr(self, "evtchn"):
            with self.host.lock:
                self.evtchn.destroy()
                if hasattr(self, "gnttab"):
                    self.gnttab.destroy()
        if hasattr(self, "vm"):
            self.vm.close()
        # Views of guest memory may live on in reference cycles; a mapping that is still exported stays until they go.
        with self.host.lock:  # not while somebody reads
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
        if vcpu_id < len(self._vcpus):
            self._vcpus[vcpu_id].upcall()

    def _wake_poller(self, port: int) -> None:
        for vcpu in self._vcpus:
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

    @abstractmethod
    def shared_info_placed(self, gfn: int) -> None:
        """Take note that the guest has placed shared_info at a gfn."""

    @abstractmethod
    def vcpu_info_placed(self, vcpu_id: int) -> None:
        """Take note that the guest has placed a vCPU's vcpu_info."""

    @abstractmethod
    def callback_changed(self) -> None:
        """Take note that the guest has set HVM_PARAM_CALLBACK_IRQ."""

    def wait_closed(self, seconds: float) -> bool:
        """Wait for all vCPU threads to end; tell whether they did."""
        deadline = time.monotonic() + seconds
        for vcpu in self._vcpus:
            if vcpu.thread is not None:
                vcpu.thread.join(max(0.0, deadline - time.monotonic()))
        return not any(vcpu.thread is not None and vcpu.thread.is_alive() for vcpu in self.vcpus)
