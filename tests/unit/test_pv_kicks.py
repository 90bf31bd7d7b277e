"""A PV vCPU that is to stop: that it does, or that nobody waits for it for ever."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from xenpy.domain.ending import End
from xenpy.domain.pv import bounce, tables, vcpu
from xenpy.domain.pv.vcpu import PvVcpu

if TYPE_CHECKING:
    import pytest

    from xenpy.domain.ending import Ending

_RIP = 0x401001


def test_a_vcpu_that_stays_within_the_shim_ends_its_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PATIENCE_S", 0.01)
    endings: list[Ending] = []

    def end(ending: Ending) -> None:
        endings.append(ending)
        domain.ending = ending

    stuck: Any = SimpleNamespace(vcpu_id=1, _in_guest=True, flush_wanted=False, kvm=SimpleNamespace(kick=list))
    domain: Any = SimpleNamespace(pv_vcpus=[None, stuck], ending=None, end=end)
    asking: Any = SimpleNamespace(vcpu_id=0, domain=domain)
    tables.Tables.flush_on(asking, [1], None)
    assert [ending.kind for ending in endings] == [End.CRASH]
    assert "vCPU 1" in endings[0].detail


def test_int3_is_awaited_only_so_often() -> None:
    kicked: Any = SimpleNamespace(_awaited=0, _near_breakpoint=lambda rip: rip == _RIP)
    assert not PvVcpu._awaits_breakpoint(kicked, _RIP + 1)
    awaited = [PvVcpu._awaits_breakpoint(kicked, _RIP) for _ in range(2 * vcpu._AWAITED_MAX)]
    assert awaited == [True] * vcpu._AWAITED_MAX + [False] * vcpu._AWAITED_MAX
    assert not PvVcpu._awaits_breakpoint(kicked, _RIP + 1)
    assert PvVcpu._awaits_breakpoint(kicked, _RIP), "it has been elsewhere"


def test_a_kick_that_comes_soon_is_not_put_off() -> None:
    asked: list[int] = []
    kicked: Any = SimpleNamespace(_kick_at=0, kick_after=asked.append)
    bounce.Bounces._retry_soon(kicked)
    assert asked == [bounce._RETRY_NS]
    kicked._kick_at = time.monotonic_ns() + 1000 * bounce._RETRY_NS
    bounce.Bounces._retry_soon(kicked)
    assert asked == [bounce._RETRY_NS] * 2, "one that comes late is"


def test_a_kick_that_is_retried_is_put_off_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    now = 1 << 40
    monkeypatch.setattr(bounce.time, "monotonic_ns", lambda: now)
    kicked: Any = SimpleNamespace(_kick_at=now + bounce._RETRY_NS, kick_after=asked.append)
    bounce.Bounces._retry_soon(kicked)
    kicked._kick_at = now + 1
    bounce.Bounces._retry_soon(kicked)
    assert asked == []
    kicked._kick_at = now
    bounce.Bounces._retry_soon(kicked)
    assert asked == [bounce._RETRY_NS]
