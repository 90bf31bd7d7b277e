"""Distribution kernels as PV guests, unmodified, on /dev/kvm of this machine; and one of them in the emulated host."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import images
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from xenpy.emulated import EmulatedHost
    from xenpy.initramfs import Ending

pytestmark = pytest.mark.boot
on_kvm = pytest.mark.kvm

REPORT = """
echo "release $(uname -r)"
echo "clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "processors $(nproc)"
echo "hypervisor $(cat /sys/hypervisor/type) $(cat /sys/hypervisor/guest_type)"
i=0; while [ $i -lt 10 ]; do /bin/true; i=$((i + 1)); done; echo "forked $i"
dmesg | grep -E 'BUG:|WARNING:|cut here|Oops|segfault|Call Trace|unexpected' | grep -vE 'RETBleed|hw-vuln' | sed 's/^/complaint /'
"""
"""What a kernel says of the processor's speculation is not about us."""
DEFAULT = "debian-6.12-cloud"
BOOT_TIMEOUT = 240
SLOW_TIMEOUT = 600


def arguments(
    directory: Path, kernel: str, settings: tuple[str, ...], command: str | None, ending: Ending, timeout: int
) -> list[str]:
    """Return the command that boots a kernel with a busybox initramfs; `settings` are overrides of its configuration."""
    config = directory / "guest.cfg"
    config.write_text(
        f'name = "{kernel}"\ntype = "pv"\nmemory = 256\n'
        f'kernel = "{images(kernel).kernel}"\nramdisk = "{make_initramfs(command=command, ending=ending)}"\n'
        'cmdline = "console=hvc0 quiet panic=1"\non_reboot = "destroy"\n'
    )
    return [sys.executable, "-m", "xenpy", "run", str(config), *settings, "--timeout", str(timeout)]


def boot(
    directory: Path,
    kernel: str = DEFAULT,
    *settings: str,
    command: str | None = REPORT,
    ending: Ending = "poweroff",
    stdin: bytes = b"",
) -> CompletedProcess[bytes]:
    """Run a kernel by `xenpy run` here and return how that went."""
    argv = arguments(directory, kernel, settings, command, ending, BOOT_TIMEOUT)
    return subprocess.run(argv, input=stdin, capture_output=True, check=False, timeout=BOOT_TIMEOUT + 30)


def lines(result: CompletedProcess[bytes]) -> list[str]:
    """Return what the console showed, line by line."""
    return [line.strip() for line in result.stdout.decode(errors="replace").splitlines()]


def check_report(result: CompletedProcess[bytes], kernel: str, vcpus: int) -> None:
    """Check what REPORT says of a boot."""
    console = lines(result)
    assert result.returncode == 0, (console, result.stderr)
    assert f"release {images(kernel).release}" in console
    assert "clocksource xen" in console
    assert f"processors {vcpus}" in console
    assert "hypervisor xen PV" in console
    assert "forked 10" in console
    assert not [line for line in console if line.startswith("complaint")]


@on_kvm
@pytest.mark.parametrize(
    ("kernel", "vcpus"),
    [
        ("debian-6.1-cloud", 1),
        ("debian-6.1-cloud", 2),
        ("debian-6.12-cloud", 1),
        ("debian-6.12-cloud", 4),
        ("alpine", 1),
    ],
)
def test_boots_to_user_space_and_powers_off(tmp_path: Path, kernel: str, vcpus: int) -> None:
    check_report(boot(tmp_path, kernel, f"vcpus={vcpus}"), kernel, vcpus)


@on_kvm
@pytest.mark.parametrize("memory", [128, 2048])
def test_memory(tmp_path: Path, memory: int) -> None:
    command = "echo \"memory $(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)\""
    result = boot(tmp_path, DEFAULT, f"memory={memory}", command=command)
    assert result.returncode == 0, (lines(result), result.stderr)
    (shown,) = [int(line.split()[1]) for line in lines(result) if line.startswith("memory ")]
    assert memory * 0.6 < shown <= memory


@on_kvm
@pytest.mark.skipif(
    not os.environ.get("XENPY_TEST_SLOW"),
    reason="six guests of up to 4 GiB, one after the other: XENPY_TEST_SLOW=1 runs them",
)
@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("memory", [3072, 4096])
def test_much_memory(tmp_path: Path, memory: int, vcpus: int) -> None:
    size = 256
    total = "echo \"memory $(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)\""
    fill = (
        f"mount -t tmpfs -o size={size}m none /tmp; dd if=/dev/zero of=/tmp/file bs=1M count={size}; md5sum /tmp/file"
    )
    settings = f"memory={memory}", f"vcpus={vcpus}"
    argv = arguments(tmp_path, DEFAULT, settings, f"{total}; {fill}; {REPORT}", "poweroff", BOOT_TIMEOUT)
    result = subprocess.run(argv, input=b"", capture_output=True, check=False, timeout=BOOT_TIMEOUT + 30)
    check_report(result, DEFAULT, vcpus)
    (shown,) = [int(line.split()[1]) for line in lines(result) if line.startswith("memory ")]
    assert memory * 0.9 < shown <= memory
    expected = hashlib.md5(usedforsecurity=False)
    for _ in range(size):
        expected.update(bytes(1 << 20))
    assert f"{expected.hexdigest()}  /tmp/file" in lines(result)


@on_kvm
def test_shell_on_the_console_takes_input(tmp_path: Path) -> None:
    result = boot(tmp_path, command=None, ending="shell", stdin=b"echo sum $((6 * 7))\npoweroff -f\n")
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert "sum 42" in lines(result)


@on_kvm
def test_reboot_is_not_followed_when_so_configured(tmp_path: Path) -> None:
    result = boot(tmp_path, command="echo going", ending="reboot")
    assert result.returncode == 9, (result.stdout, result.stderr)
    assert lines(result).count("going") == 1
    assert b"reboot" in result.stderr


@on_kvm
def test_panic_is_a_crash(tmp_path: Path) -> None:
    result = boot(tmp_path, command="echo going", ending="panic")
    assert result.returncode == 4, (result.stdout, result.stderr)
    assert b"crash" in result.stderr


@on_kvm
def test_timeout_ends_the_guest(tmp_path: Path) -> None:
    argv = arguments(tmp_path, DEFAULT, (), "while true; do :; done", "poweroff", 5)
    result = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert result.returncode == 5, result.stderr


@on_kvm
def test_balloon_goes_down_and_up(tmp_path: Path) -> None:
    script = Path(__file__).with_name("balloon.py")
    ramdisk = make_initramfs(command="echo ready; while true; do sleep 1; done", ending="poweroff")
    argv = [sys.executable, str(script), str(images(DEFAULT).kernel), str(ramdisk), "pv"]
    result = subprocess.run(argv, capture_output=True, check=False, timeout=BOOT_TIMEOUT + 90, cwd=tmp_path)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert lines(result)[-1] == "balloon: down and up"


@on_kvm
def test_memory_that_does_not_do_is_told(tmp_path: Path) -> None:
    result = boot(tmp_path, DEFAULT, "memory=32")
    assert result.returncode != 0
    assert b"Traceback" not in result.stderr
    assert b"memory=" in result.stderr


slow = pytest.mark.skipif(
    not os.environ.get("XENPY_TEST_SLOW"),
    reason="one PV boot in the emulated host is enough by default: XENPY_TEST_SLOW=1 runs the others",
)


@pytest.mark.emulated
@pytest.mark.timeout(SLOW_TIMEOUT + 60)
@pytest.mark.parametrize(
    ("kernel", "vcpus"),
    [
        ("debian-6.12-cloud", 1),
        pytest.param("debian-6.12-cloud", 2, marks=slow),
        pytest.param("debian-6.1-cloud", 1, marks=slow),
        pytest.param("alpine", 1, marks=slow),
    ],
)
def test_boots_in_the_emulated_host(emulated_host: EmulatedHost, tmp_path: Path, kernel: str, vcpus: int) -> None:
    """There SYSCALL enters ring 0."""
    argv = arguments(tmp_path, kernel, (f"vcpus={vcpus}",), REPORT, "poweroff", SLOW_TIMEOUT)
    check_report(emulated_host.run(argv, timeout=SLOW_TIMEOUT + 30), kernel, vcpus)
