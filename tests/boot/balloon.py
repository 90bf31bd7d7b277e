"""Boots a guest of 256 MiB, has its balloon driver give back half and take it again. Prints a verdict.

Arguments: kernel, ramdisk, the guest's type.
"""

from __future__ import annotations

import sys
import time

from xenpy.config import build, parse_text
from xenpy.host import Guest, Host

PAGES_PER_MIB = 256
FULL, HALF = 256, 128
WAIT_S = 90


def main(kernel: str, ramdisk: str, kind: str = "pvh") -> int:
    """Run the guest; return 0 if its memory followed the target."""
    text = (
        f'name="balloon"\ntype="{kind}"\nmemory={FULL}\nkernel="{kernel}"\nramdisk="{ramdisk}"\n'
        'cmdline="console=hvc0 quiet"'
    )
    host = Host()
    output = bytearray()

    def sink(data: bytes) -> int:
        output.extend(data)
        return len(data)

    guest = host.create(build(parse_text(text, "balloon"), "balloon"), sink)
    verdict = 1
    try:
        guest.start()
        verdict = follow(host, guest, output)
    finally:
        guest.close()
        host.close()
    return verdict


def follow(host: Host, guest: Guest, output: bytearray) -> int:
    """Step through ready, down and up, in the loop's thread."""
    pages = guest.domain.memory
    start = pages.ram_pages
    steps = [
        ("ready", lambda: b"ready" in output, lambda: guest.set_memory_target(HALF)),
        (
            "down",
            lambda: pages.ram_pages < start - (FULL - HALF - 16) * PAGES_PER_MIB,
            lambda: guest.set_memory_target(FULL),
        ),
        ("up", lambda: pages.ram_pages > start - 16 * PAGES_PER_MIB, host.loop.stop),
    ]
    deadline = time.monotonic() + WAIT_S

    def look() -> None:
        name, reached, then = steps[0]
        if reached():
            print(f"balloon: {name}: {pages.ram_pages} pages", flush=True)
            steps.pop(0)
            then()
        if steps and time.monotonic() < deadline and guest.domain.ending is None:
            host.loop.call_later(0.2, look)
        else:
            host.loop.stop()

    look()
    host.loop.run()
    if steps:
        print(f"balloon: never got to {steps[0][0]!r}: {pages.ram_pages} pages; console: {bytes(output[-300:])!r}")
        return 1
    print("balloon: down and up")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
