"""How frames are put on a stream: so that who reads it never has to put one together from three pieces."""

from __future__ import annotations

import random
import socket
import threading
from itertools import accumulate
from typing import TYPE_CHECKING

import pytest
from loop_rig import in_thread

from xenpy.devices.vif.frame import Frame
from xenpy.devices.vif.stream import LENGTH, StreamLink
from xenpy.loop import Loop

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenpy.devices.vif.frame import Buffer

BUFFER = 1 << 15
"""What the kernel puts into one buffer at least, of what is sent at once."""
SIZES = 60, 1514, 4000, BUFFER, 36544, 0xFFFF


class Sink:
    """An interface that takes everything and sends nothing."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.idle = threading.Event()

    def deliver(self, frames: Sequence[Frame]) -> int:
        return len(frames)

    def link_idle(self) -> None:
        self.idle.set()

    def link_changed(self, *, up: bool) -> None:
        pass


class Noted(socket.socket):
    """A socket that remembers how much was sent at a time."""

    def __init__(self, family: int, type_: int, proto: int = 0, fileno: int | None = None) -> None:
        super().__init__(family, type_, proto, fileno)
        self.offered: list[int] = []
        self.taken: list[int] = []

    def _note(self, offered: int, taken: int) -> int:
        self.offered.append(offered)
        self.taken.append(taken)
        return taken

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:  # type: ignore[override]
        return self._note(sum(map(len, buffers)), super().sendmsg(buffers))

    def send(self, data: Buffer, flags: int = 0) -> int:  # type: ignore[override]
        return self._note(len(data), super().send(data, flags))


@pytest.fixture
def loop() -> Iterator[Loop]:
    with in_thread(Loop()) as loop:
        yield loop


@pytest.mark.parametrize("seed", range(5))
def test_no_frame_is_cut_twice(loop: Loop, seed: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stream = Noted(socket.AF_UNIX, socket.SOCK_STREAM, fileno=ours.detach())
    sink, link = Sink(), StreamLink(loop, lambda: None)
    link.attach(sink)
    link.use(stream)
    chance = random.Random(seed)
    sent: list[bytes] = []
    while not link.busy or len(sent) < 100:
        burst = [chance.randbytes(chance.choice(SIZES)) for _ in range(chance.randrange(1, 30))]
        with sink.lock:
            link.send([Frame([data[:42], data[42:]], len(data)) for data in burst])
        sent += burst
    whole = b"".join(LENGTH.pack(len(data)) + data for data in sent)
    received = b""
    theirs.settimeout(20)
    with theirs:
        while len(received) < len(whole):
            received += theirs.recv(1 << 20)
    assert received == whole
    assert sink.idle.wait(20)
    with sink.lock:
        link.close()
    borders = set(accumulate(LENGTH.size + len(data) for data in sent))
    place = 0
    for offered, taken in zip(stream.offered, stream.taken, strict=True):
        inside = [border for border in range(place + 1, place + offered) if border in borders]
        assert place + offered in borders
        assert offered <= BUFFER or not inside, "a large frame goes by itself"
        assert taken == offered or taken >= BUFFER, "and what fits into one buffer is taken or not"
        place += taken
