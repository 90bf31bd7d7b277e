"""Distribution kernels as PVH guests, unmodified, in the emulated host: with KVM's Xen support and without, on one vCPU and on four."""

from __future__ import annotations

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

pytestmark = [pytest.mark.boot, pytest.mark.emulated]

REPORT = """
echo "release $(uname -r)"
echo "clocksource $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "processors $(nproc)"
echo "hypervisor $(cat /sys/hypervisor/type) $(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor)"
dmesg | grep -o 'Using FIFO-based ABI'
dmesg | grep -E 'BUG:|cut here|Oops|segfault' | sed 's/^/complaint /'
"""
KERNELS = ("debian-6.1-cloud", "debian-6.12-cloud", "alpine")
BOOT_TIMEOUT = 240


def boot(
    host: EmulatedHost,
    directory: Path,
    kernel: str = "debian-6.12-cloud",
    *settings: str,
    command: str | None = REPORT,
    ending: Ending = "poweroff",
    stdin: bytes = b"",
) -> CompletedProcess[bytes]:
    """Run a kernel with a busybox initramfs by `xenpy run` and return how that went; `settings` are overrides."""
    config = directory / "guest.cfg"
    config.write_text(
        f'name = "{kernel}"\ntype = "pvh"\nmemory = 256\n'
        f'kernel = "{images(kernel).kernel}"\nramdisk = "{make_initramfs(command=command, ending=ending)}"\n'
        'cmdline = "console=hvc0 quiet panic=1"\non_reboot = "destroy"\n'
    )
    argv = [sys.executable, "-m", "xenpy", "run", str(config), *settings, "--timeout", str(BOOT_TIMEOUT)]
    return host.run(argv, timeout=BOOT_TIMEOUT + 30, stdin=stdin)


def lines(result: CompletedProcess[bytes]) -> list[str]:
    """Return what the console showed, line by line."""
    return [line.strip() for line in result.stdout.decode(errors="replace").splitlines()]


@pytest.mark.parametrize(
    ("kernel", "vcpus", "kvm_xen"),
    [
        ("debian-6.1-cloud", 1, 1),
        ("debian-6.1-cloud", 1, 0),
        ("debian-6.12-cloud", 1, 0),
        ("debian-6.12-cloud", 4, 1),
        ("alpine", 1, 1),
        ("alpine", 1, 0),
    ],
)
def test_boots_to_user_space_and_powers_off(
    emulated_host: EmulatedHost, tmp_path: Path, kernel: str, vcpus: int, kvm_xen: int
) -> None:
    result = boot(emulated_host, tmp_path, kernel, f"vcpus={vcpus}", f"xenpy_kvm_xen={kvm_xen}")
    console = lines(result)
    assert result.returncode == 0, (console, result.stderr)
    assert f"release {images(kernel).release}" in console
    assert "clocksource xen" in console
    assert f"processors {vcpus}" in console
    assert "hypervisor xen 4.20" in console
    assert "Using FIFO-based ABI" in console
    assert not [line for line in console if line.startswith("complaint")]


def test_shell_on_the_console_takes_input(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    result = boot(emulated_host, tmp_path, command=None, ending="shell", stdin=b"echo sum $((6 * 7))\npoweroff -f\n")
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert "sum 42" in lines(result)


def test_reboot_is_not_followed_when_so_configured(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    result = boot(emulated_host, tmp_path, command="echo going", ending="reboot")
    assert result.returncode == 9, (result.stdout, result.stderr)
    assert lines(result).count("going") == 1
    assert b"reboot" in result.stderr


def test_panic_is_a_crash(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    result = boot(emulated_host, tmp_path, command="echo going", ending="panic")
    assert result.returncode == 4, (result.stdout, result.stderr)
    assert b"crash" in result.stderr


def test_timeout_ends_the_guest(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    config = tmp_path / "guest.cfg"
    config.write_text(f'name = "slow"\ntype = "pvh"\nmemory = 256\nkernel = "{images("debian-6.12-cloud").kernel}"\n')
    argv = [sys.executable, "-m", "xenpy", "run", str(config), "--timeout", "1"]
    result = emulated_host.run(argv, timeout=60)
    assert result.returncode == 5, result.stderr


def test_balloon_goes_down_and_up(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    script = Path(__file__).with_name("balloon.py")
    ramdisk = make_initramfs(command="echo ready; while true; do sleep 1; done", ending="poweroff")
    argv = [sys.executable, str(script), str(images("debian-6.12-cloud").kernel), str(ramdisk)]
    result = emulated_host.run(argv, timeout=BOOT_TIMEOUT)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert lines(result)[-1] == "balloon: down and up"
