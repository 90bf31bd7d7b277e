"""A guest's vCPUs and memory from outside: pauses, registers, what addresses mean."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from api_rig import TIMEOUT, kernel, spinning, talking

import xenpy
from xenpy.errors import Errno

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.guest]


@pytest.fixture
def talker() -> Iterator[xenpy.Guest]:
    with talking() as guest:
        yield guest


@pytest.fixture
def spinner() -> Iterator[xenpy.Guest]:
    with spinning() as guest:
        yield guest


def test_a_paused_guest_stands_still(spinner: xenpy.Guest) -> None:
    spinner.pause()
    spinner.pause()
    first = spinner.registers()
    time.sleep(0.05)
    assert spinner.registers() == first
    assert "rip=0x" in str(first)
    code = spinner.read_memory(16, gva=first.rip)
    assert code == spinner.read_memory(16, gpa=first.rip)  # the test kernels map memory as it is
    assert code in kernel("ending").read_bytes()
    spinner.unpause()
    assert "running" in repr(spinner)


def test_a_guest_answers_again_after_a_pause(talker: xenpy.Guest) -> None:
    for number in range(10):
        talker.pause()
        talker.console.sendline(f"line {number}")
        talker.unpause()
        talker.console.expect(rf"\[line {number}\]")


def test_all_vcpus_are_stopped() -> None:
    stops = 0
    guest = xenpy.Guest.from_kernel(kernel("smp"), vcpus=2, memory=32, timeout=TIMEOUT)
    with guest, suppress(xenpy.GuestEnded):
        while True:
            guest.pause()
            first = [guest.registers(vcpu) for vcpu in range(2)]
            assert [guest.registers(vcpu) for vcpu in range(2)] == first
            guest.unpause()
            stops += 1
    assert stops
    assert "SUCCESS" in guest.emergency.text
    assert "FAILURE" not in guest.emergency.text


def test_a_guest_made_paused_does_not_run() -> None:
    with xenpy.Guest.from_kernel(kernel("ending"), cmdline="poweroff", paused=True, timeout=TIMEOUT) as guest:
        with pytest.raises(xenpy.Timeout):
            guest.wait(timeout=0.2)
        assert not guest.emergency.text
        guest.unpause()
        assert guest.wait().kind is xenpy.End.POWEROFF


def test_memory(talker: xenpy.Guest) -> None:
    talker.write_memory(b"0123456789" * 1000, gpa=24 << 20)
    assert talker.read_memory(10, gpa=(24 << 20) + 9990) == b"0123456789"
    assert talker.read_memory(5000, gva=(24 << 20) + 3000) == (b"0123456789" * 1000)[3000:8000]
    talker.write_memory(b"x" * 5000, gva=24 << 20)
    assert talker.read_memory(5001, gpa=24 << 20) == b"x" * 5000 + b"0"
    for where in ({"gpa": 1 << 39}, {"gva": 1 << 46}, {"gpa": -1}):
        with pytest.raises(xenpy.XenError) as caught:
            talker.read_memory(16, **where)
        assert caught.value.errno is Errno.EFAULT
    for nowhere in ({}, {"gpa": 0, "gva": 0}):
        with pytest.raises(xenpy.ConfigError, match="either gpa= or gva="):
            talker.read_memory(16, **nowhere)
    with pytest.raises(xenpy.ConfigError, match="no vCPU 7, there are 1"):
        talker.registers(vcpu=7)


def test_registers_of_the_dead(talker: xenpy.Guest) -> None:
    talker.console.sendline("bye")
    talker.wait()
    assert talker.read_memory(1, gva=talker.registers().rip)
    talker.close()
    with pytest.raises(xenpy.GuestEnded, match="is closed"):
        talker.registers()
    with pytest.raises(xenpy.GuestEnded, match="cannot be paused"):
        talker.pause()
    talker.unpause()
