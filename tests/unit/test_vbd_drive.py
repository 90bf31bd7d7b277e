"""A CD drive whose medium changes while a frontend uses it, served by threads and by a process."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING

import pytest
from isolation_rig import isolated
from vbd_rig import XVDA, disk_of, plugged
from vbd_rig import BlkFrontend as Frontend

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP, VDISK
from xenpy.abi.xenbus import XenbusState
from xenpy.config.disk import DiskConfig, DiskFormat
from xenpy.devices.vbd.backing import EmptyDrive, RawBacking
from xenpy.devices.vbd.image import open_disk

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from xenpy.devices.vbd.backing import Views

SIZE = 64 << 10
FIRST, SECOND = (random.Random(seed).randbytes(SIZE) for seed in (1, 2))
EMPTY = DiskConfig("", "xvda", XVDA, format=DiskFormat.EMPTY, writable=False, cdrom=True)


@pytest.fixture(params=[plugged, isolated], ids=["threads", "process"])
def plug(request: pytest.FixtureRequest) -> Callable[[DiskConfig], AbstractContextManager[Frontend]]:
    plug: Callable[[DiskConfig], AbstractContextManager[Frontend]] = request.param
    return plug


def medium(directory: Path, name: str, data: bytes) -> DiskConfig:
    (directory / name).write_bytes(data)
    return disk_of(directory / name, writable=False, cdrom=True)


def insert(frontend: Frontend, record: DiskConfig) -> None:
    """Change the medium and wait until the frontend has been told."""
    heard: list[str] = []
    with frontend.services.lock:
        watch = frontend.services.store.watch(
            f"{frontend.backend.params.backend_path}/state", lambda path, _: heard.append(path)
        )
        heard.clear()
    frontend.backend.insert(record, open_disk(record))
    frontend.services.until(lambda: bool(heard), "hint to look again")
    watch.cancel()
    assert frontend.theirs("params") == record.target
    assert frontend.backend_state is XenbusState.Connected


def test_a_medium_comes_changes_and_goes(
    plug: Callable[[DiskConfig], AbstractContextManager[Frontend]], tmp_path: Path
) -> None:
    with plug(EMPTY) as frontend:
        queue = frontend.connect()
        info = VDISK(int(frontend.theirs("info")))
        assert info & (VDISK.CDROM | VDISK.READONLY | VDISK.REMOVABLE) == info
        assert frontend.theirs("sectors") == "0"
        assert queue.read(0) == BLKIF_RSP.ERROR
        insert(frontend, medium(tmp_path, "first", FIRST))
        assert frontend.theirs("sectors") == str(SIZE // 512)
        assert queue.read(8) == FIRST[4096:8192]
        insert(frontend, medium(tmp_path, "second", SECOND + bytes(512)))
        assert frontend.theirs("sectors") == str(SIZE // 512 + 1)
        assert queue.read(8) == SECOND[4096:8192]
        assert queue.write(0, bytes(512)) == BLKIF_RSP.ERROR
        insert(frontend, EMPTY)
        assert frontend.theirs("sectors") == "0"
        assert queue.read(8) == BLKIF_RSP.ERROR


def test_what_has_been_taken_out_is_closed(tmp_path: Path) -> None:
    first = medium(tmp_path, "first", FIRST)
    with plugged(first) as frontend:
        frontend.connect()
        insert(frontend, EMPTY)
        frontend.services.pump()
        RawBacking(first.target, writable=True).close()  # in use it would be locked


class Slow(EmptyDrive):
    """A drive that is at a request until told otherwise."""

    def __init__(self, frontend: Callable[[], Frontend]) -> None:
        self._frontend = frontend
        self.size = SIZE
        self.changes: list[DiskConfig] = []

    def read(self, views: Views, offset: int) -> None:
        """Have the medium changed meanwhile, twice."""
        for record in self.changes:
            self._frontend().backend.insert(record, open_disk(record))
        self.changes.clear()
        raise OSError(errno.ENOMEDIUM, f"{len(views)} pieces at {offset}")


def test_the_last_of_several_stays_and_a_request_under_way_is_answered(tmp_path: Path) -> None:
    slow = Slow(lambda: frontend)
    slow.changes = [medium(tmp_path, "first", FIRST), medium(tmp_path, "second", SECOND)]
    with plugged(EMPTY, backing=slow) as frontend:
        queue = frontend.connect()
        under_way = queue.transfer(BLKIF_OP.READ, 0, [queue.buffer()])
        behind = queue.transfer(BLKIF_OP.READ, 0, [queue.buffer()])
        assert queue.wait(under_way) == [BLKIF_RSP.ERROR]
        queue.wait(behind)
        frontend.services.until(lambda: frontend.theirs("params") == str(tmp_path / "second"), "second medium")
        assert queue.read(8) == SECOND[4096:8192]
