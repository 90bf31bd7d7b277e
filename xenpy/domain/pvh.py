"""A PVH domain.

Ref: xen-doc misc/pvh.pandoc
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy.builder.patch import apply, find_hypercall_sites
from xenpy.domain import cpuid
from xenpy.domain.domain import Domain
from xenpy.domain.ending import SHUTDOWN_ENDS, End
from xenpy.domain.hvm_context import make_first, pvh_entry
from xenpy.domain.pvh_vcpu import PvhVcpu
from xenpy.domain.upcalls import callback_vector
from xenpy.domain.vcpu import HYPERCALL_PORT
from xenpy.errors import Errno, HostError, XenError
from xenpy.kvm.constants import KVM_XEN_INVALID_GFN, MSR_EXIT_REASON_FILTER, Cap, XenAttr, XenConfig, XenVcpuAttr
from xenpy.memory import PAGE_SIZE
from xenpy.pv.hvm_params import HVM_PARAM

if TYPE_CHECKING:
    from collections.abc import Sequence

_HYPERCALLS_PER_PAGE: Final = 128
_STUB_SIZE: Final = 32
_IRET: Final = 23
_XEN_MSR_COUNT: Final = 16


class PvhDomain(Domain):
    """A PVH domain."""

    is_pv = False
    kvm_delivers = False
    """Whether KVM is to serve events and timers by itself."""
    kvm_has_shared_info = False
    """Whether KVM knows where shared_info is."""
    _kvm_is_wide = False

    def _build(self) -> None:
        vcpus = self.config.maxvcpus
        self.callback_vector = 0
        self._make_pvh_vm()
        self._make_state()
        self._fill_memory()
        host_leaves = self.host.kvm.supported_cpuid()
        for vcpu_id in range(vcpus):
            vcpu = PvhVcpu(self, vcpu_id)
            khz = vcpu.kvm.tsc_khz()
            vcpu.kvm.set_cpuid(cpuid.policy(host_leaves, self.version, self.domid, vcpu_id, vcpus, khz))
            # Emulated SVM hosts do not tell KVM of a guest's XSETBV, and CPUID would go on reporting the size for XCR0 = 1.
            if features := cpuid.xcr0_features(host_leaves):
                vcpu.kvm.set_xcr0(features)
            if self.kvm_delivers:  # the number by which the guest names it, which KVM does not guess
                vcpu.kvm.xen_set_attr(XenVcpuAttr.VCPU_ID, vcpu_id=vcpu_id)
            self._vcpus.append(vcpu)
        self._begin()
        if self.kvm_delivers:
            from xenpy.domain.kernel_events import KernelEvents

            self.kernel_events = KernelEvents(self, self.vm)

    def _fill_memory(self) -> None:
        """Have in memory what the guest starts with."""
        self._load_kernel()
        self._set_max_pages()
        self.write_wallclock()

    def _begin(self) -> None:
        """Have the vCPUs stand where the guest starts."""
        make_first(self._vcpus[0].kvm, pvh_entry(self.entry, self.start_info))

    def _make_pvh_vm(self) -> None:
        self._make_vm(Cap.SPLIT_IRQCHIP)
        offered = self.host.kvm.check(Cap.XEN_HVM)
        wanted = XenConfig.INTERCEPT_HCALL
        self.kvm_xen = bool(offered & wanted) and self.config.kvm_xen is not False
        if self.config.kvm_xen and not self.kvm_xen:
            raise HostError("xenpy_kvm_xen = 1, but this kernel's KVM has no Xen support (CONFIG_KVM_XEN)")
        needed = XenConfig.EVTCHN_SEND | XenConfig.EVTCHN_2LEVEL | XenConfig.SHARED_INFO
        can_deliver = self.kvm_xen and offered & needed == needed
        if self.config.kvm_events and not can_deliver:
            raise HostError(
                "xenpy_kvm_events = 1, but KVM delivers no events of Xen's here: that takes its Xen support, of Linux 5.18"
            )
        self.kvm_delivers = can_deliver and self.config.kvm_events is not False
        self.vm.split_irqchip()
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
            self.image = [
                (segment.vaddr, segment.paddr + start.load_offset, segment.memsz) for segment in kernel.elf.loadable
            ]
            """Where the kernel has been loaded: (the address it was linked for, gpa, size)."""
        self.entry, self.start_info, self.e820 = start.entry_eip, start.start_info_gpa, start.memory_map
        self.store_gfn, self.console_gfn = XENSTORE_GFN, CONSOLE_GFN
        values = self.hvm_params.values
        values[HVM_PARAM.STORE_PFN], values[HVM_PARAM.CONSOLE_PFN] = self.store_gfn, self.console_gfn
        values[HVM_PARAM.TRIPLE_FAULT_REASON] = SHUTDOWN_ENDS.index(End.REBOOT)

    def set_ports(self, store: int, console: int) -> None:
        """Tell the guest the event channels of its xenstore and console rings."""
        self.hvm_params.values[HVM_PARAM.STORE_EVTCHN] = store
        self.hvm_params.values[HVM_PARAM.CONSOLE_EVTCHN] = console

    def unsupported_hint(self) -> str:
        """Return what to add to the report of an instruction KVM cannot emulate."""
        return ' (this host interprets ring 0: run it as type="pv", or with --host emulated)'

    def shared_info_placed(self, gfn: int) -> None:
        """Take note that the guest has placed shared_info at a gfn."""
        self.shared_info_gfn = gfn
        self._tell_shared_info()
        self._word_size_changed()
        for vcpu in self._vcpus:
            self.timekeeper.place(vcpu)
        if self.kernel_events is not None:
            self.kernel_events.refresh()

    def _tell_shared_info(self) -> None:
        """Tell KVM, if it is to deliver events, where the guest has shared_info."""
        if not self.kvm_delivers or self.shared_info_gfn is None:
            return
        try:
            self.vm.xen_set_attr(XenAttr.SHARED_INFO, gfn=self.shared_info_gfn)
            self.kvm_has_shared_info = True
        except OSError as error:  # the guest has taken the page out of its map
            self.kvm_has_shared_info = False
            self.log(
                "shared-info", f"shared_info at gfn {self.shared_info_gfn:#x}: {error}; events are delivered by Python"
            )

    def _word_size_changed(self) -> None:
        """Write what lies elsewhere in the other layout, and tell KVM."""
        wide = self.shared_info.layout.word_bits == 64
        if self.kvm_xen and wide != self._kvm_is_wide:
            self._kvm_is_wide = wide
            if self.kvm_delivers:  # KVM writes the wall clock at once, where the page may be no more
                self.vm.xen_set_attr(XenAttr.SHARED_INFO, gfn=KVM_XEN_INVALID_GFN)
            self.vm.xen_set_attr(XenAttr.LONG_MODE, long_mode=wide)
            self._tell_shared_info()
        self.write_wallclock()  # last: KVM's own knows of no wall clock but the host's

    def vcpu_info_placed(self, vcpu_id: int) -> None:
        """Take note that the guest has placed a vCPU's vcpu_info."""
        self.timekeeper.place(self._vcpus[vcpu_id])
        if self.kernel_events is not None:
            self._vcpus[vcpu_id].request(partial(self._look_at_all, vcpu_id))
        self._vcpus[vcpu_id].upcall()  # it is marked as pending already, so that nobody else would

    def _look_at_all(self, vcpu_id: int) -> None:
        """Have a vCPU look at every event: until KVM knew of its vcpu_info it marked the upcall in the one before."""
        info = self.shared_info.vcpu_info[vcpu_id]
        with self.host.lock:
            info.set_all_selectors()
            info.set_upcall_pending()
            self._vcpus[vcpu_id].upcall()

    def callback_changed(self) -> None:
        """Take note that the guest has set HVM_PARAM_CALLBACK_IRQ."""
        self._word_size_changed()
        self._set_callback(self.hvm_params.values[HVM_PARAM.CALLBACK_IRQ])
        for vcpu in self._vcpus:
            if vcpu.event_pending():
                vcpu.upcall()

    def _set_callback(self, value: int) -> None:
        """Inject the vector that a value of HVM_PARAM_CALLBACK_IRQ names from now on."""
        self.callback_vector = callback_vector(value)
        self.upcall_vectors_changed()

    def upcall_vectors_changed(self) -> None:
        """Have KVM inject the callback vector, unless every vCPU has a vector of its own: KVM would inject both."""
        if self.kvm_xen:
            own = all(vcpu.upcalls.vector for vcpu in self._vcpus if isinstance(vcpu, PvhVcpu))
            self.vm.xen_set_attr(XenAttr.UPCALL_VECTOR, vector=0 if own else self.callback_vector)

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
