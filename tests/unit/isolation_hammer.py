"""A frontend that keeps a disk busy and knows what must be on it, whatever happens to whoever serves it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from isolation_rig import keeper
from xenbus_rig import PATIENCE

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP, SEGMENT
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from vbd_rig import BlkFrontend, Buffer, Queue

SLOT_PAGES = 12
"""One more than fits into a direct request, so that some are indirect."""
_DIRECT_PAGES = 11
_BLOCK_SECTORS = PAGE_SIZE // 512


class _Under(NamedTuple):
    """A request under way: blocks `first` and on, and what they will hold (a write) or must hold (a read)."""

    op: BLKIF_OP
    first: int
    contents: list[bytes]


class Slot:
    """The pages of one request at a time."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.buffers: list[Buffer] = [queue.buffer() for _ in range(SLOT_PAGES)]
        self._indirect = queue.buffer()
        self.under: _Under | None = None

    def request(self, request_id: int, under: _Under) -> None:
        """Put a request into the ring."""
        used = self.buffers[: len(under.contents)]
        for buffer, content in zip(used, under.contents, strict=True):
            buffer.view[:] = content if under.op is BLKIF_OP.WRITE else bytes(PAGE_SIZE)
        layout, sector = self._queue.layout, under.first * _BLOCK_SECTORS
        segments = b"".join(SEGMENT.pack(buffer.gref, 0, _BLOCK_SECTORS - 1) for buffer in used)
        if len(used) <= _DIRECT_PAGES:
            entry = layout.request.pack(under.op, len(used), 0, request_id, sector) + segments
        else:
            self._indirect.view[: len(segments)] = segments
            grefs = [self._indirect.gref] + [0] * 7
            entry = layout.indirect.pack(BLKIF_OP.INDIRECT, under.op, len(used), request_id, sector, 0, *grefs)
        self._queue.ring.put(entry)
        self.under = under

    def check(self) -> _Under:
        """Check what a read has brought, and return the request that has been answered."""
        under, self.under = self.under, None
        assert under is not None
        for buffer, content in zip(self.buffers, under.contents, strict=False):
            assert buffer.view == content, f"block {under.first} and on: not what was written last"
        return under


class Hammer:
    """Random reads and writes of whole blocks, never two under way for one block, so that the outcome of each is known."""

    def __init__(self, frontend: BlkFrontend, queue: Queue, image: Path, seed: int, *, depth: int = 24) -> None:
        self._frontend = frontend
        self._queue = queue
        self._image = image
        self._random = random.Random(seed)
        data = image.read_bytes()
        self._blocks = [data[start : start + PAGE_SIZE] for start in range(0, len(data), PAGE_SIZE)]
        self._busy: set[int] = set()
        self._slots = {queue.new_id(): Slot(queue) for _ in range(depth)}
        self.done = 0

    def turn(self) -> None:
        """Take in what has been answered, check it, and ask for as much again."""
        self._queue.collect()
        for request_id, (_, status) in self._queue.answers.items():
            assert status == BLKIF_RSP.OKAY
            under = self._slots[request_id].check()
            blocks = range(under.first, under.first + len(under.contents))
            self._busy.difference_update(blocks)
            self._blocks[blocks.start : blocks.stop] = under.contents
            self.done += 1
        self._queue.answers.clear()
        for request_id, slot in self._slots.items():
            if slot.under is None:
                self._begin(request_id, slot)
        self._queue.kick()

    def _begin(self, request_id: int, slot: Slot) -> None:
        count = self._random.randint(1, SLOT_PAGES)
        first = self._random.randrange(len(self._blocks) - count)
        if not self._busy.isdisjoint(range(first, first + count)):
            return
        self._busy.update(range(first, first + count))
        contents = self._blocks[first : first + count]
        op = self._random.choice((BLKIF_OP.READ, BLKIF_OP.WRITE))
        if op is BLKIF_OP.WRITE:
            contents = [self._random.randbytes(64) * (PAGE_SIZE // 64) for _ in contents]
        slot.request(request_id, _Under(op, first, contents))

    def run(self, killer: Killer) -> None:
        """Keep the disk busy while there is killing to be done. Fails if it stands still."""
        last, since = self.done, time.monotonic()
        while killer.busy:
            self.turn()
            self._frontend.services.pump()
            if self.done != last:
                last, since = self.done, time.monotonic()
            assert time.monotonic() - since < PATIENCE, "the disk stands still"
            time.sleep(0.0005)

    def finish(self) -> None:
        """Wait for all answers; then compare the image with what was written."""

        def answered() -> bool:
            self._queue.collect()
            return self._queue.answers.keys() >= {key for key, slot in self._slots.items() if slot.under is not None}

        self._queue.kick()
        self._frontend.services.until(answered, "the last answers")
        for request_id in self._queue.answers:
            under = self._slots[request_id].check()
            self._blocks[under.first : under.first + len(under.contents)] = under.contents
        expected, found = (
            hashlib.sha256(data).hexdigest() for data in (b"".join(self._blocks), self._image.read_bytes())
        )
        assert expected == found


class Killer:
    """A thread that kills the process which serves a disk, again and again, at moments that nobody chose."""

    def __init__(self, frontend: BlkFrontend, kills: int, seed: int, *, longest_s: float) -> None:
        self._keeper = keeper(frontend)
        self._kills = kills
        self._random = random.Random(seed)
        self._longest_s = longest_s
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Tell whether there is killing to be done."""
        return self._thread.is_alive()

    def _run(self) -> None:
        for death in range(1, self._kills + 1):
            while (process := self._keeper.process) is None:
                time.sleep(0.0002)
            time.sleep(self._random.uniform(0, self._longest_s))
            os.kill(process.pid, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE
            while self._keeper.deaths < death and time.monotonic() < deadline:
                time.sleep(0.0002)
