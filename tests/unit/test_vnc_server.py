"""VNC over a network, with viewers that are not ours among others."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from vnc_rig import HEIGHT, WIDTH, Hands, noise, painted

from xenpy.config.devices import VNC_PORT
from xenpy.devices.vnc.frame import Frame, Rect
from xenpy.devices.vnc.server import Server, listen
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# -- over a network ---------------------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(grab: Callable[[], Frame], hands: Hands | None = None, password: str | None = None) -> Server:
        server = Server("a guest", listen("127.0.0.1", 0, unused=True), grab, hands or Hands(), password)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


def test_ports_that_are_taken() -> None:
    with listen("127.0.0.1", 40, unused=True) as first:
        port = first.getsockname()[1]
        with listen("127.0.0.1", port - VNC_PORT, unused=True) as second:
            assert second.getsockname()[1] > port
        with pytest.raises(HostError, match=rf"port {port} .*: Address already in use; vncunused=1"):
            listen("127.0.0.1", port - VNC_PORT, unused=False)
    with pytest.raises(HostError, match="vnclisten="):
        listen("no.such.host.invalid", 0, unused=True)


def talk(server: Server, *, shared: bool = True) -> socket.socket:
    """Connect, and say what comes first."""
    sock = socket.create_connection(server.address, timeout=60)
    sock.sendall(b"RFB 003.008\n\1" + bytes([shared]))
    assert read(sock, 12 + 2 + 4)[:12] == b"RFB 003.008\n"
    read(sock, 20)
    read(sock, struct.unpack(">I", read(sock, 4))[0])
    return sock


def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more
        data += more
    return data


def asked(sock: socket.socket, *, incremental: bool) -> list[tuple[Rect, bytes]]:
    """Ask for an update in raw pixels, and return it."""
    sock.sendall(struct.pack(">BBHHHH", 3, incremental, 0, 0, 65535, 65535))
    _, count = struct.unpack(">BxH", read(sock, 4))
    result = []
    for _ in range(count):
        *place, _encoding = struct.unpack(">HHHHi", read(sock, 12))
        rect = Rect(*place)
        result.append((rect, read(sock, rect.width * rect.height * 4)))
    return result


def test_viewers_do_not_hurt_each_other(serve: Callable[..., Server]) -> None:
    frames = [noise(800, 600)]
    server = serve(lambda: frames[-1])
    with (
        talk(server) as first,
        talk(server) as second,
        talk(server) as deaf,
        socket.create_connection(server.address) as mute,
    ):
        assert asked(first, incremental=False) == [(frames[0].whole, frames[0].data)]
        for _ in range(50):  # asks for more than it ever reads
            deaf.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, 65535, 65535))
        with talk(server) as rude:
            rude.sendall(b"\x99")
            assert rude.recv(1) == b""
        assert asked(second, incremental=False) == [(frames[0].whole, frames[0].data)]
        dot = Rect(700, 500, 2, 2)
        threading.Timer(0.1, lambda: frames.append(painted(frames[0], dot))).start()
        for sock in (first, second):
            assert asked(sock, incremental=True) == [(dot, b"\1\2\3\0" * 4)]
        with talk(server, shared=False) as alone:
            assert asked(alone, incremental=False) == [(frames[1].whole, frames[1].data)]
            assert first.recv(1) == b""
            assert second.recv(1) == b""
        assert mute.recv(12) == b"RFB 003.008\n"


def test_a_viewer_that_leaves_lets_go_of_its_keys(serve: Callable[..., Server]) -> None:
    hands = Hands()
    server = serve(noise, hands)
    with talk(server) as sock:
        sock.sendall(struct.pack(">BB2xI", 4, 1, ord("q")))
    assert hands.released.wait(60)
    assert hands.keys == [(16, True), (16, False)]


@pytest.mark.parametrize("password", [None, "geheim"])
def test_an_unmodified_viewer(serve: Callable[..., Server], tmp_path: Path, password: str | None) -> None:
    vncdo = shutil.which("vncdo", path=str(Path(sys.executable).parent)) or shutil.which("vncdo")
    if vncdo is None:
        pytest.skip("there is no vncdo: pip install vncdotool")
    image = pytest.importorskip("PIL.Image", reason="vncdo's pictures need Pillow")
    frame = noise()
    hands = Hands()
    server = serve(lambda: frame, hands, password)
    host, port = server.address
    picture = tmp_path / "seen.png"
    words = ["-p", password] if password else []
    command = [
        vncdo,
        "-s",
        f"{host}::{port}",
        *words,
        "key",
        "a",
        "move",
        "30",
        "20",
        "click",
        "1",
        "capture",
        str(picture),
    ]
    subprocess.run(command, check=True, timeout=120)
    with image.open(picture) as seen:
        assert seen.size == (WIDTH, HEIGHT)
        rgb = seen.convert("RGB").tobytes()
    assert (rgb[0::3], rgb[1::3], rgb[2::3]) == (frame.data[2::4], frame.data[1::4], frame.data[0::4])
    assert hands.keys == [(30, True), (30, False)]
    assert hands.places[-2:] == [(30, 20, 1), (30, 20, 0)]


def test_gtk_vnc(serve: Callable[..., Server], tmp_path: Path) -> None:
    capture = shutil.which("gvnccapture")
    if capture is None:
        pytest.skip("there is no gvnccapture (Debian: apt install gvncviewer)")
    image = pytest.importorskip("PIL.Image", reason="to read a picture needs Pillow")
    frame = noise(200, 100)
    host, port = serve(lambda: frame).address
    picture = tmp_path / "seen.png"
    subprocess.run([capture, "-q", f"{host}:{port - VNC_PORT}", str(picture)], check=True, timeout=120)
    with image.open(picture) as seen:
        rgb = seen.convert("RGB").tobytes()
    assert (rgb[0::3], rgb[1::3], rgb[2::3]) == (frame.data[2::4], frame.data[1::4], frame.data[0::4])
