"""Plugs a disk into a running guest, lets it grow, pulls it out and plugs it in again.

Arguments: kernel, ramdisk, image. Writes a verdict.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.config import build, parse_text
from xenpy.config.disk import DiskConfig
from xenpy.devices.vbd.backend import VbdBackend
from xenpy.host import Guest, Host

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
XVDB = 202 << 8 | 16
WAIT_S = 150
GUEST_SCRIPT = """
echo ready
while true; do
    while [ ! -b /dev/xvdb ]; do sleep 0.2; done
    echo "found $(cat /sys/block/xvdb/size)"
    echo "hello from the guest" | dd of=/dev/xvdb bs=512 conv=sync,fsync 2>/dev/null && echo written
    while [ "$(cat /sys/block/xvdb/size)" = 2048 ]; do sleep 0.2; done
    echo "grown $(cat /sys/block/xvdb/size)"
    while [ -b /dev/xvdb ]; do sleep 0.2; done
    echo gone
done
"""


class Run:
    """One guest, and the steps that its console's lines lead to."""

    def __init__(self, kernel: str, ramdisk: str, image: Path) -> None:
        text = f'name="hotplug"\ntype="pvh"\nmemory=256\nkernel="{kernel}"\nramdisk="{ramdisk}"\ncmdline="console=hvc0 quiet"'
        self.image = image
        self.output = bytearray()
        self.host = Host()
        self.guest: Guest = self.host.create(build(parse_text(text, "hotplug"), "hotplug"), self.sink)
        self.steps: list[tuple[str, Callable[[], None]]] = [("ready", self.plug)]
        self.steps += [("found 2048", self.nothing), ("written", self.grow), ("grown 4096", self.unplug)]
        self.steps += [("gone", self.plug), ("found 2048", self.host.loop.stop)]

    def sink(self, data: bytes) -> int:
        self.output += data
        return len(data)

    def nothing(self) -> None:
        """Only wait."""

    def plug(self) -> None:
        if self.guest.devices.find("vbd", XVDB) is not None:  # the guest has let go of the last one, we have not yet
            self.host.loop.call_later(0.1, self.plug)
            return
        self.image.write_bytes(bytes(MIB))
        self.guest.devices.plug("vbd", DiskConfig(target=str(self.image), vdev="xvdb", devid=XVDB))

    def grow(self) -> None:
        assert self.image.read_bytes().startswith(b"hello from the guest\n")
        os.truncate(self.image, 2 * MIB)
        disk = self.guest.devices.find("vbd", XVDB)
        assert isinstance(disk, VbdBackend)
        assert disk.resize()

    def unplug(self) -> None:
        self.guest.devices.unplug("vbd", XVDB)

    def look(self) -> None:
        """Take the next step if the guest has said the word; called again and again."""
        word, then = self.steps[0]
        _, found, rest = bytes(self.output).partition(word.encode())
        if found:
            self.output[:] = rest
            self.steps.pop(0)
            then()
        if self.steps and time.monotonic() < self.deadline and self.guest.domain.ending is None:
            self.host.loop.call_later(0.1, self.look)
        else:
            self.host.loop.stop()

    def run(self) -> str:
        """Return the verdict."""
        self.deadline = time.monotonic() + WAIT_S
        try:
            self.guest.start()
            self.look()
            self.host.loop.run()
            if self.steps:
                return f"never got to {self.steps[0][0]!r}; console: {bytes(self.output[-300:])!r}"
            return "plugged, unplugged and plugged"
        finally:
            self.guest.close()
            self.host.close()


if __name__ == "__main__":
    verdict = Run(sys.argv[1], sys.argv[2], Path(sys.argv[3])).run()
    sys.stdout.write(f"hotplug: {verdict}\n")
