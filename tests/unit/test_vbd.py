"""Disks, through the ring: what a frontend that keeps the rules can do with them."""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vbd_rig import BlkFrontend, disk_of, plugged

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP, LAYOUTS, SECTOR_SIZE
from xenpy.abi.xenbus import XenbusState
from xenpy.config.disk import DiskFormat
from xenpy.devices.vbd.backing import RawBacking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xenpy.devices.vbd.backing import Views

SIZE = 4 << 20
OKAY, ERROR, UNSUPPORTED = BLKIF_RSP.OKAY, BLKIF_RSP.ERROR, BLKIF_RSP.EOPNOTSUPP


DISK = random.Random(1).randbytes(SIZE)


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(DISK)
    return path


@pytest.fixture
def frontend(image: Path) -> Iterator[BlkFrontend]:
    with plugged(disk_of(image)) as frontend:
        yield frontend


def test_what_the_backend_says(frontend: BlkFrontend, image: Path) -> None:
    frontend.connect()
    assert frontend.backend_state is XenbusState.Connected
    expected = {
        "sectors": SIZE // 512, "sector-size": 512, "physical-sector-size": 4096, "info": 0, "mode": "w", "params": image,
        "feature-flush-cache": 1, "feature-barrier": 1, "feature-discard": 1, "feature-persistent": 1,
        "feature-max-indirect-segments": 256, "multi-queue-max-queues": 4, "max-ring-page-order": 4, "dev": "xvda",
    }  # fmt: skip
    assert {name: frontend.theirs(name) for name in expected} == {name: str(value) for name, value in expected.items()}
    store = frontend.services.store
    assert store.read(f"{frontend.path}/virtual-device") == "51712"
    assert store.read(f"{frontend.path}/device-type") == "disk"


@pytest.mark.parametrize("protocol", LAYOUTS)
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("order", [0, 2])
def test_reading_and_writing(frontend: BlkFrontend, image: Path, protocol: str, persistent: bool, order: int) -> None:
    queue = frontend.connect(protocol=protocol, persistent=persistent, order=order)
    assert queue.read(16) == DISK[8192 : 8192 + 4096]
    data = pattern(11 * 4096, 99)
    buffers = [queue.buffer(data[start : start + 4096]) for start in range(0, len(data), 4096)]
    assert queue.wait(queue.transfer(BLKIF_OP.WRITE, 3, buffers)) == [OKAY]
    assert image.read_bytes()[3 * 512 :][: len(data)] == data
    assert queue.read(3, 1) == data[:512]


def test_parts_of_pages(frontend: BlkFrontend, image: Path) -> None:
    queue = frontend.connect()
    buffers = [queue.buffer(pattern(512 * 2, 1), sectors=(3, 4)), queue.buffer(pattern(512, 2), sectors=(7, 7))]
    assert queue.wait(queue.transfer(BLKIF_OP.WRITE, 1, buffers)) == [OKAY]
    assert image.read_bytes()[512 : 4 * 512] == pattern(1024, 1) + pattern(512, 2)
    back = [queue.buffer(sectors=(5, 6)), queue.buffer(sectors=(0, 0))]
    assert queue.wait(queue.transfer(BLKIF_OP.READ, 1, back)) == [OKAY]
    assert bytes(back[0].view) == bytes(5 * 512) + pattern(1024, 1) + bytes(512)
    assert bytes(back[1].view) == pattern(512, 2) + bytes(7 * 512)


@pytest.mark.parametrize("count", [1, 12, 256])
def test_indirect_requests(frontend: BlkFrontend, image: Path, count: int) -> None:
    queue = frontend.connect()
    data = pattern(count * 4096, 5)
    writes = [queue.buffer(data[start : start + 4096], readonly=True) for start in range(0, len(data), 4096)]
    reads = [queue.buffer() for _ in range(count)]
    first = queue.indirect(BLKIF_OP.WRITE, 8, writes)
    second = queue.indirect(BLKIF_OP.READ, 8, reads)
    assert queue.wait(first, second) == [OKAY, OKAY]
    assert queue.answers[first][0] == BLKIF_OP.WRITE
    assert b"".join(buffer.view for buffer in reads) == data
    assert image.read_bytes()[4096 : 4096 + len(data)] == data


def test_grants_are_given_back(frontend: BlkFrontend) -> None:
    queue = frontend.connect()
    buffer = queue.buffer()
    queue.wait(queue.transfer(BLKIF_OP.READ, 0, [buffer]))
    assert not frontend.services.in_use(buffer.gref)


def test_persistent_grants_are_mapped_once(frontend: BlkFrontend) -> None:
    queue = frontend.connect(persistent=True)
    buffer = queue.buffer()
    before = frontend.services.mapped
    for sector in range(20):
        assert queue.wait(queue.transfer(BLKIF_OP.READ, sector, [buffer])) == [OKAY]
        assert bytes(buffer.view) == DISK[sector * 512 :][:4096]
    assert frontend.services.mapped == before + 1
    assert frontend.services.in_use(buffer.gref)
    frontend.switch(XenbusState.Closed)
    frontend.await_state(XenbusState.Closed)
    assert not frontend.services.in_use(buffer.gref)


class Watched(RawBacking):
    """A raw image that keeps account of what is done to it; `hold` makes reads wait."""

    def __init__(self, path: Path) -> None:
        self.did: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        super().__init__(str(path), writable=True)

    def read(self, views: Views, offset: int) -> None:
        assert self.hold.wait(20)
        self.did.append(f"read {offset} {sum(map(len, views))}")
        super().read(views, offset)

    def write(self, views: Views, offset: int) -> None:
        self.did.append(f"write {offset} {sum(map(len, views))}")
        super().write(views, offset)

    def flush(self) -> None:
        self.did.append("flush")
        super().flush()

    def discard(self, offset: int, size: int) -> None:
        self.did.append(f"discard {offset} {size}")
        super().discard(offset, size)


def test_neighbours_are_moved_together_and_order_is_kept(image: Path) -> None:
    backing = Watched(image)
    with plugged(disk_of(image), backing=backing) as frontend:
        queue = frontend.connect()
        ids = [queue.transfer(BLKIF_OP.WRITE, sector, [queue.buffer()]) for sector in (0, 8, 16)]
        ids.append(queue.transfer(BLKIF_OP.FLUSH_DISKCACHE, 0, []))
        ids += [
            queue.transfer(BLKIF_OP.WRITE, 24, [queue.buffer()]),
            queue.transfer(BLKIF_OP.READ, 32, [queue.buffer()]),
        ]
        ids.append(queue.transfer(BLKIF_OP.WRITE_BARRIER, 40, [queue.buffer()]))
        ids.append(queue.transfer(BLKIF_OP.WRITE, 48, [queue.buffer()]))
        assert queue.wait(*ids) == [OKAY] * len(ids)
        assert list(queue.answers) == ids
    assert backing.did == [
        "write 0 12288", "flush", "write 12288 4096", "read 16384 4096", "flush", "write 20480 4096", "flush", "write 24576 4096",
    ]  # fmt: skip


def test_an_empty_barrier_flushes(image: Path) -> None:
    backing = Watched(image)
    with plugged(disk_of(image), backing=backing) as frontend:
        assert frontend.connect().simple(BLKIF_OP.WRITE_BARRIER) == OKAY
    assert set(backing.did) == {"flush"}


def test_discard_makes_a_hole(frontend: BlkFrontend, image: Path) -> None:
    queue = frontend.connect()
    assert queue.wait(queue.discard(8, 1024)) == [OKAY]
    assert image.read_bytes() == DISK[:4096] + bytes(1024 * 512) + DISK[4096 + 1024 * 512 :]
    assert image.stat().st_blocks <= SIZE // 512 - 1024
    assert (
        queue.wait(queue.discard(0, 0), queue.discard(SIZE // 512, 1), queue.discard(1 << 63, 1 << 62)) == [ERROR] * 3
    )


def test_a_disk_without_discard(image: Path) -> None:
    with plugged(disk_of(image, discard=False)) as frontend:
        frontend.connect()
        assert frontend.theirs("feature-discard") == "0"
        assert frontend.theirs("discard-enable") == "0"
        assert frontend.theirs("discard-granularity") is None


def test_read_only(image: Path) -> None:
    with plugged(disk_of(image, writable=False)) as frontend:
        queue = frontend.connect()
        assert (frontend.theirs("mode"), frontend.theirs("info")) == ("r", "4")
        assert queue.write(0, bytes(512)) == ERROR
        assert queue.wait(queue.discard(0, 8)) == [UNSUPPORTED]
        assert queue.read(0) == DISK[:4096]
    assert image.read_bytes() == DISK


def test_a_cdrom_and_an_empty_one(image: Path) -> None:
    with plugged(disk_of(image, writable=False, cdrom=True)) as frontend:
        frontend.connect()
        assert (frontend.theirs("device-type"), frontend.theirs("info")) == ("cdrom", "7")
    with plugged(disk_of("", writable=False, cdrom=True, format=DiskFormat.EMPTY)) as frontend:
        queue = frontend.connect()
        assert frontend.theirs("sectors") == "0"
        assert queue.read(0) == ERROR


@pytest.mark.parametrize("sector", [SIZE // 512 - 7, SIZE // 512, 1 << 40, (1 << 64) - 1])
def test_beyond_the_end(frontend: BlkFrontend, sector: int) -> None:
    queue = frontend.connect()
    assert queue.read(sector) == ERROR
    assert queue.write(sector, bytes(4096)) == ERROR
    assert queue.read(SIZE // 512 - 8) == DISK[-4096:]


def test_one_bad_request_among_neighbours_fails_alone(frontend: BlkFrontend) -> None:
    queue = frontend.connect()
    end = SIZE // 512
    ids = [queue.transfer(BLKIF_OP.READ, sector, [queue.buffer()]) for sector in (end - 16, end - 8, end)]
    assert queue.wait(*ids) == [OKAY, OKAY, ERROR]


def test_a_file_that_shrank_under_us(frontend: BlkFrontend, image: Path) -> None:
    queue = frontend.connect()
    os.truncate(image, 4096)
    assert queue.read(0) == DISK[:4096]
    assert queue.read(8) == ERROR


@pytest.mark.parametrize("operation", [4, 7, 255])
def test_operations_unknown_to_us(frontend: BlkFrontend, operation: int) -> None:
    queue = frontend.connect()
    assert queue.simple(operation) == UNSUPPORTED
    assert [answer[0] for answer in queue.answers.values()] == [operation]
    assert queue.read(0) == DISK[:4096]


def test_queues_are_independent(image: Path) -> None:
    backing = Watched(image)
    with plugged(disk_of(image), backing=backing) as frontend:
        frontend.connect(queues=4, order=1)
        backing.hold.clear()
        first = frontend.queues[0]
        waiting = first.transfer(BLKIF_OP.READ, 0, [first.buffer()])
        first.kick()
        for index, queue in enumerate(frontend.queues[1:], 1):
            assert queue.write(index * 8, pattern(4096, index)) == OKAY
        first.collect()
        assert waiting not in first.answers
        backing.hold.set()
        assert first.wait(waiting) == [OKAY]
    assert [image.read_bytes()[index * 4096 :][:4096] for index in (1, 2, 3)] == [
        pattern(4096, index) for index in (1, 2, 3)
    ]


def test_the_lock_is_free_while_the_disk_is_slow(image: Path) -> None:
    backing = Watched(image)
    with plugged(disk_of(image), backing=backing) as frontend:
        queue = frontend.connect()
        backing.hold.clear()
        request = queue.transfer(BLKIF_OP.READ, 0, [queue.buffer()])
        queue.kick()
        assert frontend.services.lock.acquire(timeout=60)
        frontend.services.lock.release()
        backing.hold.set()
        assert queue.wait(request) == [OKAY]


def test_connecting_again_and_again(frontend: BlkFrontend) -> None:
    for round_number in range(5):
        queue = frontend.connect(queues=1 + round_number % 2, persistent=bool(round_number % 2))
        assert queue.write(0, pattern(4096, round_number)) == OKAY
        frontend.switch(XenbusState.Closing)
        frontend.switch(XenbusState.Closed)
        frontend.await_state(XenbusState.Closed)
        frontend.services.store.rm(f"{frontend.path}/multi-queue-num-queues")
        frontend.switch(XenbusState.Initialising)
        frontend.await_state(XenbusState.InitWait)


def test_closing_waits_for_the_request_under_way(image: Path) -> None:
    backing = Watched(image)
    with plugged(disk_of(image), backing=backing) as frontend:
        queue = frontend.connect()
        backing.hold.clear()
        buffer = queue.buffer()
        queue.transfer(BLKIF_OP.READ, 0, [buffer])
        queue.kick()
        frontend.services.until(lambda: frontend.services.in_use(buffer.gref), "the request under way")
        frontend.switch(XenbusState.Closed)
        assert frontend.backend_state is XenbusState.Connected
        backing.hold.set()
        frontend.await_state(XenbusState.Closed)
        assert not frontend.services.in_use(buffer.gref)


def test_growing(frontend: BlkFrontend, image: Path) -> None:
    queue = frontend.connect()
    assert not frontend.backend.resize()
    os.truncate(image, SIZE + 4096)
    heard: list[str] = []
    watch = frontend.services.store.watch(
        f"{frontend.backend.params.backend_path}/state", lambda path, _: heard.append(path)
    )
    heard.clear()
    assert frontend.backend.resize()
    watch.cancel()
    assert len(heard) == 1
    assert frontend.theirs("sectors") == str(SIZE // 512 + 8)
    assert queue.read(SIZE // 512) == bytes(4096)


@settings(max_examples=20)
@given(
    data=st.data(),
    layout=st.sampled_from(list(LAYOUTS)),
    persistent=st.booleans(),
)
def test_any_mix_of_requests_does_what_a_file_would(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layout: str, persistent: bool
) -> None:
    size = 64 * SECTOR_SIZE
    path = tmp_path_factory.mktemp("mix") / "disk"
    model = bytearray(pattern(size))
    path.write_bytes(model)
    with plugged(disk_of(path)) as frontend:
        queue = frontend.connect(protocol=layout, persistent=persistent)
        ids, expected = [], []
        for step in range(data.draw(st.integers(1, 12))):
            first, last = sorted(data.draw(st.tuples(st.integers(0, 7), st.integers(0, 7))))
            sector = data.draw(st.integers(0, 63 - (last - first)))
            span = slice(sector * 512, (sector + last - first + 1) * 512)
            op = data.draw(st.sampled_from([BLKIF_OP.READ, BLKIF_OP.WRITE, BLKIF_OP.WRITE_BARRIER]))
            buffer = queue.buffer(sectors=(first, last))
            if op == BLKIF_OP.READ:
                expected.append((buffer, bytes(model[span])))
            else:
                buffer.data[:] = model[span] = pattern(span.stop - span.start, step)
            send = queue.indirect if data.draw(st.booleans()) and op != BLKIF_OP.WRITE_BARRIER else queue.transfer
            ids.append(send(op, sector, [buffer]))
        assert queue.wait(*ids) == [OKAY] * len(ids)
        for buffer, content in expected:
            assert bytes(buffer.data) == content
    assert path.read_bytes() == bytes(model)
