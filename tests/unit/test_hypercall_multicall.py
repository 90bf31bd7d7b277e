"""multicall."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import RAM_SIZE, UNMAPPED, FakeDomain, fake_domain

from xenpy.errors import Errno
from xenpy.hypercalls import dispatch

if TYPE_CHECKING:
    from collections.abc import Iterator

MULTICALL, XEN_VERSION, SCHED_OP, VCPU_OP, IRET = 13, 17, 29, 24, 23
LIST = 0x8000
UNTOUCHED = 0x5A5A


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


def put(domain: FakeDomain, entries: list[tuple[int, ...]], *, word: int, gpa: int = LIST) -> None:
    for index, (nr, *args) in enumerate(entries):
        values = (nr, UNTOUCHED, *args, *[0] * (6 - len(args)))
        domain.put(gpa + index * 8 * word, *((value, word) for value in values))


def results(domain: FakeDomain, count: int, *, word: int) -> list[int]:
    """Return the result fields as signed numbers."""
    found = []
    for index in range(count):
        value = domain.number(LIST + index * 8 * word + word, word)
        found.append(value - (1 << 8 * word) if value >> 8 * word - 1 else value)
    return found


@pytest.mark.parametrize("word", [4, 8])
def test_entries_are_carried_out_in_order(domain: FakeDomain, word: int) -> None:
    put(domain, [(XEN_VERSION, 0), (99,), (SCHED_OP, 0), (XEN_VERSION, 1, 0x7000_0000), (VCPU_OP, 3, 1)], word=word)
    assert domain.hypercall(MULTICALL, LIST, 5, wide=word == 8) == 0
    assert results(domain, 5, word=word) == [4 << 16 | 20, -Errno.ENOSYS, 0, -Errno.EFAULT, 0]
    assert domain.vcpus[0].asked == [("yield",)]


@pytest.mark.parametrize("word", [4, 8])
def test_nesting_is_refused(domain: FakeDomain, word: int) -> None:
    put(domain, [(XEN_VERSION, 0), (MULTICALL, LIST, 1), (SCHED_OP, 0)], word=word)
    assert domain.hypercall(MULTICALL, LIST, 3, wide=word == 8) == 0
    assert results(domain, 3, word=word) == [4 << 16 | 20, -Errno.EINVAL, 0]
    assert domain.vcpus[0].asked == [("yield",)]


def test_nothing_to_do(domain: FakeDomain) -> None:
    assert domain.hypercall(MULTICALL, UNMAPPED, 0) == 0
    assert domain.hypercall(MULTICALL, UNMAPPED, 1 << 32) == 0, "the count has 32 bits"


def test_a_list_that_leaves_memory(domain: FakeDomain) -> None:
    put(domain, [(SCHED_OP, 0)], word=8, gpa=RAM_SIZE - 64)
    assert domain.hypercall(MULTICALL, RAM_SIZE - 64, 0xFFFF_FFFF) == -Errno.EFAULT
    assert domain.vcpus[0].asked == [("yield",)]
    assert domain.hypercall(MULTICALL, UNMAPPED, 1) == -Errno.EFAULT


def test_a_result_that_cannot_be_written(domain: FakeDomain) -> None:
    put(domain, [(SCHED_OP, 0)] * 2, word=8)
    domain.vcpus[0].readonly = {LIST >> 12}
    assert domain.hypercall(MULTICALL, LIST, 2) == -Errno.EFAULT


def test_a_long_list_lets_others_in(domain: FakeDomain) -> None:
    put(domain, [(SCHED_OP, 0)] * 500, word=8)
    visits = []
    assert dispatch.dispatch(domain.call(MULTICALL, LIST, 500, checkpoint=lambda: visits.append(1))) == 0
    assert len(visits) >= 10


def test_an_iret_is_the_last_of_a_list() -> None:
    with fake_domain(is_pv=True) as domain:
        put(domain, [(SCHED_OP, 0), (IRET,), (SCHED_OP, 0)], word=8)
        assert domain.hypercall(MULTICALL, LIST, 3) == 0
        assert domain.vcpus[0].asked == [("yield",), ("iret",)]
        assert results(domain, 3, word=8) == [0, UNTOUCHED, UNTOUCHED]
