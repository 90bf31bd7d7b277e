"""A vCPU's TSC on a host whose kernel knew its own but roughly when the KVM module was loaded."""

from __future__ import annotations

import time

import pytest

from xenpy import libc
from xenpy.abi import _kvm_ioctl as request
from xenpy.kvm.saved import MSR_TSC
from xenpy.kvm.system import Kvm
from xenpy.kvm.vcpu import KvmVcpu
from xenpy.kvm.vm import Vm

pytestmark = pytest.mark.kvm


def test_goes_as_the_hosts_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """VMs are made as KVM makes them there: with a frequency that is half a percent off, which would have the TSC stand still."""
    real = libc.ioctl
    plain = Vm(Kvm())
    known = real(plain.fd, request.KVM_GET_TSC_KHZ, 0)
    plain.close()
    if known <= 0:
        pytest.skip("KVM does not tell a VM's TSC frequency here")

    def ioctl(fd: int, number: int, arg: int) -> int:
        result = real(fd, number, arg)
        if number == request.KVM_CREATE_VM:
            assert real(result, request.KVM_SET_TSC_KHZ, known - known // 200) == 0
        return result

    monkeypatch.setattr(libc, "ioctl", ioctl)
    vm = Vm(Kvm())
    vm.split_irqchip()
    vcpu = KvmVcpu(vm, 0)
    before, started = vcpu.get_msrs([MSR_TSC])[MSR_TSC], time.monotonic()
    time.sleep(0.1)
    ticks = vcpu.get_msrs([MSR_TSC])[MSR_TSC] - before
    took = time.monotonic() - started
    assert abs(vcpu.tsc_khz() - known) < known // 1000
    assert ticks > known * 1000 * took / 2
    vcpu.close()
    vm.close()
