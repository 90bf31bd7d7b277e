"""Measure xenpy against what it should be compared with: `python tools/bench [--json] [GROUP]...`; see docs/bench.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Final

from report import Row, as_json, as_table
from watch import BenchError

from xenpy.errors import XenpyError

GROUPS: Final = {
    "hypercall": "round trip of a hypercall against a C loop on the same KVM",
    "startup": "process start to the guest's first instruction",
    "footprint": "resident memory beyond the guest's RAM",
    "fork": "forks of a PV Linux: to the first entry, memory, fifty at once",
    "pv": "PV Linux on this /dev/kvm: to init and power-off, and costs inside",
    "pv_emulated": "PV Linux beside PVH on the emulated host: to init and power-off, and costs inside (minutes)",
    "strace": "a PV boot traced against one untraced",
    "disk": "a PV guest's disk against the host's own file",
    "disk_emulated": "a PVH guest's disk against QEMU's Xen disk, on the emulated host (minutes)",
    "net": "a PV guest's network, to the host and to another guest, against the host's loopback",
    "net_profile": "processor time and exits of a MiB of a PV guest's network",
    "net_emulated": "a PVH guest's network, to the host and to another guest, against QEMU's Xen network (minutes)",
    "boot": "PVH Linux to init and to power-off against QEMU, on the emulated host (minutes)",
}


def main() -> int:
    """Run the measurements named on the command line, all by default; return the exit code."""
    listing = "\n".join(f"  {name:11} {what}" for name, what in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="bench",
        description=f"{__doc__}\n\ngroups:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("groups", nargs="*", metavar="GROUP", help="what to measure, all by default")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="turns of each measurement (default 3)")
    arguments = parser.parse_args()
    if unknown := set(arguments.groups) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}: one of {', '.join(GROUPS)}")
    if arguments.runs < 1:
        parser.error("--runs must be at least 1")
    rows: list[Row] = []
    failures: dict[str, str] = {}
    for group in arguments.groups or GROUPS:
        with tempfile.TemporaryDirectory(prefix="xenpy-bench.") as scratch:
            try:
                rows += import_module(group).measure(Path(scratch), arguments.runs)
            except (BenchError, XenpyError) as error:
                failures[group] = str(error)
    if arguments.json:
        print(as_json(rows, failures))
    elif rows:
        print(as_table(rows))
    for group, reason in failures.items():
        print(f"bench: {group}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
