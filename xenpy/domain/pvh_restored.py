"""A PVH domain that goes on where another stood still: KVM has nearly all of a vCPU, memory the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.domain.pvh import PvhDomain
from xenpy.domain.pvh_vcpu import PvhVcpu
from xenpy.domain.saved import DomainState, PvhState, PvhVcpuState, Resume, load_common, load_vcpu, save_common
from xenpy.domain.timekeeping import vcpu_info_gpa
from xenpy.errors import HostError
from xenpy.kvm.saved import MSR_TSC_DEADLINE
from xenpy.pv.hvm_params import HVM_PARAM

if TYPE_CHECKING:
    from xenpy.config import DomainConfig
    from xenpy.domain.domain import Domain
    from xenpy.domain.services import Services
    from xenpy.domain.vcpu import Vcpu

_MTRR_COUNT: Final = 8
_MSRS: Final = (
    0x3B,  # TSC_ADJUST
    0x48,  # SPEC_CTRL
    *range(0x174, 0x177),  # SYSENTER_CS, _ESP, _EIP
    0x1A0,  # MISC_ENABLE
    0x1D9,  # DEBUGCTL
    *range(0x200, 0x200 + 2 * _MTRR_COUNT),  # MTRR_PHYSBASE, MTRR_PHYSMASK
    0x250, 0x258, 0x259, *range(0x268, 0x270),  # MTRR_FIX*
    0x277,  # PAT
    0x2FF,  # MTRR_DEF_TYPE
    MSR_TSC_DEADLINE,
    0xDA0,  # XSS
    *range(0xC000_0081, 0xC000_0085),  # STAR, LSTAR, CSTAR, SFMASK
    0xC000_0102,  # KERNEL_GS_BASE
    0xC000_0103,  # TSC_AUX
)  # fmt: skip
"""What a kernel sets beside the MSRs that KVM counts among the system registers. Ref: Intel SDM volume 4, AMD64 APM volume 2, appendix A"""


def save_pvh(domain: Domain) -> DomainState:
    """Return a PVH domain that stands still. Under the host's lock. Raises HostError for what cannot be saved."""
    assert isinstance(domain, PvhDomain)
    placed = domain.memory.all_placed()
    if not all(domain.frames.owns(frame) for _, frame in placed):
        raise HostError(f"{domain.name} cannot be saved now: it has pages of another guest in its map")
    for vcpu in domain.vcpus:
        _of(vcpu).bring_to_rest()
    kind = PvhState(tuple((gfn, frame.offset) for gfn, frame in placed), domain.kvm_xen, tuple(domain.image))
    return save_common(domain, kind, lambda vcpu: _of(vcpu).state(), _MSRS)


def _of(vcpu: Vcpu) -> PvhVcpu:
    assert isinstance(vcpu, PvhVcpu)
    return vcpu


class RestoredPvhDomain(PvhDomain):
    """A PVH domain made of a saved one. Raises HostError where this host's KVM is not as that one's."""

    def __init__(self, host: Services, domid: int, config: DomainConfig, resume: Resume) -> None:
        self._resume = resume
        assert isinstance(resume.state.kind, PvhState)
        self._kind = resume.state.kind
        super().__init__(host, domid, config)

    def _fill_memory(self) -> None:
        if self.kvm_xen != self._kind.kvm_xen:
            had, has = ("with", "without") if self._kind.kvm_xen else ("without", "with")
            raise HostError(
                f"the guest was saved on a host {had} KVM's Xen support in use, and its hypercalls need the same: this one runs {has} it"
            )
        state = self._resume.state
        self.frames.load(state.pool)
        self.memory.adopt(self._resume.ram)
        for gfn, offset in self._kind.placed:
            self.memory.place(gfn, self.frames.at(offset))
        self.image = list(self._kind.image)
        load_common(self, state)
        self.shared_info_gfn = state.shared_info_gfn

    def _begin(self) -> None:
        for vcpu, state in zip(self._vcpus, self._resume.state.vcpus, strict=True):
            load_vcpu(vcpu, state, self._resume)
            assert isinstance(state.kind, PvhVcpuState)
            _of(vcpu).restore(state.kind)
        self._word_size_changed()
        self._tell_shared_info()
        self._set_callback(self.hvm_params.values.get(HVM_PARAM.CALLBACK_IRQ, 0))
        for vcpu in self._vcpus:
            self.timekeeper.place(vcpu)
            if self.kvm_xen:
                self._look_at_events(_of(vcpu))

    def _look_at_events(self, vcpu: PvhVcpu) -> None:
        """Have a vCPU look at every event: KVM may keep to itself which word has one that came while the vCPU stood, until it runs.

        Ref: Linux arch/x86/kvm/xen.c, evtchn_pending_sel of struct kvm_vcpu_xen
        """
        if vcpu_info_gpa(vcpu) is None:
            return
        info = self.shared_info.vcpu_info[vcpu.vcpu_id]
        info.set_all_selectors()
        info.set_upcall_pending()
        if vcpu.is_up:
            vcpu.upcall()

    def start(self) -> None:
        """Let the vCPUs go on, at the system time at which they stood still."""
        self._resume.start(self)
        super().start()
