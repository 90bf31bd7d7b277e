"""A PV domain that goes on where another stood still: its page tables, types and the shim come with the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.domain.pv.domain import PvDomain
from xenpy.domain.pv.state import Callback, Trap
from xenpy.domain.pv.vcpu import PvVcpu
from xenpy.domain.saved import DomainState, PvState, PvVcpuState, Resume, load_common, load_vcpu, save_common
from xenpy.errors import HostError, XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.shim import recording

if TYPE_CHECKING:
    from xenpy.config import DomainConfig
    from xenpy.domain.services import Services
    from xenpy.domain.vcpu import Vcpu

_MSR_KERNEL_GS_BASE: Final = 0xC000_0102


def save_pv(domain: PvDomain) -> DomainState:
    """Return a PV domain that stands still. Under the host's lock. Raises HostError for what cannot be saved."""
    shim = domain.shim
    try:
        mmu = domain.mmu.state()
    except XenError as error:
        raise HostError(f"{domain.name} cannot be saved now: {error.reason}") from None
    kind = PvState(shim.slot, shim.ring3_entry, domain.shim_fast, mmu, domain.ports.state())
    return save_common(domain, kind, _save_vcpu, [_MSR_KERNEL_GS_BASE])


def _save_vcpu(vcpu: Vcpu) -> PvVcpuState:
    assert isinstance(vcpu, PvVcpu)
    return PvVcpuState(
        cs=vcpu.cs,
        ss=vcpu.ss,
        traps={number: (trap.flags, trap.cs, trap.gva) for number, trap in enumerate(vcpu.traps) if trap is not None},
        callbacks={int(type_): (callback.gva, callback.masks_events) for type_, callback in vcpu.callbacks.items()},
        nmi_pending=vcpu.nmi_pending,
        nmi_masked=vcpu.nmi_masked,
        blocked=vcpu._blocked,
        dr6=vcpu.dr6,
        dr7=vcpu.dr7,
        tsc_aux=vcpu.tsc_aux,
        time_area=vcpu.time_area,
    )


class RestoredPvDomain(PvDomain):
    """A PV domain made of a saved one. Raises HostError where this host's KVM is not as that one's."""

    def __init__(self, host: Services, domid: int, config: DomainConfig, resume: Resume) -> None:
        self._resume = resume
        assert isinstance(resume.state.kind, PvState)
        self._kind = resume.state.kind
        self.shim_fast = self._kind.fast
        super().__init__(host, domid, config)

    def _fill_memory(self) -> None:
        traits, saved = self.host.pv_traits(), self._kind
        if (traits.slot, traits.ring3_entry) != (saved.slot, saved.ring3_entry):
            raise HostError("the guest was saved on a host whose KVM runs ring 3 in another way than this one's")
        state = self._resume.state
        self.frames.load(state.pool)
        self.memory.adopt(self._resume.ram)
        pages = self.config.maxmem_mib << 20 - PAGE_SHIFT
        self._make_shim(pages, adopt=True)
        self._make_mmu(pages)
        self.mmu.restore(saved.mmu)
        load_common(self, state)

    def _begin(self) -> None:
        self.ports.restore(self._kind.ports)
        for vcpu, state in zip(self.pv_vcpus, self._resume.state.vcpus, strict=True):
            load_vcpu(vcpu, state, self._resume)
            assert isinstance(state.kind, PvVcpuState)
            _load_vcpu(vcpu, state.kind)
            recording.ignore(vcpu.window)

    def start(self) -> None:
        """Let the vCPUs go on, at the system time at which they stood still."""
        self._resume.start(self)
        super().start()


def _load_vcpu(vcpu: PvVcpu, state: PvVcpuState) -> None:
    vcpu.cs, vcpu.ss = state.cs, state.ss
    for number, trap in state.traps.items():
        vcpu.traps[number] = Trap(*trap)
    vcpu.callbacks = {type_: Callback(*callback) for type_, callback in state.callbacks.items()}
    vcpu.nmi_pending, vcpu.nmi_masked = state.nmi_pending, state.nmi_masked
    vcpu.dr6, vcpu.dr7, vcpu.tsc_aux = state.dr6, state.dr7, state.tsc_aux
    vcpu.time_area = state.time_area
    vcpu.resume(blocked=state.blocked)
