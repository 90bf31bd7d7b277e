"""How often a PVH guest's vCPUs leave the kernel while it computes, sleeps and reads a disk; a program, for the emulated host.

usage: exits.py CONFIG [KEY=VALUE]...: prints JSON: what init's script counted in /proc/interrupts meanwhile, by name, and the exits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from typing import TYPE_CHECKING

import xenpy

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 300
DISK_BYTES = 16 << 20
READS = 200
LOAD = f"""
dd if=/dev/xvda of=/dev/null bs=4096 count={READS} iflag=direct 2>/dev/null
i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done
sleep 1
"""


def interrupts(guest: xenpy.Guest) -> dict[str, int]:
    """Return how often interrupts have come, on all vCPUs together, by name."""
    counted: dict[str, int] = {}
    for line in guest.run("cat /proc/interrupts").stdout.splitlines():
        fields = line.split()
        numbers = [int(field) for field in fields[1:] if field.isdigit()]
        if fields and fields[0][:-1].isdigit():
            counted[fields[-1]] = counted.get(fields[-1], 0) + sum(numbers)
    return counted


def main(config: Path | str, overrides: list[str]) -> None:
    """Boot, have the load run, and print what came of it."""
    with tempfile.NamedTemporaryFile(suffix=".img") as disk:
        disk.truncate(DISK_BYTES)
        settings = dict(override.split("=", 1) for override in overrides)
        with xenpy.Guest.from_cfg(config, timeout=TIMEOUT_S, disk=[f"{disk.name},raw,xvda"], **settings) as guest:
            guest.run("while [ ! -b /dev/xvda ]; do usleep 100000; done")
            before, exits = interrupts(guest), sum(vcpu.exits for vcpu in guest.domain.vcpus)
            guest.run(LOAD)
            exits = sum(vcpu.exits for vcpu in guest.domain.vcpus) - exits
            after = interrupts(guest)
    sys.stdout.write(json.dumps({"exits": exits, **{name: after[name] - before.get(name, 0) for name in after}}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
