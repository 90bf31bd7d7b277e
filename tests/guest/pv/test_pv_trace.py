"""Hypercalls that in-guest code carries out are in the trace like all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import xenpy
from xenpy.domain.inguest import IN_GUEST
from xenpy.testing.trace import trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import PvRuns

    from xenpy.testing.trace import Record


def traced(runs: PvRuns, kernel: str, mode: str, *, forbid: bool) -> list[Record]:
    """Run a kernel and return its hypercalls; in-guest code is forbidden to carry out any, or not."""
    with (
        xenpy.Guest.from_kernel(runs.elf(kernel, mode), type="pv", memory=32, paused=True, timeout=60) as guest,
        trace(guest, "hypercall", limit=1 << 20) as recorder,
    ):
        if forbid and guest.domain.in_guest is not None:
            guest.domain.in_guest.forbid()
        guest.unpause()
        assert guest.wait().kind is xenpy.End.POWEROFF
        if guest.domain.in_guest is not None and not forbid:
            assert any(record.in_guest for record in recorder.records)
    return list(recorder.records)


def steps(records: list[Record]) -> Iterator[tuple[str, Any]]:
    """Yield what was asked for, lists element by element: in-guest code may do one part of a list and hand on the rest."""
    for record in records:
        args: dict[str, Any] = record.args
        elements = args.get("req", args.get("op"))
        if isinstance(elements, list) and record.name in ("mmu_update", "mmuext_op") and args["count"] <= len(elements):
            for element in elements:
                yield record.name, element
        elif record.name not in ("mmu_update", "mmuext_op"):
            yield record.name, args


@pytest.mark.parametrize("kernel", ["mmu", "types", "segments", "user"])
def test_nothing_is_missed(pv_runs: PvRuns, pv_mode: str, kernel: str) -> None:
    free = traced(pv_runs, kernel, pv_mode, forbid=False)
    forbidden = traced(pv_runs, kernel, pv_mode, forbid=True)
    assert not any(record.in_guest for record in forbidden)
    assert {record.name for record in free if record.in_guest} <= set(IN_GUEST), "faults must know them"
    assert list(steps(free)) == list(steps(forbidden))
    times = [record.time_ns for record in free if record.in_guest]
    assert times == sorted(times)


def test_events_of_the_console_are_not_late_while_somebody_listens(pv_runs: PvRuns) -> None:
    """There are 500 in pieces, and 50 before the port is closed."""
    records = traced(pv_runs, "events", "syscall", forbid=False)
    (port,) = {record.args["port"] for record in records if record.name == "event_channel_op.close"}
    sent = [record for record in records if record.name == "event_channel_op.send" and record.args["port"] == port]
    assert len(sent) >= 550
    assert not any(record.in_guest for record in sent)
