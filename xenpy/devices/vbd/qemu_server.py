"""A qemu-nbd and our connections to it.

Ref: qemu-nbd(8)
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.devices.vbd.nbd import NbdConnection, ServerGone
from xenpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM: Final = "qemu-nbd"
_RESIZER: Final = "qemu-img"
_START_S: Final = 90.0
_POLL_S: Final = 0.01
_STOP_S: Final = 60.0
"""qemu-nbd writes back what it has cached before it ends."""


class QemuServer:
    """Starts a qemu-nbd for one image, one after the other. It lives as long as our connections to it, whatever becomes of us."""

    def __init__(self, target: str, driver: str, options: Sequence[str], connections: int) -> None:
        program = shutil.which(_PROGRAM)
        if program is None:
            raise HostError(f"{target}: a disk of format {driver} takes {_PROGRAM}: install qemu-utils")
        self._target = target
        self._driver = driver
        self._command = [program, *options, f"--shared={connections}"]
        self._connections = connections
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """Return the process that runs, or ran last; there is one after `start`."""
        assert self._process is not None
        return self._process

    def start(self) -> list[NbdConnection]:
        """Start it and connect to it. Raises ConfigError if it cannot open the image, HostError, and ServerGone if it is killed."""
        opened: list[NbdConnection] = []
        with tempfile.TemporaryDirectory(prefix="xenpy-nbd-") as directory:
            path = Path(directory) / "socket"
            process = self._process = subprocess.Popen(
                [*self._command, f"--socket={path}", "--", self._target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is not for it: it has data to write back
            )
            try:
                while len(opened) < self._connections:
                    opened.append(self._connect(path, process))
            except BaseException:
                for connection in opened:
                    connection.close()
                self.end(kill=True)
                raise
        return opened

    def _connect(self, path: Path, process: subprocess.Popen[bytes]) -> NbdConnection:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                return NbdConnection(path)
            except OSError:  # not there yet, or there and about to find that it cannot open the image
                time.sleep(_POLL_S)
            code = process.poll()
            if code is not None:
                if code < 0:
                    raise ServerGone(errno.EPIPE, f"{_PROGRAM} was killed by signal {-code}")
                assert process.stderr is not None
                said = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
                reason = said[0].removeprefix(f"{_PROGRAM}: ") if said else f"{_PROGRAM} ended"
                raise ConfigError(f"{self._target}: {reason}")
            if time.monotonic() > deadline:
                raise HostError(f"{self._target}: {_PROGRAM} did not begin to serve within {_START_S:g} s")

    def grow(self, size: int) -> None:
        """Make the image larger; while none runs. Raises ConfigError."""
        program = shutil.which(_RESIZER)
        if program is None:
            raise ConfigError(f"{self._target}: to resize it takes {_RESIZER}: install qemu-utils")
        done = subprocess.run(
            [program, "resize", "-q", "-f", self._driver, "--", self._target, str(size)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().removeprefix(f"{_RESIZER}: ")
            raise ConfigError(f"{self._target}: cannot be made {size} bytes large: {said}")

    def end(self, *, kill: bool) -> None:
        """Have it end, which it does of itself when nobody is connected, and wait until it has."""
        process = self._process
        if process is None:
            return
        if kill:
            process.kill()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
