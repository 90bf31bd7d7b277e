"""Kicks: the signal handler sets the flag of the vCPU meant, in the thread meant, and no system call sleeps through one."""

from __future__ import annotations

import errno
import os
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from xenpy.framepool import FramePool
from xenpy.kvm.kick import KickTimer, kick
from xenpy.kvm.vcpu import KvmVcpu

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60


@pytest.fixture
def flags() -> Iterator[tuple[memoryview, int]]:
    pool = FramePool(1)
    frame = pool.allocate()
    view = pool.view(frame)
    yield view, pool.hva(frame)
    view.release()
    pool.close()


def until(view: memoryview, index: int) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not view[index] and time.monotonic() < deadline:
        time.sleep(0.001)
    return bool(view[index])


def test_a_kick_sets_the_flag_it_names(flags: tuple[memoryview, int]) -> None:
    view, hva = flags
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    kick(thread.ident or 0, hva + 5)
    assert until(view, 5)
    assert sum(view) == 1
    done.set()
    thread.join()


def test_many_kicks_at_once_reach_every_flag(flags: tuple[memoryview, int]) -> None:
    view, hva = flags
    done = threading.Event()
    sleepers = [threading.Thread(target=done.wait) for _ in range(4)]
    for thread in sleepers:
        thread.start()

    def kicker(first: int) -> None:
        for index in range(first, 512, 3):
            kick(sleepers[index % 4].ident or 0, hva + index)

    kickers = [threading.Thread(target=kicker, args=(first,)) for first in range(3)]
    for thread in kickers:
        thread.start()
    for thread in kickers:
        thread.join()
    for index in range(512):
        assert until(view, index)
    done.set()
    for thread in sleepers:
        thread.join()


def test_a_timer_kicks_its_own_thread(flags: tuple[memoryview, int]) -> None:
    view, hva = flags
    timer = KickTimer(threading.get_native_id(), hva)
    try:
        for delay in (0, 1, 1_000_000, -5):
            view[0] = 0
            timer.arm(delay)
            assert until(view, 0)
    finally:
        timer.close()
        timer.close()


def test_a_timer_fires_once_and_not_when_disarmed(flags: tuple[memoryview, int]) -> None:
    view, hva = flags
    timer = KickTimer(threading.get_native_id(), hva)
    other = KickTimer(threading.get_native_id(), hva + 1)
    try:
        timer.arm(3_600_000_000_000)
        timer.disarm()
        timer.disarm()
        other.arm(1_000_000)
        assert until(view, 1)
        view[1] = 0
        timer.arm((1 << 64) - 1)  # as late as a guest can ask for
        other.arm(1_000_000)
        assert until(view, 1)
        assert view[0] == 0
    finally:
        timer.close()
        other.close()


def test_a_read_that_sleeps_is_interrupted_but_goes_on(flags: tuple[memoryview, int]) -> None:
    view, hva = flags
    read_end, write_end = os.pipe()
    got = []
    thread = threading.Thread(target=lambda: got.append(os.read(read_end, 1)))
    thread.start()
    kick(thread.ident or 0, hva)
    assert until(view, 0)
    os.write(write_end, b"x")
    thread.join(PATIENCE_S)
    os.close(read_end)
    os.close(write_end)
    assert got == [b"x"], "Python repeats a call that a signal interrupted"


def test_a_kick_while_kvm_completes_an_instruction_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu = KvmVcpu.__new__(KvmVcpu)
    vcpu.fd, vcpu.run = 99, SimpleNamespace(immediate_exit=0)

    def run_guest(*_: int) -> int:
        assert vcpu.run.immediate_exit, "the guest would run"
        return -errno.EINTR

    monkeypatch.setattr("xenpy.kvm.vcpu.libc.ioctl", run_guest)
    assert vcpu.complete() == -errno.EINTR
    assert vcpu.run.immediate_exit, "a kick of this moment has set nothing else"
