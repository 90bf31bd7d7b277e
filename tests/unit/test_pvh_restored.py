"""A PVH domain that goes on where another stood still: what it is told at first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from xenpy.domain.pvh_restored import RestoredPvhDomain
from xenpy.framepool import FramePool
from xenpy.memory import GuestMemory
from xenpy.pv.shared_info import SharedInfo

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def shared_info() -> Iterator[SharedInfo]:
    pool, memory = FramePool(4), GuestMemory()
    yield SharedInfo(pool, memory, 1)
    memory.close()
    pool.close()


@pytest.mark.parametrize(("gfn", "is_up"), [(5, True), (5, False), (None, True)])
def test_every_event_is_looked_at(shared_info: SharedInfo, gfn: int | None, is_up: bool) -> None:
    told = []
    domain: Any = SimpleNamespace(shared_info=shared_info, shared_info_gfn=gfn)
    vcpu: Any = SimpleNamespace(vcpu_id=0, domain=domain, is_up=is_up, upcall=lambda: told.append(True))
    RestoredPvhDomain._look_at_events(domain, vcpu)
    info = shared_info.vcpu_info[0]
    placed = gfn is not None
    assert info.upcall_pending == placed
    at = info.layout.pending_sel
    assert bytes(info.view[at : at + 8]) == (b"\xff" if placed else b"\0") * 8
    assert told == [True] * (placed and is_up)
