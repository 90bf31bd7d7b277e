"""Images of the formats that QEMU knows, through qemu-nbd on a unix socket of our own.

Ref: qemu-nbd(8)
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.devices.vbd.nbd import NbdBacking, NbdConnection
from xenpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Mapping

DRIVERS: Final[Mapping[str, str]] = {"raw": "raw", "qcow": "qcow", "qcow2": "qcow2", "vhd": "vpc", "qed": "qed"}
"""Format in xl-disk-configuration(5) -> QEMU's name for it."""
_PROGRAM: Final = "qemu-nbd"
_START_S: Final = 30.0
_POLL_S: Final = 0.01
_STOP_S: Final = 60.0
"""qemu-nbd writes back what it has cached before it ends."""


class QemuImage(NbdBacking):
    """An image opened by a qemu-nbd that lives as long as our connections to it, whatever becomes of us.

    With `ephemeral`, writes go to a temporary file of QEMU's. Raises ConfigError if QEMU cannot open it, HostError if there is no QEMU.
    """

    def __init__(
        self,
        target: str,
        driver: str,
        *,
        writable: bool,
        direct: bool,
        discard: bool,
        ephemeral: bool,
        connections: int,
    ) -> None:
        program = shutil.which(_PROGRAM)
        if program is None:
            raise HostError(f"{target}: a disk of format {driver} takes {_PROGRAM}: install qemu-utils")
        command = [
            program, f"--format={driver}", f"--shared={connections}", f"--discard={'unmap' if discard else 'ignore'}",
            f"--cache={'none' if direct else 'writeback'}",
        ]  # fmt: skip
        if ephemeral:
            command.append("--snapshot")
        elif not writable:
            command.append("--read-only")
        with tempfile.TemporaryDirectory(prefix="xenpy-nbd-") as directory:
            path = Path(directory) / "socket"
            self._process = subprocess.Popen(
                [*command, f"--socket={path}", "--", target],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # the terminal's Ctrl-C is not for it: it has data to write back
            )
            opened: list[NbdConnection] = []
            try:
                while len(opened) < connections:
                    opened.append(self._connect(path, target))
            except BaseException:
                for connection in opened:
                    connection.close()
                self._end(kill=True)
                raise
        super().__init__(opened)

    def _connect(self, path: Path, target: str) -> NbdConnection:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                return NbdConnection(path)
            except OSError:  # not there yet, or there and about to find that it cannot open the image
                time.sleep(_POLL_S)
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                said = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines()
                reason = said[0].removeprefix(f"{_PROGRAM}: ") if said else f"{_PROGRAM} ended"
                raise ConfigError(f"{target}: {reason}")
            if time.monotonic() > deadline:
                raise HostError(f"{target}: {_PROGRAM} did not begin to serve within {_START_S:g} s")

    def close(self) -> None:
        """Close the image, and wait until it is."""
        super().close()
        self._end(kill=False)

    def _end(self, *, kill: bool) -> None:
        process = self._process
        if kill:
            process.kill()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stderr is not None:
            process.stderr.close()
