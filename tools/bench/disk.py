"""A PV guest's disk, a raw image, against the host's own way to the same file, whose pages are in its cache for both.

Between guest and image there is blkfront, which is asked for no caching (O_DIRECT), so each block makes its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from load import DURATION_MS, alternate, compile_load, in_guest, make_guest, on_host, row

import xenpy

if TYPE_CHECKING:
    from pathlib import Path

    from report import Row

SIZE: Final = 128 << 20
_LARGE: Final = 1 << 20
_SMALL: Final = 4096
LOADS: Final = (
    ("read, sequential, 1 MiB", "MiB/s", ("read", "seq", _LARGE), 1),
    ("write, sequential, 1 MiB", "MiB/s", ("write", "seq", _LARGE), 1),
    ("read, random, 4 KiB", "k/s", ("read", "rand", _SMALL), 1),
    ("read, random, 4 KiB, 16 at once", "k/s", ("read", "rand", _SMALL), 16),
    ("write, random, 4 KiB, 16 at once", "k/s", ("write", "rand", _SMALL), 16),
)


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement."""
    program = compile_load(directory)
    image = directory / "disk.img"
    image.write_bytes(bytes(SIZE))
    rows = []
    with (
        xenpy.Host() as host,
        make_guest(host, "disk", program, "xen-blkfront", disk=[f"{image},raw,xvda,rw"]) as guest,
    ):
        guest.run("while [ ! -b /dev/xvda ]; do sleep 0.1; done")
        for name, unit, load, threads in LOADS:
            arguments = [*map(str, load), str(DURATION_MS), str(threads)]
            ours, reference = alternate(
                runs,
                lambda arguments=arguments: in_guest(guest, ["disk", "/dev/xvda", *arguments, "direct"]),
                lambda arguments=arguments: on_host(program, ["disk", str(image), *arguments]),
            )
            rows.append(row("disk", name, unit, ours, reference, "host, cached"))
    return rows
