"""What this host can run, found out by trying."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.errors import HostError
from xenpy.kvm.constants import Cap, Exit, Sync
from xenpy.kvm.system import Kvm
from xenpy.kvm.vcpu import KvmVcpu
from xenpy.kvm.vm import Vm
from xenpy.memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOOP_COUNT: Final = 2000
_SLOW_NS_PER_INSTRUCTION: Final = 50
"""Real processors take less than a nanosecond, interpreters more than half a microsecond."""
_REQUIRED: Final = (Cap.SPLIT_IRQCHIP, Cap.SYNC_REGS, Cap.IMMEDIATE_EXIT, Cap.X86_USER_SPACE_MSR, Cap.X86_MSR_FILTER)


class Status(StrEnum):
    """How a finding is to be read."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"
    FATAL = "fatal"


@dataclass(frozen=True)
class Finding:
    """One thing found out: what, how it stands, in words, and what to do about it."""

    name: str
    status: Status
    text: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the finding as plain data."""
        return {key: str(value) for key, value in asdict(self).items()}


def ring0_ns_per_instruction(kvm: Kvm) -> float:
    """Measure how long an instruction takes in a guest's ring 0, in ns. Raises OSError.

    A loop of DEC and JNZ in real mode is timed against one a tenth as long, so that the cost of entering cancels out.
    """
    # mov cx, count; 1: dec cx; jnz 1b; out 0x10, al
    times = []
    for count in (_LOOP_COUNT // 10, _LOOP_COUNT):
        memory, vm = GuestMemory(), Vm(kvm)
        try:
            memory.on_region = vm.set_region
            memory.add_ram(0, 1 << 16)
            memory.write(0x1000, b"\xb9" + count.to_bytes(2, "little") + b"\x49\x75\xfd\xe6\x10")
            vcpu = KvmVcpu(vm, 0)
            try:
                vcpu.sregs.cs.base = vcpu.sregs.cs.selector = 0
                vcpu.regs.rip, vcpu.regs.rflags = 0x1000, 2
                vcpu.dirty(Sync.REGS | Sync.SREGS)
                start = time.perf_counter_ns()
                reason = vcpu.enter()
                times.append(time.perf_counter_ns() - start)
                if reason != Exit.IO:
                    raise OSError(0, f"the test loop ended with exit {reason}")
            finally:
                vcpu.close()
        finally:
            vm.close()
            memory.close()
    return max(0.0, (times[1] - times[0]) / (2 * (_LOOP_COUNT - _LOOP_COUNT // 10)))


def _kvm_findings() -> Iterator[Finding]:
    try:
        kvm = Kvm()
    except HostError as error:
        text, _, remedy = str(error).rpartition(": ")
        yield Finding("kvm", Status.FATAL, text, remedy)
        return
    yield Finding("kvm", Status.OK, "/dev/kvm opens")
    missing = [cap.name for cap in _REQUIRED if not kvm.check(cap)]
    if missing:
        yield Finding("kvm-features", Status.FATAL, f"KVM lacks {', '.join(missing)}", "boot Linux 5.10 or later")
        return
    yield Finding("kvm-features", Status.OK, "KVM has everything that xenpy needs")
    xen = kvm.check(Cap.XEN_HVM)
    if xen:
        yield Finding("kvm-xen", Status.OK, f"KVM's Xen support is there ({xen:#x}) and will be used")
    else:
        yield Finding("kvm-xen", Status.NOTE, "KVM has no Xen support (CONFIG_KVM_XEN); xenpy does without it")
    try:
        cost = ring0_ns_per_instruction(kvm)
    except OSError as error:
        yield Finding(
            "ring0", Status.FATAL, f"a guest's ring 0 does not run: {error.strerror}", "see dmesg for KVM's reasons"
        )
        return
    finally:
        pv = _pv_finding(kvm)
        kvm.close()
    yield pv
    if cost > _SLOW_NS_PER_INSTRUCTION:
        yield Finding(
            "ring0",
            Status.NOTE,
            f"ring 0 is interpreted ({cost:.0f} ns an instruction): small PVH kernels run, PVH Linux does not",
            'run Linux as type="pv", or with --host emulated',
        )
    else:
        yield Finding("ring0", Status.OK, f"ring 0 runs on the processor ({cost:.2f} ns an instruction)")


def _pv_finding(kvm: Kvm) -> Finding:
    from xenpy.domain.pv.probe import probe

    try:
        traits = probe(kvm)
    except (HostError, OSError) as error:
        return Finding("pv", Status.NOTE, f"PV guests cannot run: {error}")
    how = "SYSCALL stays in ring 3, in-guest fast paths are used" if traits.ring3_entry else "SYSCALL enters ring 0"
    return Finding("pv", Status.OK, f"PV guests run, their kernels in ring 3 ({how})")


def _tool_findings() -> Iterator[Finding]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu:
        yield Finding("qemu", Status.OK, f"{qemu}: the emulated host (--host emulated) can run")
    else:
        yield Finding("qemu", Status.MISSING, "no qemu-system-x86_64, so no emulated host", "install qemu-system-x86")
    passt = shutil.which("passt")
    yield (
        Finding("passt", Status.OK, passt)
        if passt
        else Finding("passt", Status.MISSING, "no passt, for networking without privileges", "install passt")
    )
    tun = Path("/dev/net/tun")
    if not tun.exists():
        yield Finding("tun", Status.MISSING, "/dev/net/tun does not exist, so no tap interfaces", "modprobe tun")
    elif not os.access(tun, os.R_OK | os.W_OK):
        yield Finding("tun", Status.MISSING, "/dev/net/tun: permission denied", "run as root for tap interfaces")
    else:
        yield Finding("tun", Status.OK, "/dev/net/tun opens")


def examine() -> list[Finding]:
    """Return what was found out about this host."""
    return [*_kvm_findings(), *_tool_findings()]


def can_run(findings: list[Finding]) -> bool:
    """Tell whether any guest can run here, natively or in the emulated host."""
    native = not any(finding.status is Status.FATAL for finding in findings)
    return native or any(finding.name == "qemu" and finding.status is Status.OK for finding in findings)
