"""Distributions boot from disks to a login and are used: network, a second disk, a reboot. See distribution.py, which does it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xenpy.distributions import provide_distribution
from xenpy.errors import XenpyError

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from xenpy.emulated import EmulatedHost

pytestmark = pytest.mark.boot

PROGRAM = Path(__file__).with_name("distribution.py")
NETWORK = ["address 10.0.2.15/24", "fetched True", "reached True"]
BOOTED = ["login", "root /dev/xvda ext4"]
END = ["ended POWEROFF", "left alone True"]
TIMEOUT_S = 3600
slow = pytest.mark.skipif(not os.environ.get("XENPY_TEST_SLOW"), reason="takes many minutes: XENPY_TEST_SLOW=1 runs it")


def command(name: str, guest_type: str, mib: int) -> list[str]:
    """Return the command that uses a distribution, which is fetched if need be; skips the test where it cannot be had."""
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed")
    try:
        provide_distribution(name)
    except XenpyError as error:
        pytest.skip(f"no distribution {name}: {error}")
    return [sys.executable, str(PROGRAM), name, guest_type, *([str(mib)] if mib else [])]


def check(done: CompletedProcess[bytes], mib: int) -> None:
    """Check what the program said, in order."""
    said = [re.sub(r" \[[0-9.]+ s\]$", "", line) for line in done.stdout.decode().splitlines()]
    twice = [*BOOTED, f"written {mib} MiB", "ended REBOOT", *BOOTED, "read True"] if mib else BOOTED
    assert said == [*twice, *NETWORK, *END], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.kvm
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(
    ("name", "mib"),
    [
        ("debian", 32),
        ("alpine", 0),
        pytest.param("debian", 1024, marks=slow),
        pytest.param("alpine", 1024, marks=slow),
    ],
)
def test_as_pv(name: str, mib: int) -> None:
    done = subprocess.run(command(name, "pv", mib), capture_output=True, check=False, timeout=TIMEOUT_S)
    check(done, mib)


@slow
@pytest.mark.emulated
@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize(("name", "mib"), [("debian", 32), ("alpine", 32)])
def test_as_pvh_in_the_emulated_host(emulated_host: EmulatedHost, name: str, mib: int) -> None:
    check(emulated_host.run(command(name, "pvh", mib), timeout=TIMEOUT_S), mib)
