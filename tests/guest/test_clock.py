"""Time in the hands of a test, as small kernels see it: by the time that KVM writes, and by ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import build
import pytest
from harness import MODES

import xenpy
from xenpy.threads import thread_place

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = 90
PV = build.Kind(build.PVH.kernels, build.PV.lib)
WAYS: dict[str, dict[str, Any]] = {"pv": {"type": "pv"}}
for _mode in MODES:
    if _mode.bits == 64:
        _kvm_xen = {} if _mode.kvm_xen is None else {"xenpy_kvm_xen": _mode.kvm_xen}
        WAYS[f"pvh{str(_mode).removeprefix('64')}"] = {"type": "pvh", **_kvm_xen}


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest, builder: build.Builder) -> Callable[[str], xenpy.Guest]:
    """Return a function that makes a guest, which does not run yet, for what the kernel's command line says."""
    elf = builder.build("clock", 64, *((PV, ("-DPV",)) if request.param == "pv" else (build.PVH,)))

    def make_guest(cmdline: str, **settings: Any) -> xenpy.Guest:
        every = {**WAYS[request.param], "memory": 32, "cmdline": cmdline, **settings}
        return xenpy.Guest.from_kernel(elf, timeout=TIMEOUT, paused=True, **every)

    return make_guest


def check(guest: xenpy.Guest) -> None:
    """See that the guest ends well, and its test with it."""
    ending = guest.wait()
    assert "clock: SUCCESS" in guest.emergency.text, guest.emergency.text
    assert ending.kind is xenpy.End.POWEROFF


def test_stopped(make: Callable[[str], xenpy.Guest]) -> None:
    with make("stopped") as guest:
        guest.clock.freeze()
        before = guest.clock.now()
        guest.unpause()
        check(guest)
        assert (guest.clock.now(), guest.clock.rate) == (before, 0)


@pytest.mark.parametrize("factor", [3, 1000, 100_000])
def test_fast(make: Callable[[str], xenpy.Guest], factor: int) -> None:
    with make(f"fast={factor}") as guest:
        guest.clock.scale(factor)
        guest.unpause()
        check(guest)


def test_the_hosts_again(make: Callable[[str], xenpy.Guest]) -> None:
    with make("fast=1") as guest:
        guest.clock.scale(50)
        guest.clock.resume()
        guest.unpause()
        check(guest)


def test_time_passes(make: Callable[[str], xenpy.Guest]) -> None:
    with make("sleep") as guest:
        guest.unpause()
        guest.emergency.expect("ready")
        start = guest.clock.now()
        guest.clock.advance(180)
        assert guest.clock.now() - start >= 180
        check(guest)


def test_who_waits_for_xen_does_not_wait_for_time(make: Callable[[str], xenpy.Guest]) -> None:
    with make("leap") as guest:
        guest.unpause()
        guest.emergency.expect("ready")
        domain = guest.domain
        vcpu = domain.vcpus[0]
        with domain.host.lock:
            until = time.monotonic() + TIMEOUT
            while thread_place(vcpu.thread)[0] and time.monotonic() < until:
                vcpu.kick()  # which it attends to under the lock
                time.sleep(0.001)
            assert not thread_place(vcpu.thread)[0]
            assert not vcpu.waits
        guest.clock.jump(90)
        check(guest)


def test_waiting_is_left_out(make: Callable[[str], xenpy.Guest]) -> None:
    with make("sleep") as guest:
        guest.unpause()
        with guest.clock.skipping():
            check(guest)
        assert guest.clock.now() >= 180


def test_a_leap(make: Callable[[str], xenpy.Guest]) -> None:
    with make("leap") as guest:
        guest.unpause()
        guest.emergency.expect("ready")
        wall = guest.clock.wallclock()
        guest.clock.jump(90)
        assert guest.clock.wallclock() - wall >= 90
        check(guest)
