"""Distribution kernels as PVH guests, unmodified, in the emulated host: with KVM's Xen support and without, on one vCPU and on four."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.boot.exits import READS
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
    ("kernel", "vcpus", "kvm_xen", "kvm_events"),
    [
        ("debian-6.1-cloud", 1, 1, 1),
        ("debian-6.1-cloud", 1, 0, 0),
        ("debian-6.12-cloud", 1, 0, 0),
        ("debian-6.12-cloud", 2, 1, 0),
        ("debian-6.12-cloud", 4, 1, 1),
        ("alpine", 1, 1, 1),
        ("alpine", 1, 0, 0),
    ],
)
def test_boots_to_user_space_and_powers_off(
    emulated_host: EmulatedHost, tmp_path: Path, kernel: str, vcpus: int, kvm_xen: int, kvm_events: int
) -> None:
    settings = f"vcpus={vcpus}", f"xenpy_kvm_xen={kvm_xen}", f"xenpy_kvm_events={kvm_events}"
    result = boot(emulated_host, tmp_path, kernel, *settings)
    console = lines(result)
    assert result.returncode == 0, (console, result.stderr)
    assert f"release {images(kernel).release}" in console
    assert "clocksource xen" in console
    assert f"processors {vcpus}" in console
    assert "hypervisor xen 4.20" in console
    assert ("Using FIFO-based ABI" in console) == (not kvm_events)  # KVM knows the 2-level ABI only
    assert not [line for line in console if line.startswith("complaint")]


def _count_exits(host: EmulatedHost, directory: Path, vcpus: int, kvm_events: int) -> dict[str, int]:
    kernel = images("debian-6.12-cloud")
    ramdisk = make_initramfs(images=kernel, modules=["xen-blkfront"])
    config = directory / "guest.cfg"
    config.write_text(
        f'name = "exits"\ntype = "pvh"\nmemory = 256\nkernel = "{kernel.kernel}"\nramdisk = "{ramdisk}"\n'
        'cmdline = "console=hvc0 quiet panic=1"\n'
    )
    program = Path(__file__).with_name("exits.py")
    argv = [sys.executable, str(program), str(config), f"vcpus={vcpus}", f"xenpy_kvm_events={kvm_events}"]
    result = host.run(argv, timeout=BOOT_TIMEOUT + 30)
    assert result.returncode == 0, result.stderr.decode()
    found: dict[str, int] = json.loads(result.stdout)
    return found


def test_ticks_and_a_disk_cost_no_exits(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    counts = _count_exits(emulated_host, tmp_path, 2, 1)
    served = counts["timer0"] + counts["timer1"] + counts["blkif"]
    assert counts["blkif"] >= READS
    # In Python each takes two or three. What is left: a shell's output on the console, and ten looks a second at a vCPU's runstate.
    assert counts["exits"] < served, counts


def test_without_kernel_events_all_of_them_do(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    counts = _count_exits(emulated_host, tmp_path, 1, 0)
    assert counts["exits"] > counts["timer0"] + counts["blkif"], counts


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


needs_time = pytest.mark.skipif(
    os.environ.get("XENPY_TEST_SLOW") != "1",
    reason="forks in the emulated host take minutes: XENPY_TEST_SLOW=1 runs them",
)


@pytest.mark.parametrize(
    ("vcpus", "kvm_xen", "disk"),
    [(1, 1, 0), (1, 0, 1), (2, 1, 1)],
)
@needs_time
@pytest.mark.timeout(1200)
def test_is_forked_saved_and_loaded(emulated_host: EmulatedHost, vcpus: int, kvm_xen: int, disk: int) -> None:
    kernel = images("debian-6.12-cloud")
    ramdisk = make_initramfs(images=kernel, modules=["xen-blkfront"]) if disk else make_initramfs()
    script = Path(__file__).with_name("forks.py")
    room = (
        emulated_host.run(["mktemp", "-d"], timeout=60).stdout.decode().strip()
    )  # the host's own: ours is read only there
    argv = [sys.executable, str(script), str(kernel.kernel), str(ramdisk), room, str(vcpus), str(kvm_xen), str(disk)]
    result = emulated_host.run(argv, timeout=1200)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert lines(result)[-1] == "forks: all went on"


def test_balloon_goes_down_and_up(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    script = Path(__file__).with_name("balloon.py")
    ramdisk = make_initramfs(command="echo ready; while true; do sleep 1; done", ending="poweroff")
    argv = [sys.executable, str(script), str(images("debian-6.12-cloud").kernel), str(ramdisk)]
    result = emulated_host.run(argv, timeout=BOOT_TIMEOUT)
    assert result.returncode == 0, (result.stdout, result.stderr)
    assert lines(result)[-1] == "balloon: down and up"
