"""Images of the formats that QEMU knows, through a qemu-nbd on a unix socket of our own, which may die.

What QEMU has acknowledged and not flushed may be in its memory alone (where a qcow2 image has put a cluster, for one), so writes are kept
until a flush has come back, and done again by the next server. Requests under way are done again by who made them.

Ref: qemu-nbd(8)
"""

from __future__ import annotations

import errno
import os
import threading
import time
from typing import TYPE_CHECKING, Final, TypeVar

from xenpy import log
from xenpy.devices.isolation.patience import Patience
from xenpy.devices.vbd.backing import check_growth
from xenpy.devices.vbd.nbd import NbdBacking, ServerGone
from xenpy.devices.vbd.qemu_server import QemuServer
from xenpy.devices.vbd.unflushed import Unflushed
from xenpy.errors import HostError, XenpyError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping

    from xenpy.devices.vbd.backing import Views

T = TypeVar("T")

DRIVERS: Final[Mapping[str, str]] = {"raw": "raw", "qcow": "qcow", "qcow2": "qcow2", "vhd": "vpc", "qed": "qed"}
"""Format in xl-disk-configuration(5) -> QEMU's name for it."""
_MAX_UNFLUSHED: Final = 32 << 20
"""Bytes of writes that are kept; then we flush, whether the guest wants that or not."""


class QemuImage:
    """An image that a qemu-nbd has open, which is started anew when it dies.

    Raises ConfigError if QEMU cannot open it, HostError if there is no QEMU. When it dies again and again, every request raises HostError.
    """

    def __init__(
        self, target: str, driver: str, *, writable: bool, direct: bool, discard: bool, connections: int
    ) -> None:
        options = [
            f"--format={driver}", f"--discard={'unmap' if discard else 'ignore'}",
            f"--cache={'none' if direct else 'writeback'}", *([] if writable else ["--read-only"]),
        ]  # fmt: skip
        self._target = target
        self._server = QemuServer(target, driver, options, connections)
        self._patience = Patience(f"{target}: its qemu-nbd")
        self._unflushed = Unflushed()
        self._reviving = threading.Lock()
        self._closed = False
        self._failure: XenpyError | None = None
        self._done = self._done_before = 0
        self.deaths = 0
        """How many servers have died."""
        self._nbd = self._start()
        nbd = self._nbd
        self.size, self.writable, self.can_discard = nbd.size, nbd.writable, nbd.can_discard
        self.granularity = nbd.granularity

    @property
    def pid(self) -> int | None:
        """Return the server's process, unless it has ended."""
        process = self._server.process
        return process.pid if process.poll() is None else None

    # -- the server ---------------------------------------------------------------------------------------------------

    def _start(self) -> NbdBacking:
        """Start a server, and have it do again what the one before may have forgotten. Raises ConfigError, HostError."""
        while True:
            self._patience.started()
            try:
                nbd = NbdBacking(self._server.start())
                try:
                    self._unflushed.replay(nbd)
                except BaseException:
                    nbd.close()
                    raise
            except ServerGone:
                self.deaths += 1
                self._server.end(kill=True)
                time.sleep(self._patience.died(useful=False))
                continue
            except OSError as error:
                self._server.end(kill=True)
                raise HostError(f"{self._target}: what was written cannot be written again: {error}") from None
            threading.Thread(target=self._watch, args=(nbd, self._server.process), name="qemu-nbd", daemon=True).start()
            return nbd

    def _watch(self, nbd: NbdBacking, process: subprocess.Popen[bytes]) -> None:
        """Wait for a server's end, and have the next one lock the image even if nobody asks for anything."""
        process.wait()
        try:
            self._revive(nbd)
        except (XenpyError, OSError):  # the next request tells
            return

    def _revive(self, dead: NbdBacking) -> None:
        """Have another server in the place of one that died. Raises ConfigError, HostError; OSError when closed."""
        with self._reviving:
            if self._nbd is not dead:
                return
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise OSError(errno.ESHUTDOWN, os.strerror(errno.ESHUTDOWN))
            self.deaths += 1
            report = log.note if self.deaths == 1 else log.debug
            report(f"{self._target}: qemu-nbd died; it is started anew")
            try:
                self._server.end(kill=True)  # until it is gone, a write of its own may be on the way to the image
                dead.close()
                useful, self._done_before = self._done != self._done_before, self._done
                time.sleep(self._patience.died(useful=useful))
                self._nbd = self._start()
            except XenpyError as error:
                self._failure = error
                raise

    def _persist(self, request: Callable[[NbdBacking], T]) -> T:
        """Make a request of one server after the other until one answers."""
        while True:
            nbd = self._nbd
            try:
                result = request(nbd)
            except ServerGone:
                self._revive(nbd)
            else:
                self._done += 1
                return result

    # -- requests -----------------------------------------------------------------------------------------------------

    def read(self, views: Views, offset: int) -> None:
        """Fill the views. Raises OSError, HostError."""
        self._persist(lambda nbd: nbd.read(views, offset))

    def write(self, views: Views, offset: int) -> None:
        """Write the views. Raises OSError, HostError."""
        if self._unflushed.size > _MAX_UNFLUSHED:
            self.flush()
        with self._unflushed.write(b"".join(views), offset) as data:
            self._persist(lambda nbd: nbd.write([memoryview(data)], offset))

    def flush(self) -> None:
        """Have everything written on stable storage. Raises OSError, HostError."""
        with self._unflushed.flush():
            self._persist(lambda nbd: nbd.flush())

    def discard(self, offset: int, size: int) -> None:
        """Let the image shrink by a range; after a death it may read as before. Raises OSError, HostError."""
        self._persist(lambda nbd: nbd.discard(offset, size))

    def grow(self, size: int) -> None:
        """Make the image larger, which QEMU must let go of meanwhile. Raises ConfigError, HostError."""
        check_growth(self._target, self.size, size, writable=self.writable)
        with self._reviving:
            self._nbd.close()  # when the requests under way are done; who comes now waits for the next server
            self._server.end(kill=False)
            try:
                self._server.grow(size)
            finally:
                self._nbd = self._start()

    def refresh(self) -> bool:
        """Look at the image's size anew; tell whether it changed."""
        before, self.size = self.size, self._nbd.size
        return self.size != before

    def kill(self) -> bool:
        """Kill the server, as a fault would; another one takes over. Tell whether there is one."""
        process = self._server.process
        process.kill()
        return process.poll() is None

    def parcel(self) -> None:
        """Return None: the server, which does the work, is a process of its own."""

    def close(self) -> None:
        """Close the image, and wait until it is."""
        with self._reviving:
            self._closed = True
        self._nbd.close()
        self._server.end(kill=False)
