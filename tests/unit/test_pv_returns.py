"""What IRET raises for frames that no processor takes."""

from __future__ import annotations

import pytest

from xenpy.domain.pv.returns import refusal
from xenpy.pv.emulate.machine import Vector

CODE64, DATA, CONFORMING, ABSENT, CODE_ABSENT, SYSTEM, BOTH, RING0, READ_ONLY, CODE32 = (
    number << 3 | 3 for number in range(1, 11)
)
DESCRIPTORS = {
    CODE64: 0x00AF_FB00_0000_FFFF,
    DATA: 0x00CF_F300_0000_FFFF,
    CONFORMING: 0x00AF_9F00_0000_FFFF,
    ABSENT: 0x00CF_7300_0000_FFFF,
    CODE_ABSENT: 0x00AF_7B00_0000_FFFF,
    SYSTEM: 0x0000_8B00_0000_0067,
    BOTH: 0x00EF_FB00_0000_FFFF,
    RING0: 0x00AF_9B00_0000_FFFF,
    READ_ONLY: 0x00CF_F100_0000_FFFF,
    CODE32: 0x00CF_FB00_0000_FFFF,
}
RIP, NON_CANONICAL, BEYOND = 0x1000, 1 << 47, 77 << 3 | 3


@pytest.mark.parametrize(
    ("cs", "ss", "rip", "vector", "error"),
    [
        (3, DATA, RIP, Vector.GP, 0),
        (BEYOND, DATA, RIP, Vector.GP, BEYOND & ~3),
        (DATA, DATA, RIP, Vector.GP, DATA & ~3),
        (SYSTEM, DATA, RIP, Vector.GP, SYSTEM & ~3),
        (BOTH, DATA, RIP, Vector.GP, BOTH & ~3),
        (RING0, DATA, RIP, Vector.GP, RING0 & ~3),
        (CODE_ABSENT, DATA, RIP, Vector.NP, CODE_ABSENT & ~3),
        (CODE64, 3, RIP, Vector.GP, 0),
        (CODE64, BEYOND, RIP, Vector.GP, BEYOND & ~3),
        (CODE64, CODE64, RIP, Vector.GP, CODE64 & ~3),
        (CODE64, READ_ONLY, RIP, Vector.GP, READ_ONLY & ~3),
        (CODE64, ABSENT, RIP, Vector.SS, ABSENT & ~3),
        (CODE64, DATA, NON_CANONICAL, Vector.GP, 0),
    ],
)
def test_refused(cs: int, ss: int, rip: int, vector: int, error: int) -> None:
    assert refusal(lambda selector: DESCRIPTORS.get(selector, 0), cs, ss, rip) == (vector, error)


@pytest.mark.parametrize("cs", [CODE64, CODE32, CONFORMING])
def test_taken(cs: int) -> None:
    assert refusal(lambda selector: DESCRIPTORS.get(selector, 0), cs, DATA, RIP) is None
