"""Atomic operations: what each does, and that none loses an update of another thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xenpy import atomics
from xenpy.framepool import FramePool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 3000


@pytest.fixture
def page() -> Iterator[tuple[memoryview, int]]:
    pool = FramePool(1)
    frame = pool.allocate()
    view = pool.view(frame)
    yield view, pool.hva(frame)
    view.release()
    pool.close()


@pytest.mark.parametrize(("operation", "size"), [("cmpxchg16", 2), ("cmpxchg32", 4), ("cmpxchg64", 8)])
def test_compare_and_exchange(page: tuple[memoryview, int], operation: str, size: int) -> None:
    view, hva = page
    function = getattr(atomics, operation)
    top = (1 << 8 * size) - 1
    view[:16] = b"\xee" * 16
    view[8 : 8 + size] = top.to_bytes(size, "little")
    assert function(hva + 8, 5, 1) == top
    assert function(hva + 8, top, 0x12) == top
    assert function(hva + 8, 0x12, top) == 0x12
    assert bytes(view[8 : 8 + size]) == top.to_bytes(size, "little")
    assert bytes(view[:8]) == b"\xee" * 8
    assert bytes(view[8 + size : 16]) == b"\xee" * (8 - size)


@pytest.mark.parametrize(("operation", "size"), [("xchg8", 1), ("xchg32", 4)])
def test_exchange(page: tuple[memoryview, int], operation: str, size: int) -> None:
    view, hva = page
    top = (1 << 8 * size) - 1
    function = getattr(atomics, operation)
    assert [function(hva + 1, value) for value in (top, 7, 0)] == [0, top, 7]
    assert bytes(view[:16]) == bytes(16)


@pytest.mark.parametrize("bit", [0, 7, 8, 63, 64, 4095, 32767])
def test_bits_beyond_the_first_word(page: tuple[memoryview, int], bit: int) -> None:
    view, hva = page
    assert [atomics.set_bit(hva, bit) for _ in range(2)] == [False, True]
    assert int.from_bytes(view, "little") == 1 << bit
    assert [atomics.clear_bit(hva, bit) for _ in range(2)] == [True, False]
    assert bytes(view) == bytes(4096)


def together(*works: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_bits_of_one_word_from_many_threads(page: tuple[memoryview, int]) -> None:
    _, hva = page
    lost = [0] * 4

    def toggle(bit: int) -> None:
        for _ in range(ROUNDS):
            lost[bit] += atomics.set_bit(hva, bit) or not atomics.clear_bit(hva, bit)

    together(*(lambda bit=bit: toggle(bit) for bit in range(4)))
    assert lost == [0] * 4


@pytest.mark.parametrize(("operation", "size"), [("cmpxchg16", 2), ("cmpxchg32", 4), ("cmpxchg64", 8)])
def test_a_counter_from_many_threads(page: tuple[memoryview, int], operation: str, size: int) -> None:
    view, hva = page
    function = getattr(atomics, operation)

    def count() -> None:
        for _ in range(ROUNDS):
            seen = 0
            while (found := function(hva, seen, seen + 1)) != seen:
                seen = found

    together(*[count] * 4)
    assert int.from_bytes(view[:size], "little") == 4 * ROUNDS


def test_a_flag_is_taken_by_one_thread_each_time(page: tuple[memoryview, int]) -> None:
    _, hva = page
    taken = []

    def give_and_take() -> None:
        for _ in range(ROUNDS):
            if not atomics.xchg8(hva, 1):
                taken.append(1)
                if not atomics.xchg8(hva, 0):
                    taken.append(-1)

    together(*[give_and_take] * 3)
    assert -1 not in taken
    assert taken


def test_the_code_cannot_be_written() -> None:
    start = f"{atomics.KICK_HANDLER & ~0xFFF:x}-"
    with Path("/proc/self/maps").open() as maps:
        (line,) = [line for line in maps if line.startswith(start)]
    assert line.split()[1] == "r-xp"
