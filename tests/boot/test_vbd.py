"""Disks under an unmodified blkfront: a file system on a raw image, and a qcow2 image through qemu-nbd, in one boot."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.boot.hotplug import GUEST_SCRIPT
from tests.conftest import images
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from xenpy.emulated import EmulatedHost

pytestmark = [pytest.mark.boot, pytest.mark.emulated]

KERNEL = "debian-6.12-cloud"
TIMEOUT = 240
MIB = 1 << 20
SCRIPT = """
for disk in xvda xvdb; do echo "$disk sectors $(cat /sys/block/$disk/size) ro $(cat /sys/block/$disk/ro)"; done
echo "queues $(ls /sys/block/xvda/mq | wc -l) discard $(cat /sys/block/xvda/queue/discard_max_bytes)"
echo "cache $(cat /sys/block/xvda/queue/write_cache)"
mkdir -p /mnt
mount -t ext4 -o discard /dev/xvda /mnt || echo "cannot mount"
echo "given $(md5sum </mnt/given)"
dd if=/dev/urandom of=/tmp/data bs=1M count=2 2>/dev/null
echo "data $(md5sum </tmp/data)"
cp /tmp/data /mnt/written
dd if=/tmp/data of=/dev/xvdb bs=64k seek=16 conv=fsync 2>/dev/null || echo "cannot write xvdb"
rm /mnt/discarded
sync
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 -o ro /dev/xvda /mnt
echo "written $(md5sum </mnt/written)"
echo "copy $(dd if=/dev/xvdb bs=64k skip=16 count=32 2>/dev/null | md5sum)"
dmesg | grep -E 'blkfront:|I/O error|EXT4-fs error|BUG:|Oops' | sed 's/^/kernel /'
umount /mnt
"""


def test_file_system_and_qcow2(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    for program in ("mke2fs", "debugfs", "qemu-img", "qemu-nbd"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (e2fsprogs, qemu-utils)")
    given = random.Random(1).randbytes(MIB)
    files = tmp_path / "files"
    files.mkdir()
    (files / "given").write_bytes(given)
    (files / "discarded").write_bytes(bytes(MIB))
    raw, qcow2 = tmp_path / "raw.img", tmp_path / "image.qcow2"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", files, raw, "32M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow2, "16M"], check=True)

    guest = images(KERNEL)
    ramdisk = make_initramfs(command=SCRIPT, images=guest, modules=("xen-blkfront", "ext4"))
    config = tmp_path / "guest.cfg"
    config.write_text(
        f'name = "disks"\ntype = "pvh"\nmemory = 256\nkernel = "{guest.kernel}"\nramdisk = "{ramdisk}"\n'
        'cmdline = "console=hvc0 quiet panic=1"\n'
        f'disk = ["{raw},raw,xvda,rw", "format=qcow2,vdev=xvdb,access=rw,target={qcow2}"]\n'
    )
    argv = [sys.executable, "-m", "xenpy", "run", str(config), "--timeout", str(TIMEOUT)]
    result = emulated_host.run(argv, timeout=TIMEOUT + 30)
    console = [line.strip() for line in result.stdout.decode(errors="replace").splitlines()]
    assert result.returncode == 0, (console, result.stderr)
    said = dict(line.split(" ", 1) for line in console if " " in line)
    assert said["xvda"] == f"sectors {32 * MIB // 512} ro 0"
    assert said["xvdb"] == f"sectors {16 * MIB // 512} ro 0"
    assert said["queues"].startswith("1 discard ")
    assert not said["queues"].endswith(" 0")
    assert said["cache"] == "write back"
    assert said["given"].split()[0] == hashlib.md5(given).hexdigest()
    assert said["written"] == said["copy"] == said["data"]
    assert "cannot" not in said
    assert not [line for line in console if line.startswith("kernel ") and "flush diskcache: enabled" not in line]
    # What is in the image, now that nothing of the guest is left.
    dump = emulated_host.run(["debugfs", "-R", "cat /written", str(raw)], timeout=60)
    assert hashlib.md5(dump.stdout).hexdigest() == said["data"].split()[0]
    assert emulated_host.run(["qemu-img", "check", str(qcow2)], timeout=60).returncode == 0


def test_plugging_growing_and_unplugging(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    script = Path(__file__).with_name("hotplug.py")
    guest = images(KERNEL)
    ramdisk = make_initramfs(command=GUEST_SCRIPT, images=guest, modules=("xen-blkfront",))
    argv = [sys.executable, str(script), str(guest.kernel), str(ramdisk), str(tmp_path / "disk.img")]
    result = emulated_host.run(argv, timeout=TIMEOUT)
    assert result.stdout.decode().splitlines()[-1:] == ["hotplug: plugged, unplugged and plugged"], (
        result.stdout,
        result.stderr,
    )
