"""Pages of other domains in a PV guest: what its page tables say is not all that keeps it from those that it may only read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from xenpy.abi.grant_table import GNTMAP_device_map, GNTMAP_readonly
from xenpy.domain.pv.granted import GrantedPages
from xenpy.framepool import FramePool
from xenpy.memory import PAGE_SHIFT, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_ONLY = GNTMAP_device_map | GNTMAP_readonly
WRITABLE = GNTMAP_device_map


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory()
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[FramePool]:
    made = FramePool(1)
    yield made
    made.close()


@pytest.fixture
def pages(memory: GuestMemory) -> GrantedPages:
    domain: Any = SimpleNamespace(memory=memory)
    return GrantedPages(domain, 2)


def test_what_is_written_by_a_read_only_grant_stays_with_the_guest(
    memory: GuestMemory, pool: FramePool, pages: GrantedPages
) -> None:
    frame = pool.allocate()
    shown = pool.view(frame)
    shown[:5] = b"lends"
    gpa = pages.map(0, READ_ONLY, frame)
    assert memory.read(gpa, 5) == b"lends"
    memory.write(gpa, b"takes")
    assert bytes(shown[:5]) == b"lends"
    shown.release()


def test_a_page_may_be_mapped_both_ways(memory: GuestMemory, pool: FramePool, pages: GrantedPages) -> None:
    frame = pool.allocate()
    shown = pool.view(frame)
    both = pages.map(0, READ_ONLY, frame), pages.map(0, WRITABLE, frame)
    assert both[0] != both[1]
    assert pages.map(0, READ_ONLY, frame) == both[0]
    memory.write(both[1], b"given")
    assert bytes(shown[:5]) == memory.read(both[0], 5) == b"given"
    pages.release(READ_ONLY, frame)
    pages.release(WRITABLE, frame)
    assert memory.placed(both[1] >> PAGE_SHIFT) is None
    assert memory.placed(both[0] >> PAGE_SHIFT) == frame, "it is still mapped once"
    pages.release(READ_ONLY, frame)
    assert memory.placed(both[0] >> PAGE_SHIFT) is None
    shown.release()
