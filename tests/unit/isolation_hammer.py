"""A frontend that keeps a disk busy and knows what must be on it, whatever happens to whoever serves it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from xenbus_rig import PATIENCE

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP, SEGMENT
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from vbd_rig import BlkFrontend, Buffer, Queue

SLOT_PAGES = 12
"""One more than fits into a direct request, so that some are indirect."""
_DIRECT_PAGES = 11
_MERCY = 3
"""Of as many victims, one is let do something."""
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

    def flush(self, request_id: int) -> None:
        """Put a flush into the ring."""
        self._queue.ring.put(self._queue.layout.request.pack(BLKIF_OP.FLUSH_DISKCACHE, 0, 0, request_id, 0))
        self.under = _Under(BLKIF_OP.FLUSH_DISKCACHE, 0, [])

    def check(self) -> _Under:
        """Check what a read has brought, and return the request that has been answered."""
        under, self.under = self.under, None
        assert under is not None
        for buffer, content in zip(self.buffers, under.contents, strict=False):
            assert buffer.view == content, f"block {under.first} and on: not what was written last"
        return under


class Hammer:
    """Random reads and writes of whole blocks, never two under way for one block, so that the outcome of each is known."""

    def __init__(
        self, frontend: BlkFrontend, queue: Queue, image: Callable[[], bytes], seed: int, *, depth: int = 24,
        flushes: float = 0.0,
    ) -> None:  # fmt: skip
        """`image` returns what is on the disk; so many of the requests are `flushes`."""
        self._frontend = frontend
        self._queue = queue
        self._image = image
        self._random = random.Random(seed)
        self._flushes = flushes
        data = image()
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
        if self._random.random() < self._flushes:
            slot.flush(request_id)
            return
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

    def settle(self) -> None:
        """Wait for all answers."""

        def answered() -> bool:
            self._queue.collect()
            return self._queue.answers.keys() >= {key for key, slot in self._slots.items() if slot.under is not None}

        self._queue.kick()
        self._frontend.services.until(answered, "the last answers")
        for request_id in self._queue.answers:
            under = self._slots[request_id].check()
            self._blocks[under.first : under.first + len(under.contents)] = under.contents
        self._queue.answers.clear()

    def finish(self) -> None:
        """Wait for all answers; then compare the image with what was written."""
        self.settle()
        expected, found = (hashlib.sha256(data).hexdigest() for data in (b"".join(self._blocks), self._image()))
        assert expected == found


class Killer:
    """A thread that kills a process again and again, at moments that nobody chose.

    `victim` returns the process, if there is one, `deaths` how many have been noticed, `progress` changes when something is done. Some of
    the victims are let do something first: on a busy host all might die before, and who dies for nothing is given up.
    """

    def __init__(
        self,
        victim: Callable[[], int | None],
        deaths: Callable[[], int],
        progress: Callable[[], object],
        kills: int,
        seed: int,
        *,
        longest_s: float,
    ) -> None:
        self._victim = victim
        self._deaths = deaths
        self._progress = progress
        self._kills = kills
        self._random = random.Random(seed)
        self._longest_s = longest_s
        self._killed: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Tell whether there is killing to be done."""
        return self._thread.is_alive()

    def _await_victim(self) -> int:
        while (pid := self._victim()) is None or pid == self._killed:  # whose death is known may not be gone yet
            time.sleep(0.0002)
        return pid

    def _run(self) -> None:
        for number in range(self._kills):
            self._await_victim()
            before_work, deadline = self._progress(), time.monotonic() + PATIENCE
            while not number % _MERCY and self._progress() == before_work and time.monotonic() < deadline:
                time.sleep(0.0002)
            time.sleep(self._random.uniform(0, self._longest_s))
            pid = self._await_victim()
            before = self._deaths()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self._killed = pid
            deadline = time.monotonic() + PATIENCE
            while self._deaths() == before and time.monotonic() < deadline:
                time.sleep(0.0002)
