"""A domain that stands still, as plain data: what its parts say of themselves, put together."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy.codec import plain
from xenpy.domain.areas import Area
from xenpy.domain.hvm_context import StartState
from xenpy.domain.runstate import RunstateState
from xenpy.errors import HostError, XenError
from xenpy.framepool import PoolState
from xenpy.kvm.saved import KvmState, load, save
from xenpy.pv.emulate.ports import PortsState
from xenpy.pv.evtchn.port import ChannelsState
from xenpy.pv.gnttab.shared import GrantTableState
from xenpy.pv.mmu.state import MmuState
from xenpy.pv.shared_info import SharedInfoState
from xenpy.pv.time import ClockState, TimersState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.frozen import FrozenRam

_NS_PER_S: Final = 1_000_000_000


@plain
@dataclass(frozen=True, slots=True)
class PvVcpuState:
    """What Xen keeps of a PV vCPU beside its registers and its window. `traps` and `callbacks` are by number."""

    cs: int
    ss: int
    traps: dict[int, tuple[int, int, int]]
    callbacks: dict[int, tuple[int, bool]]
    nmi_pending: bool
    nmi_masked: bool
    blocked: bool
    dr6: int
    dr7: int
    tsc_aux: int
    time_area: Area | None
    """The second vcpu_time_info."""


@plain
@dataclass(frozen=True, slots=True)
class PvhVcpuState:
    """What Xen keeps of a PVH vCPU beside its registers. `initial` is what one begins with that is initialised, but not up yet."""

    upcall_vector: int
    upcall_unsettled: bool
    time_area: Area | None
    initial: StartState | None


@plain
@dataclass(frozen=True, slots=True)
class VcpuState:
    """A vCPU."""

    registers: KvmState
    iopl: int
    io_bitmap: tuple[int, int]
    started: bool
    up: bool
    timers: TimersState
    runstate: RunstateState
    kind: PvVcpuState | PvhVcpuState


@plain
@dataclass(frozen=True, slots=True)
class PvState:
    """What only PV domains have."""

    slot: int
    ring3_entry: bool
    fast: bool
    mmu: MmuState
    ports: PortsState


@plain
@dataclass(frozen=True, slots=True)
class PvhState:
    """What only PVH domains have. `placed` are pages of the pool in its map: (gfn, offset); `image` as PvhDomain's."""

    placed: tuple[tuple[int, int], ...]
    kvm_xen: bool
    image: tuple[tuple[int, int, int], ...]


@plain
@dataclass(frozen=True, slots=True)
class DomainState:
    """A domain, but for its RAM. `taken_at` is UTC in ns."""

    domid: int
    clock: ClockState
    taken_at: int
    tsc_khz: int
    pool: PoolState
    shared_info: SharedInfoState
    shared_info_gfn: int | None
    channels: ChannelsState
    grants: GrantTableState
    hvm_params: dict[int, int]
    vm_assist: int
    shutdown_code: int | None
    max_pages: int
    store_gfn: int
    console_gfn: int
    e820: tuple[tuple[int, int, int], ...]
    watchdogs: dict[int, int]
    vcpus: tuple[VcpuState, ...]
    kind: PvState | PvhState


def save_common(
    domain: Domain,
    kind: PvState | PvhState,
    save_kind: Callable[[Vcpu], PvVcpuState | PvhVcpuState],
    msrs: Sequence[int],
) -> DomainState:
    """Return a domain whose vCPUs stand still and whose grants nobody uses, with what its kind says of it and of its vCPUs.

    Under the host's lock. Raises HostError for what cannot be saved.
    """
    if domain.debugger is not None:
        raise HostError(f"{domain.name} cannot be saved while a debugger has it: its breakpoints would stay")
    try:
        return DomainState(
            domid=domain.domid,
            clock=domain.clock.state(),
            taken_at=time.time_ns(),
            tsc_khz=domain.vcpus[0].kvm.tsc_khz(),
            pool=domain.frames.state(),
            shared_info=domain.shared_info.state(),
            shared_info_gfn=domain.shared_info_gfn,
            channels=domain.evtchn.snapshot(),
            grants=domain.gnttab.snapshot(),
            hvm_params={int(index): value for index, value in domain.hvm_params.values.items()},
            vm_assist=domain.vm_assist,
            shutdown_code=domain.shutdown_code,
            max_pages=domain.max_pages,
            store_gfn=domain.store_gfn,
            console_gfn=domain.console_gfn,
            e820=tuple(domain.e820),
            watchdogs=domain.watchdogs.state(),
            vcpus=tuple(_save_vcpu(vcpu, save_kind(vcpu), msrs) for vcpu in domain.vcpus),
            kind=kind,
        )
    except XenError as error:
        raise HostError(f"{domain.name} cannot be saved now: {error.reason}") from None


def _save_vcpu(vcpu: Vcpu, kind: PvVcpuState | PvhVcpuState, msrs: Sequence[int]) -> VcpuState:
    return VcpuState(
        registers=save(vcpu.kvm, msrs, in_kernel=not vcpu.domain.is_pv),
        iopl=vcpu.iopl,
        io_bitmap=vcpu.io_bitmap,
        started=vcpu._started,
        up=vcpu._up,
        timers=vcpu.timers.state(),
        runstate=vcpu.account.state(),
        kind=kind,
    )


def load_common(domain: Domain, state: DomainState) -> None:
    """Take over what is neither memory nor a vCPU's, in a domain under construction that has memory and pages already."""
    domain.shared_info.restore(state.shared_info)
    domain.evtchn.restore(state.channels)
    domain.gnttab.restore(state.grants)
    domain.hvm_params.values = dict(state.hvm_params)
    domain.vm_assist, domain.shutdown_code = state.vm_assist, state.shutdown_code
    domain.max_pages = state.max_pages
    domain.store_gfn, domain.console_gfn, domain.e820 = state.store_gfn, state.console_gfn, state.e820


def load_vcpu(vcpu: Vcpu, state: VcpuState, resume: Resume) -> None:
    """Take over what every vCPU has; its registers are KVM's from then on."""
    load(vcpu.kvm, state.registers, state.registers.tsc + resume.elapsed_ns * resume.state.tsc_khz * 1000 // _NS_PER_S)
    vcpu.iopl, vcpu.io_bitmap = state.iopl, state.io_bitmap
    vcpu._started, vcpu._up = state.started, state.up
    vcpu.timers.restore(state.timers)
    vcpu.account.restore(state.runstate)


@dataclass(frozen=True, slots=True)
class Resume:
    """A saved domain that is to go on: its state and its RAM. It finds that no time has passed, or, with `wall`, all that has."""

    state: DomainState
    ram: FrozenRam
    wall: bool = False

    @property
    def elapsed_ns(self) -> int:
        """Return how much of the host's time has passed for it."""
        return max(0, time.time_ns() - self.state.taken_at) if self.wall else 0

    def clock(self) -> ClockState:
        """Return the clock to go on by. The wall clock that goes by the host's does so still only if no time is left out."""
        clock = self.state.clock
        if clock.utc_at_zero is None and not self.wall:
            return clock._replace(utc_at_zero=self.state.taken_at - clock.now)
        return clock._replace(now=clock.now + int(self.elapsed_ns * clock.rate))

    def start(self, domain: Domain) -> None:
        """Set a domain's clock going, before its vCPUs run."""
        clock = self.clock()
        domain.timekeeper.change(lambda changed: changed.restore(clock))
        domain.watchdogs.restore(self.state.watchdogs)
