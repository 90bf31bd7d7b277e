"""kill -9 of a disk's process under an unmodified blkfront, again and again: what the guest copies arrives."""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.conftest import images
from xenpy.config import build, parse_text
from xenpy.devices.vbd.backend import VbdBackend
from xenpy.devices.vbd.isolated import Isolated
from xenpy.host import Host
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.boot, pytest.mark.kvm]

XVDA = 202 << 8
MIB = 1 << 20
SIZE = 16 * MIB
TIMEOUT_S = 240.0
LONGEST_S = 0.1
ROUNDS = 5
SCRIPT = f"""
for round in $(seq {ROUNDS}); do
dd if=/dev/xvda of=/dev/xvda bs=64k count={SIZE >> 16} seek={SIZE >> 16} iflag=direct oflag=direct 2>/dev/null && echo copied
done
dmesg | grep -E 'I/O error|BUG:|Oops'
"""


def test_a_guest_does_not_notice(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    image = tmp_path / "disk.img"
    image.write_bytes(data + bytes(SIZE))
    kernel = images("debian-6.12-cloud")
    ramdisk = make_initramfs(command=SCRIPT, images=kernel, modules=("xen-blkfront",))
    text = (
        f'name="isolation"\ntype="pv"\nmemory=256\nkernel="{kernel.kernel}"\nramdisk="{ramdisk}"\n'
        f'cmdline="console=hvc0 quiet"\ndisk=["{image},raw,xvda,rw"]\n'
    )
    said = bytearray()

    def hear(output: bytes) -> int:
        said.extend(output)
        return len(output)

    host = Host()
    guest = host.create(build(parse_text(text, "isolation"), "isolation"), hear)
    disk = guest.devices.find("vbd", XVDA)
    assert isinstance(disk, VbdBackend)
    moments = random.Random(2)
    kills = 0

    def kill() -> None:
        nonlocal kills
        connection = disk.connection
        process = connection.keeper.process if isinstance(connection, Isolated) else None
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        host.loop.call_later(moments.uniform(0, LONGEST_S), kill)

    host.on_end = lambda _domain: host.loop.stop()
    host.loop.call_soon(kill)
    host.loop.call_later(TIMEOUT_S, host.loop.stop)
    try:
        guest.start()
        host.loop.run()
    finally:
        guest.close()
        host.close()
    assert said.count(b"copied") == ROUNDS, said
    assert b"I/O error" not in said
    assert kills > 10
    assert image.read_bytes() == data + data
