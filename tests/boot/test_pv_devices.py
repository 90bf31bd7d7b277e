"""A PV guest's shared folder, channel, screen, keyboard and second vCPU under an unmodified kernel, on this machine."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import xenpy
from tests.conftest import images
from xenpy.abi.xenbus import XenbusState
from xenpy.config.disk import DiskConfig, DiskFormat
from xenpy.devices.vbd.backend import VbdBackend
from xenpy.devices.vbd.image import open_disk
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.boot, pytest.mark.kvm]

KERNEL = "debian-6.12"  # cloud kernels have neither 9pnet_xen nor xen-kbdfront
TIMEOUT = 240
XVDC = 202 << 8 | 32
TEXT = "Hello, World!"
KEYED = "hello, world"
"""vncdo does not press Shift."""
WHITE = 0xAA


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the folder to share, the channel's socket, and a file that the guest must not see."""
    place = tmp_path_factory.mktemp("devices")
    (place / "share").mkdir()
    (place / "secret").write_text("secret")
    return place


@pytest.fixture(scope="module")
def linux(place: Path) -> Iterator[xenpy.Guest]:
    kernel = images(KERNEL)
    guest = xenpy.Guest.from_kernel(
        kernel.kernel, type="pv", name="devices", memory=384, vcpus=1, maxvcpus=2, timeout=TIMEOUT,
        ramdisk=make_initramfs(images=kernel, modules=["9p", "9pnet_xen", "xen-blkfront"]), cmdline="console=tty0 console=hvc0 quiet",
        p9=[f"tag=share,path={place / 'share'},security_model=none"],
        channel=[f"name=test,connection=socket,path={place / 'channel'}"],
        vfb=["vncpasswd=geheim"],
    )  # fmt: skip
    with guest:
        guest.run("mkdir /share && mount -t 9p -o trans=xen,version=9p2000.L share /share")
        yield guest


def succeed(guest: xenpy.Guest, command: str) -> str:
    done = guest.run(command)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_cd_drive(linux: xenpy.Guest, tmp_path: Path) -> None:
    empty = DiskConfig("", "xvdc", XVDC, format=DiskFormat.EMPTY, writable=False, cdrom=True)
    drive = linux.devices.plug("vbd", empty)
    assert isinstance(drive, VbdBackend)
    succeed(linux, "until [ -b /dev/xvdc ]; do sleep .1; done")
    assert succeed(linux, "cat /sys/block/xvdc/size /sys/block/xvdc/ro") == "0\n1\n"
    for number in range(2):
        content = random.Random(number).randbytes(number + 1 << 20)
        (tmp_path / str(number)).write_bytes(content)
        disc = replace(empty, target=str(tmp_path / str(number)), format=DiskFormat.RAW)
        drive.insert(disc, open_disk(disc))
        succeed(linux, f"until [ $(cat /sys/block/xvdc/size) = {len(content) >> 9} ]; do sleep .1; done")
        assert succeed(linux, "md5sum </dev/xvdc").split()[0] == hashlib.md5(content).hexdigest()
    drive.insert(empty, open_disk(empty))
    succeed(linux, "until [ $(cat /sys/block/xvdc/size) = 0 ]; do sleep .1; done")
    assert succeed(linux, "dd if=/dev/xvdc bs=512 count=1 2>/dev/null | wc -c") == "0\n"
    linux.devices.unplug("vbd", XVDC)
    succeed(linux, "while [ -b /dev/xvdc ]; do sleep .1; done")


def test_a_shared_folder(linux: xenpy.Guest, place: Path) -> None:
    share = place / "share"
    given = random.Random(9).randbytes(3 << 20)
    (share / "given").write_bytes(given)
    assert succeed(linux, "md5sum </share/given").split()[0] == hashlib.md5(given).hexdigest()
    succeed(linux, "cd /share && mkdir d && cp given d/copy && mv d e && ln e/copy link && chmod 640 link && sync")
    assert (share / "e" / "copy").read_bytes() == given
    assert (share / "link").stat().st_nlink == 2
    assert stat.S_IMODE((share / "link").stat().st_mode) == 0o640
    assert succeed(linux, "for i in $(seq 60); do : >/share/e/$i; done; ls /share/e | wc -l") == "61\n"
    assert len(list((share / "e").iterdir())) == 61
    # A link out of the folder is the guest's to follow, in its own files.
    assert linux.run("ln -s ../secret /share/out; cat /share/out").returncode == 1
    assert linux.run("cat /share/../secret").returncode == 1
    succeed(linux, "rm -r /share/e /share/link /share/out")
    assert [path.name for path in share.iterdir()] == ["given"]


def test_a_channel(linux: xenpy.Guest, place: Path) -> None:
    script = "stty raw -echo; echo ready; head -n 1 >/tmp/asked; echo answer"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(place / "channel"))
        succeed(linux, f"({script}) <>/dev/hvc1 >&0 2>/dev/null &")
        assert client.recv(100) == b"ready\n"
        client.sendall(b"question\n")
        assert client.recv(100) == b"answer\n"
    assert succeed(linux, "cat /tmp/asked") == "question\n"


def test_screen_and_keyboard(linux: xenpy.Guest) -> None:
    succeed(linux, r"printf '\033[2J\033[H\033[47m        ' >/dev/tty1")
    cells = ((4, 4), (60, 12))
    linux.wait_for(lambda: all(linux.screenshot().pixel(*at) == (WHITE,) * 3 for at in cells), what="white cells")
    image = linux.screenshot()
    assert (image.width, image.height) == (800, 600)
    assert image.pixel(4, 300) == (0, 0, 0)
    succeed(linux, "(head -n 1 </dev/tty1 >/tmp/typed; mv /tmp/typed /tmp/done) >/dev/null 2>&1 & sleep 1")
    linux.keyboard.type(f"{TEXT}\n")
    assert succeed(linux, "while [ ! -e /tmp/done ]; do sleep 1; done; cat /tmp/done") == f"{TEXT}\n"


def test_a_viewer_sees_and_types(linux: xenpy.Guest, tmp_path: Path) -> None:
    vncdo = shutil.which("vncdo", path=str(Path(sys.executable).parent))
    if vncdo is None:
        pytest.skip("there is no vncdo: pip install vncdotool")
    host, port = linux.vnc
    for node, value in (("vnc-port", str(port)), ("vnc-listen", host)):
        assert linux.xenstore.read(f"console/{node}") == value
    succeed(linux, r"printf '\033[0m\033[2J\033[H\033[?25l\033[47m        ' >/dev/tty1")
    linux.wait_for(lambda: linux.screenshot().pixel(60, 12) == (WHITE,) * 3, what="white cells")
    succeed(linux, "(head -n 1 </dev/tty1 >/tmp/keyed; mv /tmp/keyed /tmp/viewed) >/dev/null 2>&1 & sleep 1")
    words = ["capture", str(tmp_path / "seen.png"), "type", KEYED, "key", "enter"]
    subprocess.run([vncdo, "-s", f"{host}::{port}", "-p", "geheim", *words], check=True, timeout=TIMEOUT)
    assert succeed(linux, "while [ ! -e /tmp/viewed ]; do sleep 1; done; cat /tmp/viewed") == f"{KEYED}\n"
    image = pytest.importorskip("PIL.Image", reason="to read a viewer's picture needs Pillow")
    with image.open(tmp_path / "seen.png") as seen:
        assert seen.size == (800, 600)
        assert seen.convert("RGB").getpixel((60, 12)) == (WHITE,) * 3
        assert seen.convert("RGB").getpixel((4, 300)) == (0, 0, 0)


def test_a_vcpu_comes_and_goes(linux: xenpy.Guest) -> None:
    online = "/sys/devices/system/cpu/cpu1/online"
    linux.set_vcpus(2)
    succeed(linux, f"until [ -e {online} ]; do sleep 1; done; grep -q 1 {online} || echo 1 >{online}")
    assert succeed(linux, "nproc") == "2\n"
    linux.set_vcpus(1)
    assert succeed(linux, "while [ $(nproc) = 2 ]; do sleep 1; done; nproc") == "1\n"


def test_sysrq(linux: xenpy.Guest) -> None:
    linux.sysrq("h")
    succeed(linux, "until dmesg | grep -q 'sysrq: HELP'; do sleep 1; done")


def test_devices_are_given_up(linux: xenpy.Guest, place: Path) -> None:
    succeed(linux, "umount /share")
    for kind, devid in (("9pfs", 0), ("console", 1)):
        device = linux.devices.find(kind, devid)
        assert device is not None
        assert device.state is XenbusState.Connected
        linux.devices.unplug(kind, devid)
        linux.wait_for(lambda kind=kind, devid=devid: linux.devices.find(kind, devid) is None, what=f"end of {kind}")
    assert not (place / "channel").exists()
