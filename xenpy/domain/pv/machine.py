"""What instruction emulation sees of a PV vCPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.debugcons import DEBUG_PORT
from xenpy.domain.cpuid import XEN_BASE
from xenpy.domain.pv.bounce import VMASST_architectural_iopl
from xenpy.domain.pv.state import CR0_TS
from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.emulate import GuestFault, read_msr, write_msr
from xenpy.pv.emulate.machine import Vector

if TYPE_CHECKING:
    from xenpy.domain.pv.vcpu import PvVcpu
    from xenpy.pv.emulate import Registers

_MSR_TSC: Final = 0x10
_GP: Final = Vector.GP
_HYPERCALL_MSR: Final = XEN_BASE
_CR4_SHOWN: Final = 0x660
"""PAE, MCE, OSFXSR, OSXMMEXCPT."""


class GuestMachine:
    """A PV vCPU out of the guest, whose instruction at RIP has faulted."""

    def __init__(self, vcpu: PvVcpu) -> None:
        self._vcpu = vcpu
        self.regs: Registers = vcpu.kvm.regs

    # -- what it is doing -----------------------------------------------------------------------------------------------

    @property
    def in_kernel(self) -> bool:
        """Tell whether the guest kernel runs."""
        return self._vcpu.in_kernel

    @property
    def long_mode(self) -> bool:
        """Tell whether CS is a 64-bit segment."""
        return self._vcpu.is_code64(self._vcpu.cs)

    @property
    def fs_base(self) -> int:
        """Return the base of FS."""
        return self._vcpu.fs_base

    @fs_base.setter
    def fs_base(self, gva: int) -> None:
        self._vcpu.fs_base = gva

    @property
    def gs_base(self) -> int:
        """Return the base of GS."""
        return self._vcpu.gs_base

    @gs_base.setter
    def gs_base(self, gva: int) -> None:
        self._vcpu.gs_base = gva

    @property
    def kernel_gs_base(self) -> int:
        """Return the GS base that swapgs would bring."""
        return self._vcpu.other_gs

    @kernel_gs_base.setter
    def kernel_gs_base(self, gva: int) -> None:
        self._vcpu.other_gs = gva

    @property
    def tsc_aux(self) -> int:
        """Return MSR_TSC_AUX."""
        return self._vcpu.tsc_aux

    @tsc_aux.setter
    def tsc_aux(self, value: int) -> None:
        self._vcpu.tsc_aux = value

    @property
    def vcpu_id(self) -> int:
        """Return the vCPU's number."""
        return self._vcpu.vcpu_id

    @property
    def is_intel(self) -> bool:
        """Tell whether the guest sees an Intel processor."""
        return self._vcpu.domain.cpuid_table.is_intel

    @property
    def has_gp_handler(self) -> bool:
        """Tell whether the guest has a handler of #GP."""
        return self._vcpu.traps[Vector.GP] is not None

    @property
    def iopl(self) -> int:
        """Return the virtual IOPL."""
        return self._vcpu.iopl

    @property
    def architectural_iopl(self) -> bool:
        """Tell whether the guest turned on VMASST_TYPE_architectural_iopl."""
        return bool(self._vcpu.domain.vm_assist & VMASST_architectural_iopl)

    def bitmap_permits(self, port: int, size: int) -> bool:
        """Tell whether the guest's bitmap permits some ports; of what cannot be read, nothing is permitted."""
        gva, nr_ports = self._vcpu.io_bitmap
        if port + size > nr_ports:
            return False
        bits = 0
        for index, number in enumerate(range(port >> 3, (port + size - 1 >> 3) + 1)):
            try:
                byte = self._vcpu.domain.memory.read(self._vcpu.translate(gva + number), 1)
            except XenError:
                return False
            bits |= byte[0] << 8 * index
        return not bits >> (port & 7) & (1 << size) - 1

    # -- memory -------------------------------------------------------------------------------------------------------

    def read_code(self, gva: int, size: int) -> bytes:
        """Return up to `size` bytes of code, fewer in front of a page that cannot be read."""
        first = min(size, PAGE_SIZE - gva % PAGE_SIZE)
        try:
            code = self.read(gva, first)
        except XenError:
            return b""
        if first < size:
            try:
                code += self.read(gva + first, size - first)
            except XenError:
                return code
        return code

    def read(self, gva: int, size: int) -> bytes:
        """Return memory within a page. Raises XenError(EFAULT)."""
        return self._vcpu.domain.memory.read(self._vcpu.translate_any(gva), size)

    def write(self, gva: int, data: bytes) -> None:
        """Write memory within a page. Raises XenError(EFAULT)."""
        self._vcpu.domain.memory.write(self._vcpu.translate_any(gva, write=True), data)

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_cr(self, index: int) -> int:
        """Return a control register in the guest's view."""
        vcpu = self._vcpu
        if index == 0:
            return int(vcpu.kvm.sregs.cr0)
        if index == 2:
            return vcpu.domain.shared_info.vcpu_info[vcpu.vcpu_id].cr2
        if index == 3:
            return vcpu.kernel_l4 << PAGE_SHIFT
        if index == 4:
            return int(vcpu.kvm.sregs.cr4) & ~(1 << 7)
        raise GuestFault(_GP)

    def write_cr(self, index: int, value: int) -> None:
        """Set a control register: TS of CR0, CR2, CR3; of CR4 nothing changes."""
        vcpu = self._vcpu
        if index == 0:
            if (value ^ vcpu.kvm.sregs.cr0) & ~CR0_TS:
                vcpu.domain.log("cr0", "it writes CR0 bits that are not its own; only TS changes")
            vcpu.set_ts(bool(value & CR0_TS))
        elif index == 2:
            vcpu.domain.shared_info.vcpu_info[vcpu.vcpu_id].cr2 = value
        elif index == 3:
            try:
                vcpu.new_base(value >> PAGE_SHIFT)
            except XenError:
                raise GuestFault(_GP) from None
        elif index != 4:
            raise GuestFault(_GP)

    def read_dr(self, index: int) -> int:
        """Return a debug register."""
        return self._vcpu.get_debugreg(index)

    def write_dr(self, index: int, value: int) -> None:
        """Set a debug register."""
        try:
            self._vcpu.set_debugreg(index, value)
        except XenError:
            raise GuestFault(_GP) from None

    def rdmsr(self, index: int) -> int:
        """Return an MSR."""
        return read_msr(self, index)

    def wrmsr(self, index: int, value: int) -> None:
        """Set an MSR."""
        write_msr(self, index, value)

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """Return eax, ebx, ecx and edx of a CPUID leaf."""
        answer = self._vcpu.domain.cpuid_table.ask(leaf, subleaf)
        self._vcpu.note_cpuid(leaf, subleaf, answer)
        return answer

    def xsetbv(self, index: int, value: int) -> None:
        """Set XCR0 to what the guest may have."""
        allowed = self._vcpu.domain.xcr0
        if index or not value & 1 or value & ~allowed:
            raise GuestFault(_GP)
        self._vcpu.kvm.set_xcr0(value)

    def rdtsc(self) -> int:
        """Return the guest's time-stamp counter."""
        return self._vcpu.kvm.get_msrs([_MSR_TSC])[_MSR_TSC]

    def port_in(self, port: int, size: int) -> int:
        """Return what ports read as."""
        return self._vcpu.domain.ports.read(port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """Write ports."""
        if port == DEBUG_PORT and size == 1:
            self._vcpu.domain.console_write(bytes([value & 0xFF]))
        else:
            self._vcpu.domain.ports.write(port, size, value)
