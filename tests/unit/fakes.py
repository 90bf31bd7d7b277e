"""A domain and its vCPUs without KVM, for hypercalls: real state on real guest memory, and a record of what was asked of a vCPU."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xenpy.errors import Errno, XenError
from xenpy.framepool import FramePool
from xenpy.hypercalls import dispatch
from xenpy.hypercalls.call import Call
from xenpy.memory import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, GuestMemory
from xenpy.pv.evtchn import EventChannels
from xenpy.pv.gnttab import GrantTable
from xenpy.pv.hvm_params import HvmParams
from xenpy.pv.mmu import Mmu
from xenpy.pv.shared_info import SharedInfo
from xenpy.pv.time import SystemClock, VcpuTimers
from xenpy.pv.version import XenVersion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DOMID = 7
OTHER_DOMID = 8
RAM_PAGES = 256
RAM_SIZE = RAM_PAGES * PAGE_SIZE
UNMAPPED = 0x7F00_0000_0000

dispatch.load()


class FakeVcpu:
    """A vCPU whose linear addresses are guest-physical ones, but for the pages in `remapped` and `readonly`.

    `asked` records calls that have an effect only on a real vCPU, as (method, argument...).
    """

    def __init__(self, domain: FakeDomain, vcpu_id: int) -> None:
        self.domain = domain
        self.vcpu_id = vcpu_id
        self.iopl = 0
        self.io_bitmap = 0, 0
        self.kernel_l4 = self.user_l4 = 0
        self.is_up = vcpu_id == 0
        self.timers = VcpuTimers(domain.clock, domain.evtchn, vcpu_id, lambda: self.asked.append(("rearm",)))
        self.asked: list[tuple[Any, ...]] = []
        self.remapped: dict[int, int] = {}
        self.readonly: set[int] = set()

    def translate(self, gva: int, *, write: bool = False) -> int:
        page = gva >> PAGE_SHIFT
        if gva >> 47 not in (0, 0x1FFFF) or (write and page in self.readonly):
            raise XenError(Errno.EFAULT, f"gva {gva:#x}")
        return self.remapped.get(page, page) << PAGE_SHIFT | gva & PAGE_MASK

    def block(self) -> None:
        self.asked.append(("block",))

    def poll(self, ports: Sequence[int], timeout_ns: int) -> None:
        self.asked.append(("poll", tuple(ports), timeout_ns))

    def yield_(self) -> None:
        self.asked.append(("yield",))

    def initialise(self, context: Any) -> None:
        self.asked.append(("initialise", context))

    def up(self) -> None:
        self.is_up = True

    def down(self) -> None:
        self.is_up = False

    def send_nmi(self) -> None:
        self.asked.append(("nmi",))

    def set_upcall_vector(self, vector: int) -> None:
        self.asked.append(("upcall_vector", vector))

    def register_callback(self, type_: int, flags: int, gva: int) -> None:
        self.asked.append(("register_callback", type_, flags, gva))

    def unregister_callback(self, type_: int) -> None:
        self.asked.append(("unregister_callback", type_))

    def register_runstate(self, address: int, *, physical: bool) -> None:
        self.asked.append(("runstate_area", address, physical))

    def runstate(self) -> tuple[int, int, tuple[int, int, int, int]]:
        return 0, 1000, (1, 2, 3, 4)

    def register_time(self, address: int, *, physical: bool) -> None:
        self.asked.append(("time_area", address, physical))

    def event_pending(self) -> bool:
        return self.domain.shared_info.vcpu_info[self.vcpu_id].upcall_pending

    def load_base(self, mfn: int) -> None:
        self.kernel_l4 = mfn

    def load_user_base(self, mfn: int) -> None:
        self.user_l4 = mfn

    def flush_tlb(self) -> None:
        self.asked.append(("flush_tlb",))

    def invlpg(self, gva: int) -> None:
        self.asked.append(("invlpg", gva))

    def flush_on(self, vcpu_ids: Sequence[int] | None, gva: int | None) -> None:
        self.asked.append(("flush_on", vcpu_ids, gva))

    def set_ldt(self, gva: int, entries: int) -> None:
        self.asked.append(("ldt", gva, entries))

    def set_gdt(self, mfns: tuple[int, ...], entries: int) -> None:
        self.asked.append(("gdt", mfns, entries))

    def forget_selectors(self) -> None:
        self.asked.append(("forget_selectors",))

    def clear_traps(self) -> None:
        self.asked.append(("clear_traps",))

    def set_trap(self, vector: int, flags: int, cs: int, gva: int) -> None:
        self.asked.append(("trap", vector, flags, cs, gva))

    def set_kernel_stack(self, ss: int, sp: int) -> None:
        self.asked.append(("kernel_stack", ss, sp))

    def set_ts(self, value: bool) -> None:
        self.asked.append(("ts", value))

    def set_debugreg(self, number: int, value: int) -> None:
        self.asked.append(("debugreg", number, value))

    def get_debugreg(self, number: int) -> int:
        return number

    def iret(self) -> None:
        self.asked.append(("iret",))

    def load_user_gs(self, selector: int) -> None:
        self.asked.append(("user_gs", selector))

    def set_base(self, which: int, gva: int) -> None:
        self.asked.append(("segment_base", which, gva))


class FakeDomain:
    """A domain of `RAM_PAGES` pages from gfn 0, all of them RAM, beside a domain `OTHER_DOMID` when it has `peers`."""

    def __init__(self, domid: int = DOMID, *, vcpus: int = 2, is_pv: bool = False) -> None:
        self.domid = domid
        self.is_pv = is_pv
        self.in_guest = None
        self.kernel_events = None
        self.on_injected: list[Callable[[str, dict[str, Any]], None]] = []
        self.dispatch: Callable[[Call], int] = dispatch.dispatch
        self.clock = SystemClock()
        self.memory = GuestMemory()
        self.memory.add_ram(0, RAM_SIZE)
        self.frames = FramePool(128)
        self.shared_info = SharedInfo(self.frames, self.memory, vcpus)
        self.peers: dict[int, FakeDomain] = {domid: self}
        self.evtchn = EventChannels(
            domid,
            self.shared_info,
            self.memory,
            vcpus,
            lookup=lambda domid: self.peer(domid).evtchn,
            upcall=lambda _: None,
        )
        self.gnttab = GrantTable(
            domid, self.frames, self.memory, lookup=lambda domid: self.peer(domid).gnttab, max_frames=4
        )
        self.m2p = memoryview(bytearray(RAM_PAGES * 8)).cast("Q")
        self.mmu = Mmu(
            self.memory,
            memoryview(bytearray(RAM_PAGES * 8)).cast("Q"),
            0,
            self.m2p,
            store=lambda gpa, value: self.memory.u64.__setitem__(gpa >> 3, value),
            mappable=lambda _mfn: False,
            fill_hypervisor_slots=lambda _mfn, _kernel: None,
        )
        self.mmu.reservation.start(RAM_PAGES)
        self.machphys_mfns = (RAM_PAGES,)
        self.machphys = (0xFFFF_8080_0000_0000, 0xFFFF_8080_2000_0000, RAM_PAGES - 1)
        self.hvm_params = HvmParams()
        self.version = XenVersion(4, 20)
        self.max_pages = RAM_PAGES + 256
        self.handle = bytes(range(16))
        self.e820: Sequence[tuple[int, int, int]] = ((0, RAM_SIZE, 1), (0xFEE0_0000, 0x1000, 2))
        self.vm_assist = 0
        self.shutdown_code: int | None = None
        self.vcpus = [FakeVcpu(self, vcpu_id) for vcpu_id in range(vcpus)]
        self.asked: list[tuple[Any, ...]] = []
        self.output = b""
        self.logged: dict[str, str] = {}

    def peer(self, domid: int) -> FakeDomain:
        if domid == 0x7FF0:
            return self
        if domid not in self.peers:
            raise XenError(Errno.ESRCH, f"no domain {domid}")
        return self.peers[domid]

    def check_room(self, gfn: int) -> None:
        if not gfn:
            raise XenError(Errno.ENOMEM)

    def accept_page(self, gfn: int, data: bytes) -> int:
        self.asked.append(("page", gfn, data))
        return gfn + 1

    def shared_info_placed(self, gfn: int) -> None:
        self.asked.append(("shared_info", gfn))

    def vcpu_info_placed(self, vcpu_id: int) -> None:
        self.asked.append(("vcpu_info", vcpu_id))

    def callback_changed(self) -> None:
        self.asked.append(("callback",))

    def shutdown(self, reason: int) -> None:
        self.asked.append(("shutdown", reason))

    def set_watchdog(self, timer_id: int, timeout_s: int) -> int:
        self.asked.append(("watchdog", timer_id, timeout_s))
        return timer_id or 1

    def console_write(self, data: bytes) -> None:
        self.output += data

    def log(self, key: str, message: str) -> None:
        self.logged[key] = message

    # -- making calls -------------------------------------------------------------------------------------------------

    def call(
        self, nr: int, *args: int, wide: bool = True, vcpu: int = 0, checkpoint: Callable[[], None] | None = None
    ) -> Call:
        """Return a hypercall with its missing arguments zero."""
        return Call(self, self.vcpus[vcpu], nr, (*args, *[0] * (6 - len(args))), wide=wide, checkpoint=checkpoint)

    def hypercall(self, nr: int, *args: int, wide: bool = True, vcpu: int = 0) -> int:
        """Make a hypercall and return its result."""
        return dispatch.dispatch(self.call(nr, *args, wide=wide, vcpu=vcpu))

    def put(self, gpa: int, *values: tuple[int, int]) -> None:
        """Write numbers, given as (value, size in bytes), one after the other."""
        self.memory.write(
            gpa, b"".join((value & (1 << size * 8) - 1).to_bytes(size, "little") for value, size in values)
        )

    def number(self, gpa: int, size: int) -> int:
        """Return an unsigned number of `size` bytes."""
        return int.from_bytes(self.memory.read(gpa, size), "little")

    def close(self) -> None:
        """Free the memory."""
        for info in self.shared_info.vcpu_info:
            info.view.release()
        for view in (self.shared_info.view, self.shared_info._parking_view):
            view.release()
        self.memory.close()
        self.frames.close()


@contextmanager
def fake_domain(*, vcpus: int = 2, is_pv: bool = False) -> Iterator[FakeDomain]:
    """Make a domain, and another one that it may name."""
    domain = FakeDomain(vcpus=vcpus, is_pv=is_pv)
    other = FakeDomain(OTHER_DOMID, vcpus=1)
    domain.peers[OTHER_DOMID] = other
    other.peers[DOMID] = domain
    try:
        yield domain
    finally:
        domain.close()
        other.close()
