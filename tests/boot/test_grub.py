"""GRUB as a guest: no Linux, with a hypercall page and drivers of its own. It reads a disk, and starts a kernel from it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

import xenpy
from tests.conftest import images
from xenpy.builder.kernel import load_kernel
from xenpy.cache import cache_directory, locked, published
from xenpy.errors import HostError
from xenpy.initramfs import make_initramfs
from xenpy.packages import fetch_debian, unpack_deb

pytestmark = [pytest.mark.boot, pytest.mark.kvm]

PACKAGE = "grub-xen-host"
TIMEOUT = 180
PROMPT = "grub> "


def grub(name: str) -> Path:
    """Return an image of GRUB out of Debian's package, or skip the test with the reason why it cannot be had."""
    target = cache_directory("guests") / PACKAGE
    try:
        with locked(target):
            if not target.exists():
                with published(target) as made, tempfile.TemporaryDirectory() as scratch:
                    unpack_deb(fetch_debian(PACKAGE, Path(scratch)), made, lambda path: path.endswith(".bin"))
    except HostError as error:
        pytest.skip(f"needs Debian's {PACKAGE}: {error}")
    return next(target.rglob(name))


def test_pv_grub_reads_a_disk_and_starts_linux(tmp_path: Path) -> None:
    if shutil.which("mke2fs") is None:
        pytest.skip("mke2fs is not installed")
    folder, image = tmp_path / "root", tmp_path / "disk.img"
    folder.mkdir()
    (folder / "hello").write_text("hello from the disk\n")
    with load_kernel(images("debian-6.12-cloud").kernel) as kernel:
        (folder / "vmlinux").write_bytes(kernel.data[:])
    shutil.copy(make_initramfs(command="echo started by $(uname -s)"), folder / "initrd")
    subprocess.run(["mke2fs", "-q", "-t", "ext2", "-d", folder, image, "160M"], check=True)
    guest = xenpy.Guest.from_kernel(
        grub("grub-x86_64-xen.bin"), type="pv", memory=256, disk=[f"{image},raw,xvda,r"], timeout=TIMEOUT
    )
    with guest:
        guest.console.expect(PROMPT)
        for command in (
            "cat (xen/xvda)/hello", "linux (xen/xvda)/vmlinux console=hvc0 quiet", "initrd (xen/xvda)/initrd"
        ):  # fmt: skip
            guest.console.send(f"{command}\r")
            guest.console.expect(PROMPT)
        assert "hello from the disk" in guest.console.text
        guest.console.send("boot\r")
        guest.console.expect("started by Linux")
        assert guest.wait().kind is xenpy.End.POWEROFF


def test_pvh_grub_comes_to_its_prompt() -> None:
    with xenpy.Guest.from_kernel(grub("grub-i386-xen_pvh.bin"), type="pvh", memory=128, timeout=TIMEOUT) as guest:
        guest.console.expect(PROMPT)
        guest.console.send("ls\r")
        guest.console.expect(r"\(memdisk\)")
