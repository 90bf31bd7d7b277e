"""One KVM virtual machine: memory slots, interrupt controller, MSR filter, clock."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from xenpy import libc
from xenpy.abi import _kvm_ioctl as request
from xenpy.abi._kvm import ffi
from xenpy.kvm.constants import KVM_MEM_READONLY, KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE, Cap
from xenpy.kvm.system import checked_ioctl, pointer
from xenpy.memory import PAGE_SIZE, Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.kvm.system import Kvm

_TSS_GPA: Final = 0xFFFBD000
"""Three pages that Intel hosts without unrestricted guest need; the customary place, out of every guest's way."""
_IDENTITY_GPA: Final = 0xFFFBC000
_MSI_BASE: Final = 0xFEE00000


class Vm:
    """A VM of /dev/kvm. Raises OSError where the kernel refuses."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.fd = kvm.create_vm()
        self._slots: dict[int, int] = {}
        self._free_slots: list[int] = []
        self._protected: dict[int, list[tuple[int, int]]] = {}
        """The gpa of a region with read-only pages -> the slots it is made of, each (gpa, size)."""
        self._msi = ffi.new("struct kvm_msi *")
        self._msi_pointer = pointer(self._msi)
        self._setup_intel_areas()
        self._take_host_tsc_frequency()

    def _setup_intel_areas(self) -> None:
        identity = ffi.new("uint64_t *", _IDENTITY_GPA)
        libc.ioctl(self.fd, request.KVM_SET_IDENTITY_MAP_ADDR, pointer(identity))
        libc.ioctl(self.fd, request.KVM_SET_TSS_ADDR, _TSS_GPA)

    def _take_host_tsc_frequency(self) -> None:
        """Have vCPUs begin with the frequency that the host's TSC is now known to have.

        KVM remembers what the kernel believed when the module was loaded, which may be before the kernel has measured it well.
        Where KVM cannot scale the TSC, a vCPU that begins with a frequency further off than tsc_tolerance_ppm is left with a ratio
        of 0: a TSC that stands still.

        Ref: Documentation/virt/kvm/api.rst, KVM_SET_TSC_KHZ; 0 is the host's; older kernels know it for vCPUs only, and refuse
        """
        libc.ioctl(self.fd, request.KVM_SET_TSC_KHZ, 0)

    def enable(self, cap: Cap, *args: int) -> None:
        """Turn a capability on."""
        argument = ffi.new("struct kvm_enable_cap *")
        argument.cap = cap
        for index, value in enumerate(args):
            argument.args[index] = value
        checked_ioctl(self.fd, request.KVM_ENABLE_CAP, pointer(argument), f"enable {cap.name}")

    def split_irqchip(self) -> None:
        """Have the kernel emulate LAPICs and nothing else: no PIC, no IOAPIC, no PIT."""
        self.enable(Cap.SPLIT_IRQCHIP, 0)

    # -- memory -------------------------------------------------------------------------------------------------------

    def set_region(self, region: Region) -> None:
        """Give the VM a memory slot for a region, or take away the slot at its gpa when its size is 0."""
        slot = self._slots.get(region.gpa)
        if slot is None:
            if not region.size:
                return
            slot = self._free_slots.pop() if self._free_slots else len(self._slots)
            self._slots[region.gpa] = slot
        argument = ffi.new("struct kvm_userspace_memory_region *")
        argument.slot = slot
        argument.flags = KVM_MEM_READONLY if region.readonly else 0
        argument.guest_phys_addr = region.gpa
        argument.memory_size = region.size
        argument.userspace_addr = region.hva
        checked_ioctl(
            self.fd, request.KVM_SET_USER_MEMORY_REGION, pointer(argument), f"memory slot {slot} at gpa {region.gpa:#x}"
        )
        if not region.size:
            del self._slots[region.gpa]
            self._free_slots.append(slot)

    def protect(self, region: Region, gpas: Sequence[int]) -> None:
        """Have stores to pages of a region, given ascending, leave the guest as Exit.MMIO, and to its others not.

        Not while a vCPU is in the guest: for a moment there is no such memory.
        """
        before = self._protected.pop(region.gpa, None)
        if before is None and not gpas:
            return
        for gpa, _ in before or [(region.gpa, region.size)]:
            self.set_region(replace(region, gpa=gpa, size=0))
        slots, start, end = [], region.gpa, region.gpa + region.size
        for gpa in (*gpas, end):
            slots += [(start, gpa - start)] if start < gpa else []
            slots += [(gpa, PAGE_SIZE)] if gpa < end else []
            start = gpa + PAGE_SIZE
        for gpa, size in slots:
            hva, readonly = region.hva + gpa - region.gpa, region.readonly or gpa in gpas
            self.set_region(Region(gpa, size, hva, readonly))
        if gpas:
            self._protected[region.gpa] = slots

    # -- interrupts ---------------------------------------------------------------------------------------------------

    def signal_msi(self, apic_id: int, vector: int) -> bool:
        """Send a fixed, edge-triggered interrupt to the LAPIC with `apic_id` (< 255); tell whether it was accepted.

        May be called from any thread while the vCPU runs.
        """
        self._msi.address_lo = _MSI_BASE | apic_id << 12
        self._msi.data = vector
        return libc.ioctl(self.fd, request.KVM_SIGNAL_MSI, self._msi_pointer) > 0

    # -- MSRs ---------------------------------------------------------------------------------------------------------

    def trap_msrs(self, ranges: Sequence[tuple[int, int]], reasons: int) -> None:
        """Send accesses to the given MSR ranges (first, count) to user space, and those that `reasons` selects.

        `reasons` is a mask of MSR_EXIT_REASON_*.
        """
        self.enable(Cap.X86_USER_SPACE_MSR, reasons)
        if not ranges:
            return
        filter_ = ffi.new("struct kvm_msr_filter *")
        keep = []
        for slot, (first, count) in zip(filter_.ranges, ranges, strict=False):
            bitmap = ffi.new("uint8_t[]", (count + 7) // 8)  # all zero: denied, so it exits
            keep.append(bitmap)
            slot.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE
            slot.base = first
            slot.nmsrs = count
            slot.bitmap = pointer(bitmap)
        checked_ioctl(self.fd, request.KVM_X86_SET_MSR_FILTER, pointer(filter_), "MSR filter")

    # -- time ---------------------------------------------------------------------------------------------------------

    def get_clock(self) -> int:
        """Return the VM's kvmclock in nanoseconds."""
        data = ffi.new("struct kvm_clock_data *")
        checked_ioctl(self.fd, request.KVM_GET_CLOCK, pointer(data), "read the clock")
        return int(data.clock)

    def set_clock(self, nanoseconds: int) -> None:
        """Set the VM's kvmclock."""
        data = ffi.new("struct kvm_clock_data *")
        data.clock = nanoseconds
        checked_ioctl(self.fd, request.KVM_SET_CLOCK, pointer(data), "set the clock")

    # -- Xen support in the kernel --------------------------------------------------------------------------------------

    def xen_hvm_config(self, flags: int, msr: int) -> None:
        """Turn on KVM's Xen support: hypercalls exit as Exit.XEN, and writes to `msr` fill in a hypercall page."""
        config = ffi.new("struct kvm_xen_hvm_config *")
        config.flags = flags
        config.msr = msr
        checked_ioctl(self.fd, request.KVM_XEN_HVM_CONFIG, pointer(config), "Xen HVM configuration")

    def xen_set_attr(self, type_: int, **fields: int) -> None:
        """Set a KVM_XEN_ATTR_*: one of long_mode=, vector=, gfn=, xen_version=."""
        attr = ffi.new("struct kvm_xen_hvm_attr *")
        attr.type = type_
        for name, value in fields.items():
            if name == "gfn":
                attr.u.shared_info.gfn = value
            else:
                setattr(attr.u, name, value)
        checked_ioctl(self.fd, request.KVM_XEN_HVM_SET_ATTR, pointer(attr), f"Xen attribute {type_}")

    def create_vcpu(self, vcpu_id: int) -> int:
        """Create a vCPU, whose LAPIC has the same id, and return its file descriptor."""
        fd = libc.ioctl(self.fd, request.KVM_CREATE_VCPU, vcpu_id)
        if fd < 0:
            hint = ": this host allows no more vCPUs" if -fd == errno.EINVAL else ""
            raise OSError(-fd, f"KVM: create vCPU {vcpu_id}: {os.strerror(-fd)}{hint}")
        return fd

    def close(self) -> None:
        """Close the VM; the kernel frees it once its vCPUs are closed too."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
