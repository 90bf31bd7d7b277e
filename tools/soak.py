"""Boots a small PVH kernel many times in one process and prints what the process held first and last; or leans on Linux as a PV guest.

usage: python tools/soak.py [--boots 500] [--bits 64]
       python tools/soak.py --pv debian-6.12-cloud [--vcpus 2] [--memory 256] --boots 50 | --stress 60 [--forks 10000] | --clock 120
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "guest"))

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_WARM_UP = 20
_ALLOWED_KIB = 4096
"""RSS settles rather than grows: about 2 MiB more after 500 boots, 2.5 after 1500."""


def _held() -> dict[str, int]:
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_kib": resident * _PAGE_KIB,
        "fds": len(list(Path("/proc/self/fd").iterdir())) - 1,
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "temporary_files": len(list(Path(tempfile.gettempdir()).iterdir())),
    }


def main() -> int:
    """Run; return 1 if something grew or a boot failed."""
    parser = argparse.ArgumentParser(description="boot a small PVH kernel many times and look for leaks")
    parser.add_argument("--boots", type=int, default=500)
    parser.add_argument("--bits", type=int, choices=(32, 64), default=64)
    parser.add_argument("--pv", metavar="KERNEL", help="a kernel of `xenpy guests`, to be a PV guest")
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--memory", type=int, default=256, help="in MiB")
    parser.add_argument(
        "--stress", type=int, metavar="SECONDS", help="have processes, threads and memory check each other"
    )
    parser.add_argument("--forks", type=int, default=0, help="that there have to be, with --stress")
    parser.add_argument("--clock", type=int, metavar="SECONDS", help="compare the guest's clocks with the host's")
    options = parser.parse_args()
    if options.pv:
        import soak_pv

        mode = soak_pv.stress if options.stress else soak_pv.clock if options.clock else soak_pv.boots
        return mode(options)
    from build import Builder
    from harness import run_kernel

    from xenpy.domain.ending import End

    with tempfile.TemporaryDirectory() as directory:
        elf = Builder(Path(directory)).build("ending", options.bits)
        first: dict[str, int] = {}
        started = time.monotonic()
        for boot in range(options.boots):
            if boot == min(_WARM_UP, options.boots - 1):
                first = _held()
            result = run_kernel(elf, config_extra='cmdline="poweroff"')
            if result.ending is None or result.ending.kind is not End.POWEROFF:
                print(f"boot {boot}: ended by {result.ending}: {result.lines[-3:]}")
                return 1
        last = _held()
    print(f"{options.boots} boots in {time.monotonic() - started:.1f} s")
    for what, before in first.items():
        print(f"{what}: {before} at boot {min(_WARM_UP, options.boots - 1)}, {last[what]} after the last")
    grown = last["rss_kib"] - first["rss_kib"] > _ALLOWED_KIB
    return int(grown or any(last[what] > first[what] for what in ("fds", "threads", "temporary_files")))


if __name__ == "__main__":
    sys.exit(main())
