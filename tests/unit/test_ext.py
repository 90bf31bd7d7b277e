"""Files in ext4 images, by debugfs."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from xenpy import ext
from xenpy.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    shutil.which("debugfs", path="/usr/sbin:/sbin:/usr/bin") is None, reason="e2fsprogs is not installed"
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "old file").write_text("old")
    (root / "link").symlink_to("etc/old file")
    image = tmp_path / "image"
    subprocess.run([ext.program("mke2fs"), "-q", "-t", "ext4", "-d", root, image, "4M"], check=True)
    return image


def check(image: Path) -> None:
    subprocess.run([ext.program("e2fsck"), "-fn", image], check=True, capture_output=True)


def stat_of(image: Path, path: str) -> str:
    command = [ext.program("debugfs"), "-R", f'stat "{path}"', image]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_files_are_read(image: Path) -> None:
    assert ext.read(image, "/etc/old file") == b"old"
    for path in ("/etc/none", "/link"):
        with pytest.raises(HostError, match=r"image: debugfs: "):
            ext.read(image, path)


def test_files_are_written_and_replaced(image: Path) -> None:
    data = bytes(range(256)) * 40
    ext.write(image, {"/etc/old file": ext.Content(b"new"), "/etc/a": ext.Content(data, 0o4750, 3, 70000)})
    assert ext.read(image, "/etc/old file") == b"new"
    assert ext.read(image, "/etc/a") == data
    shown = stat_of(image, "/etc/a")
    assert "Type: regular" in shown
    assert "Mode:  04750" in shown
    assert "User:     3" in shown
    assert "Group: 70000" in shown
    check(image)


def test_what_fails_is_said(image: Path) -> None:
    with pytest.raises(HostError, match="debugfs: /nowhere: File not found"):
        ext.write(image, {"/nowhere/a": ext.Content(b"")})
    with pytest.raises(HostError, match="line ends"):
        ext.read(image, "/a\nrm /etc")
    image.write_bytes(bytes(100))
    with pytest.raises(HostError, match="debugfs: "):
        ext.read(image, "/a")
