"""kill -9 of what serves a disk, at any moment: every request is answered once, and no acknowledged write is lost."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from isolation_hammer import Hammer, Killer
from isolation_rig import isolated, keeper
from vbd_rig import disk_of, plugged
from vif_hammer import NetHammer
from vif_isolation_rig import StreamWire, TapWire, isolated_front
from vif_isolation_rig import keeper as net_keeper

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpy.config.disk import DiskFormat
from xenpy.devices.vbd.image import open_disk
from xenpy.devices.vbd.qemu import QemuImage

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.devices.isolation.keeper import Keeper

KILLS = int(os.environ.get("XENPY_TEST_KILLS", "100"))
"""Of each kind of frontend."""
SIZE = 4 << 20
LEAKED = 3
"""What qemu-img check ends with when clusters are taken that nobody uses. Ref: qemu-img(1)"""


def survive(hammer: Hammer | NetHammer, kept: Keeper) -> None:
    """Have a process killed so often while a frontend is at work, and see that nothing came of it."""
    killer = Killer(
        lambda: kept.process.pid if kept.process else None,
        lambda: kept.deaths,
        lambda: hammer.done,
        KILLS,
        seed=1,
        longest_s=0.05,
    )
    hammer.run(killer)
    hammer.finish()
    assert kept.deaths == KILLS


@pytest.mark.parametrize("persistent", [True, False])
def test_no_write_is_lost(tmp_path: Path, persistent: bool) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(random.Random(1).randbytes(SIZE))
    with isolated(disk_of(image)) as frontend:
        hammer = Hammer(frontend, frontend.connect(persistent=persistent), image.read_bytes, seed=KILLS)
        survive(hammer, keeper(frontend))


@pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="qemu-nbd is not installed (qemu-utils)")
def test_no_write_is_lost_by_qemu(tmp_path: Path) -> None:
    path, raw = tmp_path / "disk.qcow2", tmp_path / "disk.img"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE)], check=True, timeout=60)

    def content() -> bytes:
        command = ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", str(path), str(raw)]
        subprocess.run(command, check=True, timeout=60)
        return raw.read_bytes()

    disk = open_disk(disk_of(path, format=DiskFormat.QCOW2))
    assert isinstance(disk, QemuImage)
    kills = max(KILLS // 5, 1)  # to start one takes as long as to start several of ours
    with plugged(disk_of(path), backing=disk) as frontend:
        queue = frontend.connect()
        hammer = Hammer(frontend, queue, content, seed=KILLS, flushes=0.01)
        killer = Killer(lambda: disk.pid, lambda: disk.deaths, lambda: hammer.done, kills, seed=1, longest_s=0.2)
        hammer.run(killer)
        hammer.settle()
        assert queue.simple(BLKIF_OP.FLUSH_DISKCACHE) == BLKIF_RSP.OKAY
        queue.answers.clear()
        hammer.finish()
        assert disk.deaths >= kills
    check = subprocess.run(["qemu-img", "check", "-q", str(path)], capture_output=True, timeout=60, check=False)
    assert check.returncode in (0, LEAKED), check.stdout


@pytest.mark.parametrize(
    ("wire", "queues", "split"), [(StreamWire, 1, True), (StreamWire, 2, False), (TapWire, 2, True)]
)
def test_no_frame_is_spoilt_or_delivered_twice(wire: type[StreamWire | TapWire], queues: int, split: bool) -> None:
    far_end = wire()
    with isolated_front(far_end, queues=queues, split=split) as front:
        hammer = NetHammer(front, far_end, seed=KILLS)
        survive(hammer, net_keeper(front))
        sys.stdout.write(
            f"{KILLS} kills: {hammer.sent} frames out, {len(hammer.came_out)} came, {hammer.doubles} of them again;"
            f" {hammer.offered} in, {len(hammer.came_in)} came\n"
        )
