#!/usr/bin/env python3
"""Fetch guests into the cache and print where their files are."""

from __future__ import annotations

import argparse
import sys

from xenpy.errors import XenpyError
from xenpy.guests import GUESTS, provide


def main() -> int:
    """Provide the guests named on the command line, all by default; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="GUEST", help=f"one of {', '.join(GUESTS)}; all by default")
    parser.add_argument("--refresh", action="store_true", help="look for newer versions of what is in the cache")
    arguments = parser.parse_args()
    try:
        for name in arguments.names or GUESTS:
            images = provide(name, refresh=arguments.refresh)
            files = {"kernel": images.kernel, "modules": images.modules, "initrd": images.initrd, "disk": images.disk}
            print(f"{name} {images.release}")
            for kind, path in files.items():
                if path is not None:
                    print(f"  {kind:8}{path}")
    except XenpyError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
