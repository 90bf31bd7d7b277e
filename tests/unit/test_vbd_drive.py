"""A CD drive whose medium changes while a frontend uses it, served by threads and by a process."""

from __future__ import annotations

import errno
import random
import threading
from typing import TYPE_CHECKING

import pytest
from isolation_rig import isolated
from vbd_rig import XVDA, disk_of, plugged
from vbd_rig import BlkFrontend as Frontend
from xenbus_rig import PATIENCE

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP, VDISK
from xenpy.abi.xenbus import XenbusState
from xenpy.config.disk import DiskConfig, DiskFormat
from xenpy.devices.vbd.backing import EmptyDrive, RawBacking
from xenpy.devices.vbd.image import open_disk
from xenpy.errors import ConfigError

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
        frontend.services.until(lambda: is_free(first), "close")


def is_free(disk: DiskConfig) -> bool:
    """Tell whether nobody has a medium open, who would have it locked."""
    try:
        RawBacking(disk.target, writable=True).close()
    except ConfigError:
        return False
    return True


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


class Held(EmptyDrive):
    """A drive that is at a request, and then at its close, for as long as a test wants; it tells whether one overtook the other."""

    def __init__(self) -> None:
        self.size = SIZE
        self.reading, self.may_read, self.may_close, self.closed = (threading.Event() for _ in range(4))
        self.closed_in_use = False

    def read(self, views: Views, offset: int) -> None:
        self.reading.set()
        self.may_read.wait(PATIENCE)
        self.closed_in_use = self.closed.is_set()
        raise OSError(errno.ENOMEDIUM, f"{len(views)} pieces at {offset}")

    def close(self) -> None:
        self.may_close.wait(PATIENCE)
        self.closed.set()


def test_a_medium_that_comes_while_the_frontend_goes_waits_for_the_last_request(tmp_path: Path) -> None:
    held, second = Held(), medium(tmp_path, "second", SECOND)
    held.may_close.set()
    with plugged(EMPTY, backing=held) as frontend:
        queue = frontend.connect()
        queue.transfer(BLKIF_OP.READ, 0, [queue.buffer()])
        queue.kick()
        frontend.services.until(held.reading.is_set, "request")
        frontend.switch(XenbusState.Closed)
        frontend.backend.insert(second, open_disk(second))
        frontend.services.pump()
        assert frontend.theirs("params") == ""
        held.may_read.set()
        frontend.await_state(XenbusState.Closed)
        frontend.services.until(held.closed.is_set, "close")
        assert not held.closed_in_use
        assert frontend.theirs("params") == second.target


def test_the_loop_does_not_wait_for_a_medium_to_be_closed() -> None:
    held = Held()
    with plugged(EMPTY, backing=held) as frontend:
        queue = frontend.connect()
        insert(frontend, EMPTY)
        assert queue.read(0) == BLKIF_RSP.ERROR
        assert not held.closed.is_set()
        held.may_close.set()
    assert held.closed.is_set()


def test_a_drive_that_is_parked_has_another_medium_later(tmp_path: Path) -> None:
    first, second = medium(tmp_path, "first", FIRST), medium(tmp_path, "second", SECOND)
    with plugged(first) as frontend:
        queue = frontend.connect()
        frontend.backend.park()
        frontend.backend.insert(second, open_disk(second))
        frontend.services.pump()
        assert frontend.theirs("params") == first.target
        frontend.backend.unpark()
        assert frontend.theirs("params") == second.target
        assert queue.read(8) == SECOND[4096:8192]


def test_a_medium_that_comes_too_late_is_closed(tmp_path: Path) -> None:
    second = medium(tmp_path, "second", SECOND)
    with plugged(EMPTY) as frontend:
        frontend.backend.close()
        frontend.backend.insert(second, open_disk(second))
        frontend.services.until(lambda: is_free(second), "close")
