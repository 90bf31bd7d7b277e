"""Images that QEMU serves, the servers' deaths, and servers of NBD that make no sense."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from vbd_rig import disk_of, plugged

from xenpy.abi.xenbus import XenbusState
from xenpy.config.disk import DiskFormat
from xenpy.devices.isolation import patience
from xenpy.devices.vbd.backing import EmptyDrive
from xenpy.devices.vbd.image import open_disk
from xenpy.devices.vbd.nbd import NbdBacking, NbdConnection
from xenpy.devices.vbd.overlay import CLUSTER
from xenpy.devices.vbd.qemu import QemuImage
from xenpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 8 * CLUSTER + 512
CONTENT = random.Random(2).randbytes(SIZE)
BLANK = bytes(4096)

GREETING = b"NBDMAGIC" + b"IHAVEOPT" + b"\0\1"
REPLY = b"\x00\x03\xe8\x89\x04\x55\x65\xa9" + b"\0\0\0\7"
EXPORT = REPLY + b"\0\0\0\3" + b"\0\0\0\x0c" + b"\0\0" + (1 << 20).to_bytes(8) + b"\0\x25"
ACK = REPLY + b"\0\0\0\1" + b"\0\0\0\0"

needs_qemu = pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="qemu-nbd is not installed (qemu-utils)")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(CONTENT)
    return path


def make_image(path: Path, kind: str) -> Path:
    driver = {"vhd": "vpc"}.get(kind, kind)
    subprocess.run(["qemu-img", "create", "-q", "-f", driver, str(path), "8M"], check=True, timeout=60)
    return path


def kill(disk: QemuImage) -> None:
    """End the server of an image the way that leaves it no choice."""
    assert disk.pid is not None
    os.kill(disk.pid, signal.SIGKILL)


@needs_qemu
@pytest.mark.parametrize("kind", ["qcow", "qcow2", "vhd", "qed"])
def test_every_format(tmp_path: Path, kind: str) -> None:
    path = make_image(tmp_path / f"disk.{kind}", kind)
    data = random.Random(kind).randbytes(4096)
    for ephemeral, expected in ((False, BLANK), (True, data), (False, data)):
        with plugged(disk_of(path, format=DiskFormat(kind)), ephemeral=ephemeral) as frontend:
            queue = frontend.connect(queues=2)
            assert queue.read(64) == expected
            assert frontend.queues[1].write(64, bytes(reversed(data)) if ephemeral else data) == 0
            assert queue.simple(3) == 0
            assert queue.wait(queue.discard(128, 8)) == [0]
            assert queue.read(64) == (bytes(reversed(data)) if ephemeral else data)


@needs_qemu
def test_a_read_only_image(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk.qcow2", "qcow2")
    with plugged(disk_of(path, format=DiskFormat.QCOW2, writable=False)) as frontend:
        queue = frontend.connect()
        assert queue.read(0) == BLANK
        assert queue.write(0, BLANK) == -1


@needs_qemu
def test_an_image_that_is_none(image: Path) -> None:
    with pytest.raises(ConfigError, match=r"disk\.img.*not in qcow2 format"):
        open_disk(disk_of(image, format=DiskFormat.QCOW2))


@needs_qemu
def test_an_image_is_locked_while_in_use(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk.qcow2", "qcow2")
    disk = open_disk(disk_of(path, format=DiskFormat.QCOW2))
    try:
        with pytest.raises(ConfigError, match="lock"):
            open_disk(disk_of(path, format=DiskFormat.QCOW2))
    finally:
        disk.close()


@needs_qemu
def test_an_image_grows_under_its_guest(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk.qcow2", "qcow2")
    data = random.Random(4).randbytes(4096)
    with plugged(disk_of(path, format=DiskFormat.QCOW2)) as frontend:
        queue = frontend.connect()
        assert queue.write(8, data) == 0
        assert frontend.backend.resize(16 << 20)
        assert frontend.theirs("sectors") == str((16 << 20) // 512)
        assert queue.write((12 << 20) // 512, data) == 0
        assert [queue.read(sector) for sector in (8, (12 << 20) // 512)] == [data] * 2
        for size, message in ((8 << 20, "made larger only"), ((16 << 20) + 1, "not whole sectors")):
            with pytest.raises(ConfigError, match=message):
                frontend.backend.resize(size)


def test_what_does_not_grow(image: Path) -> None:
    for disk in (open_disk(disk_of(image), ephemeral=True), open_disk(disk_of(image, writable=False))):
        with pytest.raises(ConfigError, match="keeps its size"):
            disk.grow(1 << 20)
        disk.close()
    with pytest.raises(ConfigError, match="empty drive"):
        EmptyDrive().grow(512)


@needs_qemu
def test_qemu_that_dies_is_started_anew_and_has_forgotten_nothing(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk.qcow2", "qcow2")
    disk = open_disk(disk_of(path, format=DiskFormat.QCOW2))
    assert isinstance(disk, QemuImage)
    with plugged(disk_of(path, format=DiskFormat.QCOW2), backing=disk) as frontend:
        queue = frontend.connect()
        data = random.Random(3).randbytes(4096)
        assert queue.write(8, data) == 0
        for number in range(3):
            kill(disk)
            assert queue.read(8) == data
            assert queue.write(512 * number + 16, data) == 0
        assert queue.simple(3) == 0
        frontend.services.until(lambda: disk.deaths == 3, "the last death")
    with plugged(disk_of(path, format=DiskFormat.QCOW2)) as frontend:
        queue = frontend.connect()
        assert [queue.read(sector) for sector in (8, 16, 528, 1040)] == [data] * 4


@needs_qemu
def test_qemu_that_dies_while_nobody_asks_is_started_anew(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk.qcow2", "qcow2")
    disk = open_disk(disk_of(path, format=DiskFormat.QCOW2))
    assert isinstance(disk, QemuImage)
    before = disk.pid
    with plugged(disk_of(path, format=DiskFormat.QCOW2), backing=disk) as frontend:
        kill(disk)
        frontend.services.until(lambda: disk.deaths == 1 and disk.pid not in (None, before), "the next one")
        assert frontend.connect().read(0) == BLANK


@needs_qemu
def test_an_image_that_qemu_cannot_open_any_more_costs_the_device(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk.qcow2", "qcow2")
    disk = open_disk(disk_of(path, format=DiskFormat.QCOW2))
    assert isinstance(disk, QemuImage)
    with plugged(disk_of(path, format=DiskFormat.QCOW2), backing=disk) as frontend:
        queue = frontend.connect()
        assert queue.read(0) == BLANK
        path.write_bytes(b"nonsense" * 1000)
        kill(disk)
        queue.transfer(0, 0, [queue.buffer()])
        queue.kick()
        frontend.await_state(XenbusState.Closing)
        assert "not in qcow2 format" in frontend.services.store.read(frontend.backend.params.error_path)


@needs_qemu
def test_qemu_that_dies_for_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_MAX_DEATHS", 2)
    path = make_image(tmp_path / "disk.qcow2", "qcow2")
    disk = open_disk(disk_of(path, format=DiskFormat.QCOW2))
    assert isinstance(disk, QemuImage)
    with plugged(disk_of(path, format=DiskFormat.QCOW2), backing=disk) as frontend:
        queue = frontend.connect()

        def closed() -> bool:
            if disk.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(disk.pid, signal.SIGKILL)
            if not queue.ring.req_prod:
                queue.transfer(0, 0, [queue.buffer()])
                queue.kick()
            return frontend.backend_state is XenbusState.Closing

        frontend.services.until(closed, "that it is given up")
        assert "its qemu-nbd died 3 times" in frontend.services.store.read(frontend.backend.params.error_path)


def test_without_qemu(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(HostError, match="qemu-utils"):
        open_disk(disk_of(image, format=DiskFormat.QCOW2))


def serve(path: Path, talk: Callable[[socket.socket], None]) -> threading.Thread:
    """Accept one connection at a unix socket and have `talk` speak to it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener, listener.accept()[0] as peer, suppress(ConnectionError):  # who has heard enough hangs up
            talk(peer)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "words",
    [
        b"", b"NBD", b"X" * 18, b"NBDMAGIC" + b"IHAVEOPT" + b"\0\0", GREETING, GREETING + ACK, GREETING + b"\0" * 20,
        GREETING + REPLY + b"\x80\0\0\6" + b"\0\0\0\4gone", GREETING + REPLY + b"\0\0\0\3" + b"\xff\xff\xff\xff",
        GREETING + (REPLY + b"\0\0\0\3" + b"\0\0\0\2\0\7") * 100,
    ],
)  # fmt: skip
def test_servers_that_make_no_sense(tmp_path: Path, words: bytes) -> None:
    server = serve(tmp_path / "s", lambda peer: peer.sendall(words))
    with pytest.raises((HostError, OSError)):
        NbdConnection(tmp_path / "s")
    server.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x67\x44\x66\x98" + b"\0\0\0\0" + (99).to_bytes(8) + bytes(512),
        b"\x67\x44\x66\x98" + b"\0\0\0\x1c" + (1).to_bytes(8),
        b"\x67\x44\x66\x98" + b"\0\0\0\0" + (1).to_bytes(8) + b"short",
    ],
)
def test_answers_that_make_no_sense(tmp_path: Path, answer: bytes) -> None:
    server = serve(tmp_path / "s", lambda peer: peer.sendall(GREETING + EXPORT + ACK + answer))
    disk = NbdBacking([NbdConnection(tmp_path / "s")])
    assert (disk.size, disk.writable, disk.can_discard) == (1 << 20, True, True)
    with pytest.raises(OSError, match=r"NBD|space"):
        disk.read([memoryview(bytearray(512))], 0)
    disk.close()
    server.join()
