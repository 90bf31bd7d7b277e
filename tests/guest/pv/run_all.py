"""Runs PV kernels one after the other and prints what came of each: for where many are to be run by one command.

Arguments: for each kernel its key, its ELF file, how many vCPUs it wants, and its command line. Output: a line of JSON for each.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import run_kernel

_TIMEOUT: Final = 120


def main(arguments: list[str]) -> None:
    """Run the kernels."""
    for key, elf, vcpus, cmdline in zip(*(arguments[index::4] for index in range(4)), strict=True):
        extra = f'cmdline="{cmdline}"'
        result = run_kernel(Path(elf), kind="pv", vcpus=int(vcpus), memory=24, config_extra=extra, timeout=_TIMEOUT)
        told = asdict(result) | {
            "ending": result.ending and str(result.ending),
            "console": result.console.decode("latin-1"),
            "audit": [str(difference) for difference in result.audit],
        }
        sys.stdout.write(json.dumps({"key": key, **told}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
