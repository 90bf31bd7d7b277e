"""Forks of small PVH kernels that count, take timers and events, and have a verdict to give."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from harness import MODES, Mode

import xenpy
from xenpy.domain.saved import PvhState

if TYPE_CHECKING:
    from pathlib import Path

    import build

TIMEOUT = 90


def working(builder: build.Builder, mode: Mode, cmdline: str) -> xenpy.Guest:
    """Return a guest that does not run yet."""
    kvm_xen = {} if mode.kvm_xen is None else {"xenpy_kvm_xen": mode.kvm_xen}
    return xenpy.Guest.from_kernel(
        builder.build("forked", mode.bits), type="pvh", memory=32, vcpus=1 if cmdline == "one" else 2,
        timeout=TIMEOUT, cmdline=cmdline, **kvm_xen,
    )  # fmt: skip


def check(guest: xenpy.Guest) -> None:
    """See that the guest ends well, and its test with it."""
    ending = guest.wait()
    assert "forked: SUCCESS" in guest.emergency.text, (guest.name, guest.emergency.text)
    assert ending.kind is xenpy.End.POWEROFF


@pytest.mark.parametrize("cmdline", ["one", "two", "two lapic"])
@pytest.mark.parametrize("way", MODES, ids=str)
def test_forks_give_their_verdicts(builder: build.Builder, way: Mode, cmdline: str) -> None:
    with working(builder, way, cmdline) as guest:
        guest.emergency.expect("ready")
        with guest.snapshot() as snap, snap.fork(name="one") as one:
            assert "SUCCESS" not in one.emergency.text
            with one.snapshot() as again, again.fork(name="grandchild") as grandchild:
                for each in (guest, one, grandchild):
                    check(each)


def test_a_saved_kernel_goes_on(builder: build.Builder, tmp_path: Path) -> None:
    with working(builder, MODES[0], "two") as guest:
        guest.emergency.expect("ready")
        with guest.snapshot() as snap:
            snap.save(tmp_path / "saved")
    with xenpy.Snapshot.load(tmp_path / "saved") as snap, snap.fork(clock="wall") as loaded:
        check(loaded)


def test_a_kernel_that_has_not_begun(builder: build.Builder) -> None:
    with working(builder, MODES[0], "two") as guest:
        guest.pause()
        with guest.snapshot() as snap, snap.fork() as fork:
            check(fork)
        guest.unpause()
        check(guest)


def test_hypercalls_made_for_another_kvm_are_refused(builder: build.Builder) -> None:
    with working(builder, MODES[0], "one") as guest, guest.snapshot() as snap:
        state = snap.saved.state
        assert isinstance(state.domain.kind, PvhState)
        other = replace(state.domain.kind, kvm_xen=not state.domain.kind.kvm_xen)
        snap.saved = replace(snap.saved, state=replace(state, domain=replace(state.domain, kind=other)))
        with pytest.raises(xenpy.HostError, match="KVM's Xen support in use, and its hypercalls need the same"):
            snap.fork()
