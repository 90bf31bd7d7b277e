"""vCPUs that start while the first of them is asking for something already."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from harness import Mode, Runs

_SCRIPT = """
import sys, time, xenpy
from xenpy.domain.timekeeping import Timekeeper

place = Timekeeper._place

def slowly(self, vcpu):
    if vcpu.thread is None:
        time.sleep(0.2)
    place(self, vcpu)

Timekeeper._place = slowly
with xenpy.Guest.from_kernel(sys.argv[1], vcpus=4, memory=32, timeout=60, **eval(sys.argv[2])) as guest:
    guest.wait()
    print(guest.emergency.text)
"""
"""Has the first vCPU, which places shared_info, be still busy with those that have not started."""


@pytest.mark.parametrize("number", range(3))
def test_the_first_does_not_meet_the_others(runs: Runs, mode: Mode, number: int) -> None:
    del number
    settings = {} if mode.kvm_xen is None else {"xenpy_kvm_xen": int(mode.kvm_xen)}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, runs.elf("smp", mode), repr(settings)],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert "up: SUCCESS" in done.stdout, done.stderr[-2000:]
