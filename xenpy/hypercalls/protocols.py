"""What hypercall handlers need of a domain and a vCPU. `xenpy.domain` supplies it; tests supply their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.framepool import FramePool
    from xenpy.hypercalls.call import Call
    from xenpy.memory import GuestMemory
    from xenpy.pv.evtchn import EventChannels
    from xenpy.pv.gnttab import GrantTable
    from xenpy.pv.hvm_params import HvmParams
    from xenpy.pv.shared_info import SharedInfo
    from xenpy.pv.time import VcpuTimers
    from xenpy.pv.version import XenVersion


class Vcpu(Protocol):
    """The calling vCPU, or another of the same domain."""

    vcpu_id: int
    timers: VcpuTimers
    iopl: int
    io_bitmap: tuple[int, int]
    """Where the guest keeps the bitmap of ports that it forbids, and how many of them; ports beyond are forbidden."""

    def register_callback(self, type_: int, flags: int, gva: int) -> None:
        """Register a PV kernel's entry point. Raises XenError."""

    def unregister_callback(self, type_: int) -> None:
        """Forget a PV kernel's entry point. Raises XenError."""

    @property
    def is_up(self) -> bool:
        """Tell whether the vCPU is online."""

    def translate(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind a guest-virtual address by the vCPU's present page tables. Raises XenError(EFAULT)."""

    def block(self) -> None:
        """Have the vCPU sleep, when its hypercall returns, until an event is pending for it."""

    def poll(self, ports: Sequence[int], timeout_ns: int) -> None:
        """Have the vCPU sleep until one of the ports is pending or system time reaches `timeout_ns` (0: no limit)."""

    def yield_(self) -> None:
        """Let other vCPUs run."""

    def initialise(self, context: Any) -> None:
        """Load the architectural state of VCPUOP_initialise. Raises XenError."""

    def up(self) -> None:
        """Bring the vCPU online. Raises XenError."""

    def down(self) -> None:
        """Take the vCPU offline when its hypercall returns."""

    def send_nmi(self) -> None:
        """Make a non-maskable interrupt pending."""

    def set_upcall_vector(self, vector: int) -> None:
        """Deliver upcalls as this interrupt vector through the LAPIC; 0 turns that off."""

    def register_runstate(self, address: int, *, physical: bool) -> None:
        """Keep struct vcpu_runstate_info current at a guest address. Raises XenError."""

    def runstate(self) -> tuple[int, int, tuple[int, int, int, int]]:
        """Return (RUNSTATE_*, since when, ns spent running, runnable, blocked, offline)."""

    def register_time(self, address: int, *, physical: bool) -> None:
        """Keep a second struct vcpu_time_info current at a guest address. Raises XenError."""

    def event_pending(self) -> bool:
        """Tell whether an upcall waits that the vCPU would take."""


class PvVcpu(Vcpu, Protocol):
    """A vCPU of a PV guest: what stands for its IDT, TSS and segment registers."""

    def clear_traps(self) -> None:
        """Forget all handlers."""

    def set_trap(self, vector: int, flags: int, cs: int, gva: int) -> None:
        """Set a vector's handler; bits 0-1 of `flags` are the lowest privilege that may raise it by INT, bit 2 masks events."""

    def set_kernel_stack(self, ss: int, sp: int) -> None:
        """Set the stack on which the kernel is entered from user mode."""

    def set_ts(self, value: bool) -> None:
        """Set or clear CR0.TS."""

    def set_debugreg(self, number: int, value: int) -> None:
        """Set a debug register. Raises XenError: EINVAL, EPERM."""

    def get_debugreg(self, number: int) -> int:
        """Return a debug register."""

    def iret(self) -> None:
        """Go where the frame on the kernel's stack says. Raises XenError(EFAULT) for a stack that cannot be read."""

    def load_user_gs(self, selector: int) -> None:
        """Load a selector into the GS of user mode; one that is no good becomes null."""

    def set_base(self, which: int, gva: int) -> None:
        """Set a segment's base: 0 FS, 1 user mode's GS, 2 the kernel's GS."""


class Domain(Protocol):
    """The domain of the calling vCPU."""

    domid: int
    is_pv: bool
    memory: GuestMemory
    frames: FramePool
    shared_info: SharedInfo
    evtchn: EventChannels
    gnttab: GrantTable
    hvm_params: HvmParams
    version: XenVersion
    max_pages: int
    handle: bytes
    vm_assist: int
    shutdown_code: int | None
    e820: Sequence[tuple[int, int, int]]
    """The memory map as (base, size, type), types as in struct hvm_memmap_table_entry."""

    @property
    def vcpus(self) -> Sequence[Vcpu]:
        """Return the domain's vCPUs by number."""

    @property
    def dispatch(self) -> Callable[[Call], int]:
        """Return what carries out a hypercall, with whoever listens in between."""

    def shared_info_placed(self, gfn: int) -> None:
        """Take note that the guest has placed shared_info at a gfn."""

    def vcpu_info_placed(self, vcpu_id: int) -> None:
        """Take note that the guest has placed a vCPU's vcpu_info."""

    def callback_changed(self) -> None:
        """Take note that the guest has set HVM_PARAM_CALLBACK_IRQ."""

    def peer(self, domid: int) -> Domain:
        """Return another domain, or this one for DOMID_SELF. Raises XenError(ESRCH)."""

    def check_room(self, gfn: int) -> None:
        """Raise XenError(ENOMEM) if another domain's page cannot be had for a gfn."""

    def accept_page(self, gfn: int, data: bytes) -> int:
        """Have a page with so much data, for a gfn for which there is room; return its frame number."""

    def shutdown(self, reason: int) -> None:
        """End the domain with a SHUTDOWN_* reason."""

    def set_watchdog(self, timer_id: int, timeout_s: int) -> int:
        """Arm, re-arm or disarm a watchdog timer; return its id. Raises XenError."""

    def console_write(self, data: bytes) -> None:
        """Take output of the emergency console (console_io)."""

    def log(self, key: str, message: str) -> None:
        """Log a message about the guest, once per key."""
