"""Disks, through the ring: frontends that break the rules, which costs them the device and nobody anything else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vbd_rig import BlkFrontend, Buffer, disk_of, plugged

from xenpy.abi.blkif import BLKIF_OP, LAYOUTS, SECTOR_SIZE, BlkifLayout
from xenpy.abi.ring import SRING_REQ_PROD, SRING_RSP_PROD
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.vbd.requests import decode
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECTORS = 256
NOBODYS_GREF = 400


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[BlkFrontend]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SECTORS * SECTOR_SIZE))
    with plugged(disk_of(path)) as frontend:
        yield frontend


def expect_closed(frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], reason: str) -> None:
    """Wait for the device's end, see that it was said once, and that the guest may start over."""
    frontend.await_state(XenbusState.Closing)
    services = frontend.services
    services.until(lambda: not services.bound, "ports given back")
    error = services.store.read(frontend.backend.params.error_path)
    assert reason in error
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "vbd 51712" in lines[0]
    assert reason in lines[0]
    frontend.switch(XenbusState.Closed)
    frontend.await_state(XenbusState.Closed)
    assert not services.gnttab.describe()[1:]
    frontend.switch(XenbusState.Initialising)
    queue = frontend.connect()
    assert queue.read(0) == bytes(PAGE_SIZE)


@pytest.mark.parametrize("claim", [33, 1 << 31, (1 << 32) - 1])
def test_a_wild_ring_index(frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], claim: int) -> None:
    queue = frontend.connect()
    queue.ring.words[SRING_REQ_PROD] = claim
    frontend.services.send(queue.port)
    expect_closed(frontend, capsys, "req_prod")


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("gref", [NOBODYS_GREF, 1 << 20, (1 << 32) - 1])
def test_a_grant_that_is_none(
    frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], gref: int, persistent: bool
) -> None:
    queue = frontend.connect(persistent=persistent)
    queue.transfer(BLKIF_OP.READ, 0, [queue.buffer(), Buffer(gref, memoryview(b""), 0, 7)])
    queue.kick()
    expect_closed(frontend, capsys, f"grant {gref}")


def test_a_grant_to_read_where_we_would_write(frontend: BlkFrontend, capsys: pytest.CaptureFixture[str]) -> None:
    queue = frontend.connect()
    queue.transfer(BLKIF_OP.READ, 0, [queue.buffer(readonly=True)])
    queue.kick()
    expect_closed(frontend, capsys, "read-only")


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 8), (5, 4), (255, 255), (8, 8)],
)
@pytest.mark.parametrize("indirect", [False, True])
def test_sectors_that_no_page_has(
    frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], first: int, last: int, indirect: bool
) -> None:
    queue = frontend.connect()
    put = queue.indirect if indirect else queue.transfer
    put(BLKIF_OP.READ, 0, [queue.buffer()._replace(first=first, last=last)])
    queue.kick()
    expect_closed(frontend, capsys, "segment of sectors")


@pytest.mark.parametrize("count", [0, 12, 255])
def test_a_wrong_number_of_segments(frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], count: int) -> None:
    queue = frontend.connect()
    queue.ring.put(queue.layout.request.pack(BLKIF_OP.READ, count, 0, 1, 0))
    queue.kick()
    expect_closed(frontend, capsys, "segments")


@pytest.mark.parametrize("count", [0, 257, 65535])
def test_a_wrong_number_of_indirect_segments(
    frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    queue = frontend.connect()
    queue.ring.put(queue.layout.indirect.pack(BLKIF_OP.INDIRECT, BLKIF_OP.READ, count, 1, 0, 0, *[0] * 8))
    queue.kick()
    expect_closed(frontend, capsys, "segments")


@pytest.mark.parametrize("op", [2, 3, 5, 6, 77])
def test_an_indirect_request_that_moves_no_data(
    frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], op: int
) -> None:
    queue = frontend.connect()
    queue.indirect(op, 0, [queue.buffer()])
    queue.kick()
    expect_closed(frontend, capsys, "indirect")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ({"ring-ref": "x"}, "ring-ref"),
        ({"ring-ref": NOBODYS_GREF}, "gref"),
        ({"ring-ref": 1 << 40}, "ring-ref"),
        ({"event-channel": 0}, "event-channel"),
        ({"event-channel": 999}, "999"),
        ({"protocol": "arm-abi"}, "protocol"),
        ({"ring-page-order": 5}, "ring-page-order"),
        ({"num-ring-pages": 3}, "ring pages"),
        ({"ring-page-order": 2}, "ring-ref0"),
        ({"multi-queue-num-queues": 0}, "multi-queue-num-queues"),
        ({"multi-queue-num-queues": 5}, "multi-queue-num-queues"),
        ({"multi-queue-num-queues": 2}, "queue-0"),
        ({"feature-persistent": "yes"}, "feature-persistent"),
    ],
)
def test_nodes_that_make_no_sense(
    frontend: BlkFrontend, capsys: pytest.CaptureFixture[str], nodes: dict[str, str | int], reason: str
) -> None:
    frontend.connect(nodes=nodes)
    assert frontend.backend_state is XenbusState.Closing
    if reason != "gref":
        assert reason in capsys.readouterr().err
    assert not frontend.services.bound
    assert not frontend.services.gnttab.describe()[1:]


def test_one_port_for_two_queues(frontend: BlkFrontend) -> None:
    frontend.connect(queues=1)
    frontend.switch(XenbusState.Closed)
    frontend.await_state(XenbusState.Closed)
    frontend.switch(XenbusState.Initialising)
    first = frontend.queues[0].nodes()
    frontend.write({"multi-queue-num-queues": 2})
    for index in range(2):
        frontend.write({f"queue-{index}/{name}": value for name, value in first.items()})
    frontend.switch(XenbusState.Initialised)
    assert frontend.backend_state is XenbusState.Closing
    assert not frontend.services.bound
    assert not frontend.services.gnttab.describe()[1:]


def test_requests_without_end_keep_nobody_else_waiting(frontend: BlkFrontend) -> None:
    frontend.connect(queues=2)
    busy, other = frontend.queues
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            while busy.ring.room:
                busy.transfer(BLKIF_OP.FLUSH_DISKCACHE, 0, [])
            busy.kick()
            busy.ring.take(busy.layout.response.size)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        for sector in range(0, 64, 8):
            assert other.read(sector) == bytes(PAGE_SIZE)
        frontend.switch(XenbusState.Closed)
        frontend.await_state(XenbusState.Closed)
    finally:
        stop.set()
        flooding.join()


@settings(max_examples=40)
@given(
    entries=st.lists(st.binary(min_size=112, max_size=112), min_size=1, max_size=8),
    prod=st.none() | st.integers(0, (1 << 32) - 1),
)
def test_noise_in_the_ring(tmp_path_factory: pytest.TempPathFactory, entries: list[bytes], prod: int | None) -> None:
    path = tmp_path_factory.mktemp("noise") / "disk"
    path.write_bytes(bytes(SECTORS * SECTOR_SIZE))
    with plugged(disk_of(path)) as frontend:
        queue = frontend.connect()
        for entry in entries:
            queue.ring.put(entry)
        if prod is not None:
            queue.ring.req_prod = prod
        queue.kick()
        frontend.services.send(queue.port)
        expected = queue.ring.req_prod

        def settled() -> bool:
            answered = queue.ring.words[SRING_RSP_PROD]
            return frontend.backend_state is XenbusState.Closing or answered == expected

        frontend.services.until(settled, "answers or the end")


@given(entry=st.binary(min_size=112, max_size=112), layout=st.sampled_from(list(LAYOUTS.values())))
def test_noise_is_decoded_or_refused(entry: bytes, layout: BlkifLayout) -> None:
    try:
        request = decode(entry, layout)
    except FrontendError:
        return
    assert all(0 <= segment.first <= segment.last < 8 for segment in request.segments)
    assert len(request.segments) <= 11
    assert request.nr_segments <= 256
