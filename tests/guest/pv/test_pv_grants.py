"""A PV guest maps pages of another: the kernel `grants`, with a lender that does not run but whose pages and grants are there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from xenpy.abi.grant_table import GTF_permit_access
from xenpy.config import build, parse_text
from xenpy.domain.pv.domain import BASE_MFN
from xenpy.host import Host

if TYPE_CHECKING:
    from pathlib import Path

    from harness import PvRuns

    from xenpy.host import Guest

MEMORY_MIB = 24
PAGES = MEMORY_MIB << 8
WORD = 0x1234567890
LIMIT = 60


def create(host: Host, elf: Path, name: str, cmdline: str) -> Guest:
    text = f'type="pv"\nname="{name}"\nkernel="{elf}"\nmemory={MEMORY_MIB}\ncmdline="{cmdline}"\n'
    return host.create(build(parse_text(text, name), name), len)


def test_pages_of_another_guest(pv_runs: PvRuns) -> None:
    elf = pv_runs.elf("grants", "syscall")
    host = Host()
    said = bytearray()
    try:
        lender = create(host, elf, "lender", "")
        borrower = create(host, elf, "borrower", f"lender={lender.domain.domid}")
        page = lender.domain.memory.view((BASE_MFN + PAGES - 1) << 12, 4096).cast("Q")
        page[0] = WORD
        table = lender.domain.gnttab
        for gref, domid in ((9, borrower.domain.domid), (10, lender.domain.domid), (11, borrower.domain.domid)):
            table.seed(gref, domid, BASE_MFN + PAGES - 1)
        borrower.domain.on_emergency_output = said.extend
        host.on_end = lambda _domain: host.loop.stop()
        limit = host.loop.call_later(LIMIT, host.loop.stop)
        borrower.start()
        host.loop.run()
        limit.cancel()
        assert str(borrower.domain.ending) == "power-off", said[-500:]
        verdicts = dict(re.findall(rb"(\w+): (SUCCESS|SKIP|ERROR|FAILURE|CRASH)", said))
        assert verdicts[b"of_another_domain"] == b"SUCCESS", said[-500:]
        assert page[1] == WORD + 1
        borrower.domain.wait_closed(10)
        borrower.close()
        # What the borrower had still mapped when it ended is the lender's alone again.
        assert not [line for line in table.describe() if line.startswith("grant ")]
        assert GTF_permit_access == lender.domain.frames.view(table.frame(0))[11 * 8]
        page.release()
        lender.close()
    finally:
        host.close()
