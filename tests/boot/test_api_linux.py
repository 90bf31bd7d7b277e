"""The API and the pytest plugin on distribution kernels: a PV guest on this machine, a PVH guest in the emulated host."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

import xenpy
from tests.conftest import images
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.boot

KERNEL = "debian-6.12-cloud"
CMDLINE = "console=hvc0 quiet"
BOOT_TIMEOUT = 240
PAGES_PER_MIB = 256


def ramdisk() -> Path:
    """Return an initramfs with a shell, in which the toolstack's poweroff is heard."""
    return make_initramfs(files={"sbin/poweroff": b"#!/bin/sh\nexec /bin/poweroff -f\n"})


@pytest.fixture(scope="module")
def linux() -> Iterator[xenpy.Guest]:
    kernel = images(KERNEL).kernel
    guest = xenpy.Guest.from_kernel(
        kernel, type="pv", name="linux", memory=256, ramdisk=ramdisk(), cmdline=CMDLINE, timeout=BOOT_TIMEOUT
    )
    with guest:
        yield guest


def uptime(linux: xenpy.Guest) -> float:
    return float(linux.run("cat /proc/uptime").stdout.split()[0])


@pytest.mark.kvm
class TestPv:
    """One guest for all of them; the last shuts it down."""

    def test_commands(self, linux: xenpy.Guest) -> None:
        assert linux.run("uname -r").stdout == f"{images(KERNEL).release}\n"
        done = linux.run("cat /sys/hypervisor/type; echo oops >&2; exit 7")
        assert (done.returncode, done.stdout) == (7, "xen\noops\n")
        assert linux.run("seq 3000").stdout == "".join(f"{number}\n" for number in range(1, 3001))

    def test_page_faults_of_the_kernel_return_within_the_guest(self, linux: xenpy.Guest) -> None:
        """Those at a buffer that it fills for a process: one exit each at most, where they come by us, and none for their IRET."""
        mib = 16
        fill = f"dd if=/dev/zero of=/dev/null bs={mib}M count=1"
        linux.run(fill).check_returncode()  # what is done once only, booting among it
        vcpu = linux.domain.vcpus[0]
        before = vcpu.exits
        linux.run(fill).check_returncode()
        assert vcpu.exits - before < 1.75 * mib * PAGES_PER_MIB

    def test_a_long_script(self, linux: xenpy.Guest) -> None:
        text = "0123456789abcdef'\"\\$`\t" * 200
        script = f"cat >/tmp/text <<'end'\n{text}\nend\nwc -c </tmp/text; tail -c 5 /tmp/text"
        assert linux.run(script).stdout == f"{len(text) + 1}\n{text[-4:]}\n"

    def test_a_command_out_of_time(self, linux: xenpy.Guest) -> None:
        linux.run("true")  # the shell may have yet to come
        with pytest.raises(xenpy.Timeout, match="no end of 'sleep 600' within"):
            linux.run("sleep 600", timeout=2)
        assert linux.run("echo well").stdout == "well\n"

    def test_the_console_by_hand(self, linux: xenpy.Guest) -> None:
        linux.console.sendline("echo sum $((6 * 7)); exit 3 | cat")
        assert linux.console.expect([r"oops", r"sum (\d+)"])[1] == "42"

    def test_sysrq(self, linux: xenpy.Guest) -> None:
        linux.run("echo 8 >/proc/sys/kernel/printk; echo 1 >/proc/sys/kernel/sysrq")
        linux.xenstore.write("control/sysrq", "h")
        linux.console.expect("sysrq: HELP")
        assert linux.xenstore.wait("control/sysrq", "") == ""

    def test_ballooning(self, linux: xenpy.Guest) -> None:
        pages = linux.domain.memory
        linux.set_memory(200)
        linux.wait_for(lambda: pages.ram_pages < 220 * PAGES_PER_MIB, what="smaller guest")
        linux.set_memory(256)
        linux.wait_for(lambda: pages.ram_pages > 240 * PAGES_PER_MIB, what="larger guest")

    def test_a_pause(self, linux: xenpy.Guest) -> None:
        linux.pause()
        first = linux.registers()
        linux.console.sendline("echo awake")
        time.sleep(0.3)
        assert linux.registers() == first
        assert first.cr3
        linux.unpause()
        linux.console.expect("^awake")

    def test_time_that_passes(self, linux: xenpy.Guest) -> None:
        before = uptime(linux)
        linux.console.sendline("sleep 3600; echo slept $((3600 / 60)) minutes")
        linux.console.expect(r"^.*echo slept")
        linux.clock.advance(3600)
        linux.console.expect("^slept 60 minutes")
        assert uptime(linux) - before >= 3600
        assert "soft lockup" not in linux.run("dmesg").stdout

    def test_waiting_that_is_left_out(self, linux: xenpy.Guest) -> None:
        before = uptime(linux)
        with linux.clock.skipping():
            linux.run("sleep 1800", timeout=BOOT_TIMEOUT).check_returncode()
        assert uptime(linux) - before >= 1800

    def test_time_that_stands_still(self, linux: xenpy.Guest) -> None:
        # What waits for a tick waits for good: so a process looks that needs none, until it sees the same time so often.
        looks = 400
        linux.console.sendline(
            f"echo looks now; n=0; while [ $n -lt {looks} ]; do read up idle </proc/uptime; "
            '[ "$up" = "$last" ] && n=$((n + 1)) || n=0; last=$up; done; echo saw it $n times'
        )
        linux.console.expect("^looks now")
        linux.clock.freeze()
        before = linux.clock.now()
        linux.wait_for(lambda: linux.domain.vcpus[0].waits, what=f"{looks} looks at a clock that stands still")
        assert linux.clock.now() == before
        linux.clock.resume()
        linux.console.expect(f"^saw it {looks} times")

    def test_time_that_goes_faster(self, linux: xenpy.Guest) -> None:
        before, host = linux.clock.now(), time.monotonic()
        linux.clock.scale(20)
        linux.run("sleep 20").check_returncode()
        linux.clock.resume()
        assert linux.clock.now() - before >= 20
        assert linux.clock.now() - before > 2 * (time.monotonic() - host)

    def test_a_clock_that_leaps(self, linux: xenpy.Guest) -> None:
        before, wall = uptime(linux), linux.clock.wallclock()
        linux.clock.jump(15)
        assert uptime(linux) - before >= 15
        linux.clock.jump_wallclock(-1000)
        assert linux.clock.wallclock() < wall

    def test_shutdown(self, linux: xenpy.Guest) -> None:
        assert linux.shutdown().kind is xenpy.End.POWEROFF
        with pytest.raises(xenpy.GuestEnded, match=r"linux ended \(power-off\)"):
            linux.run("true")


SUITE = """
import pytest

@pytest.mark.xen_guest(type="pvh", memory=256, ramdisk={ramdisk!r}, cmdline={cmdline!r}, timeout=240)
def test_version(xen_guest):
    done = xen_guest.run("uname -r; exit 3")
    assert (done.returncode, done.stdout) == (3, {release!r} + "\\n")
    code = xen_guest.registers().rip
    assert len(xen_guest.read_memory(16, gva=code)) == 16
    assert xen_guest.shutdown().kind.value == "power-off"

@pytest.mark.xen_guest(type="pvh", memory=256, timeout=0.5)
def test_nothing_comes_so_soon(xen_guest):
    xen_guest.console.expect("never")
"""


@pytest.mark.emulated
def test_pytest_in_the_emulated_host(tmp_path: Path) -> None:
    suite = tmp_path / "test_guest.py"
    release = images(KERNEL).release
    suite.write_text(SUITE.format(ramdisk=str(ramdisk()), cmdline=CMDLINE, release=release))
    argv = [sys.executable, "-m", "pytest", "--xen-host=emulated", f"--xen-kernel={images(KERNEL).kernel}"]
    done = subprocess.run(
        [*argv, "--junitxml=out/report.xml", "--xen-keep=kept", "-pno:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    failure = ET.parse(tmp_path / "out" / "report.xml").find(".//failure")
    assert failure is not None
    assert "no output like 'never' within 0.5 s" in str(failure.text)
    assert len(list((tmp_path / "kept").iterdir())) == 2


TIME_SUITE = """
import pytest

@pytest.mark.xen_guest(type="pvh", memory=256, ramdisk={ramdisk!r}, cmdline={cmdline!r}, timeout=240, paused=True)
def test_time(xen_guest):
    clock = xen_guest.clock
    xen_guest.unpause()
    xen_guest.run("true")
    start = clock.now()
    xen_guest.console.sendline("sleep 100; echo slept $((100 / 10)) times ten")
    xen_guest.console.expect("echo slept")
    clock.advance(100)
    xen_guest.console.expect("^slept 10 times ten")
    assert clock.now() - start >= 100
    clock.scale(3)
    xen_guest.run("sleep 9").check_returncode()
    before = clock.now()
    clock.freeze()
    assert clock.now() - before < 240
    clock.resume()
    assert float(xen_guest.run("cat /proc/uptime").stdout.split()[0]) >= 109
"""


@pytest.mark.emulated
@pytest.mark.skipif(
    not os.environ.get("XENPY_TEST_SLOW"),
    reason="a guest's time in the emulated host takes minutes: XENPY_TEST_SLOW=1 runs it",
)
def test_time_in_the_emulated_host(tmp_path: Path) -> None:
    (tmp_path / "test_time.py").write_text(TIME_SUITE.format(ramdisk=str(ramdisk()), cmdline=CMDLINE))
    argv = [sys.executable, "-m", "pytest", "--xen-host=emulated", f"--xen-kernel={images(KERNEL).kernel}"]
    done = subprocess.run(
        [*argv, "-pno:cacheprovider"], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
