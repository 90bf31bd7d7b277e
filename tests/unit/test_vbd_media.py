"""What disks are made of: raw files and overlays; and which of them a disk= entry means."""

from __future__ import annotations

import mmap
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vbd_rig import disk_of, plugged

from xenpy.config.disk import DiskBackend, DiskFormat
from xenpy.devices.vbd.backing import EmptyDrive, RawBacking, split
from xenpy.devices.vbd.image import open_disk
from xenpy.devices.vbd.overlay import CLUSTER, Overlay
from xenpy.errors import ConfigError

SIZE = 8 * CLUSTER + 512
CONTENT = random.Random(2).randbytes(SIZE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


@given(sizes=st.lists(st.integers(0, 9), max_size=6), at=st.integers(0, 60))
def test_split_leaves_nothing_out(sizes: list[int], at: int) -> None:
    data = bytes(range(sum(sizes)))
    views, start = [], 0
    for size in sizes:
        views.append(memoryview(data)[start : start + size])
        start += size
    head, tail = split(views, at)
    assert b"".join(head) == data[:at]
    assert b"".join(tail) == data[at:]


# -- raw --------------------------------------------------------------------------------------------------------------


def test_direct_io_goes_where_it_can(image: Path) -> None:
    disk = RawBacking(str(image), writable=True, direct=True)
    page = memoryview(mmap.mmap(-1, 8192))  # aligned as guest memory is
    disk.write([page[:512]], 512)  # what is not aligned goes through the page cache
    disk.read([page[:4096]], 512)
    assert page[:4096] == bytes(512) + CONTENT[1024:4608]
    disk.read([page], 0)
    disk.close()
    assert page[:512] == CONTENT[:512]
    assert page[512:1024] == bytes(512)
    assert page[1024:] == CONTENT[1024:8192]


def test_one_writer_or_many_readers(image: Path) -> None:
    reader, another = RawBacking(str(image), writable=False), RawBacking(str(image), writable=False)
    with pytest.raises(ConfigError, match="in use"):
        RawBacking(str(image), writable=True)
    reader.close()
    another.close()
    writer = RawBacking(str(image), writable=True)
    with pytest.raises(ConfigError, match="in use"):
        RawBacking(str(image), writable=False)
    writer.close()


def test_not_every_path_is_a_disk(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        RawBacking(str(tmp_path / "absent"), writable=True)
    with pytest.raises(ConfigError, match="cannot be opened"):
        RawBacking(str(tmp_path), writable=True)
    with pytest.raises(ConfigError, match="neither"):
        RawBacking(str(tmp_path), writable=False)
    with pytest.raises(ConfigError, match="neither"):
        RawBacking("/dev/null", writable=False)


def test_a_size_is_whole_sectors(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(bytes(1000))
    disk = RawBacking(str(path), writable=False)
    assert disk.size == 512
    disk.close()


# -- overlay ----------------------------------------------------------------------------------------------------------

sector_spans = st.tuples(st.integers(0, SIZE // 512 - 1), st.integers(1, 24)).map(
    lambda span: (span[0] * 512, min(span[0] + span[1], SIZE // 512) * 512)
)


@given(steps=st.lists(st.tuples(st.sampled_from(["write", "read", "discard"]), sector_spans), max_size=20))
def test_an_overlay_is_a_disk_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, tuple[int, int]]]
) -> None:
    path = tmp_path_factory.mktemp("overlay") / "disk"
    path.write_bytes(CONTENT)
    disk = Overlay(RawBacking(str(path), writable=False))
    model = bytearray(CONTENT)
    for number, (what, (start, end)) in enumerate(steps):
        data = memoryview(bytearray(random.Random(number).randbytes(end - start)))
        views = [data[: (end - start) // 3], data[(end - start) // 3 :]]
        match what:
            case "write":
                disk.write(views, start)
                model[start:end] = data
            case "read":
                disk.read(views, start)
                assert bytes(data) == model[start:end]
            case _:
                disk.discard(start, end - start)
                inner = slice(-(-start // CLUSTER) * CLUSTER, max(-(-start // CLUSTER), end // CLUSTER) * CLUSTER)
                model[inner] = bytes(inner.stop - inner.start)
    whole = bytearray(SIZE)
    disk.read([memoryview(whole)], 0)
    assert whole == model
    disk.close()
    assert path.read_bytes() == CONTENT


def test_an_ephemeral_disk_leaves_its_image_alone(image: Path) -> None:
    with plugged(disk_of(image), ephemeral=True) as frontend:
        queue = frontend.connect()
        assert frontend.theirs("mode") == "w"
        assert queue.write(8, b"x" * 4096) == 0
        assert queue.read(8) == b"x" * 4096
    assert image.read_bytes() == CONTENT


# -- disk= ------------------------------------------------------------------------------------------------------------


def test_targets_are_looked_for_here_and_in_dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Path) -> None:
    monkeypatch.chdir(tmp_path)
    disk = open_disk(disk_of("disk.img"))
    assert isinstance(disk, RawBacking)
    disk.close()
    with pytest.raises(ConfigError, match="neither a file nor a block device"):
        open_disk(disk_of("null", writable=False))
    assert isinstance(open_disk(disk_of("", format=DiskFormat.EMPTY)), EmptyDrive)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"script": "block-iscsi"}, "script=block-iscsi is refused"),
        ({"target": "absent.img"}, "no such file"),
        ({"target": "rbd:pool/image", "backendtype": DiskBackend.PHY}, "no such file"),
        ({"format": DiskFormat.QCOW2, "backendtype": DiskBackend.PHY}, "backendtype=phy serves format raw, not qcow2"),
        ({"format": DiskFormat.QED, "backendtype": DiskBackend.TAP}, "backendtype=tap serves format raw, vhd, not qed"),
    ],
)
def test_disks_that_are_refused(image: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_disk(disk_of(**{"target": image, **fields}))


def test_nothing_is_left_open(image: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for ephemeral in (False, True):
        open_disk(disk_of(image, direct_io_safe=True), ephemeral=ephemeral).close()
    with pytest.raises(ConfigError):
        RawBacking("/dev/null", writable=True, direct=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
