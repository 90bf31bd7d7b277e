"""The I/O loop: descriptors, deadlines, and calls from other threads."""

from __future__ import annotations

import os
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

from xenpy.loop import READ, WRITE, Loop

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue  # the test closed it


def test_a_descriptor_is_served_until_it_is_no_longer_watched(loop: Loop, pipe: tuple[int, int]) -> None:
    seen = []

    def on_readable() -> None:
        seen.append(os.read(pipe[0], 1))
        if len(seen) == 3:
            loop.watch(pipe[0], READ, None)
            loop.call_later(0.01, loop.stop)

    os.write(pipe[1], b"abcdef")
    loop.watch(pipe[0], READ, on_readable)
    loop.run()
    assert seen == [b"a", b"b", b"c"]


def test_a_hang_up_is_news_for_whoever_watches(loop: Loop, pipe: tuple[int, int]) -> None:
    loop.watch(pipe[1], WRITE, lambda: None)
    loop.watch(pipe[1], WRITE, None)
    loop.watch(pipe[0], READ, loop.stop)
    os.close(pipe[1])
    loop.run()


def test_both_directions_of_one_descriptor(loop: Loop) -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        events = []
        loop.watch(ours.fileno(), READ, lambda: events.append("read"))
        loop.watch(ours.fileno(), WRITE, lambda: (events.append("write"), loop.watch(ours.fileno(), WRITE, None)))
        loop.call_later(0.02, loop.stop)
        loop.run()
        assert events == ["write"]
        theirs.send(b"x")
        loop.watch(ours.fileno(), READ, lambda: (events.append(ours.recv(1)), loop.stop()))
        loop.run()
        assert events == ["write", b"x"]
        loop.watch(ours.fileno(), READ, None)


def test_one_handler_may_stop_the_watching_of_another(loop: Loop) -> None:
    pairs = [os.pipe() for _ in range(2)]
    served = []

    def serve(index: int) -> None:
        served.append(index)
        for read_end, _ in pairs:
            loop.watch(read_end, READ, None)
        loop.call_later(0.01, loop.stop)

    for index, (read_end, write_end) in enumerate(pairs):
        os.write(write_end, b"x")
        loop.watch(read_end, READ, lambda index=index: serve(index))
    loop.run()
    assert len(served) == 1
    for pair in pairs:
        for end in pair:
            os.close(end)


def test_a_handler_that_another_handler_of_the_same_event_removed_is_not_called(loop: Loop) -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        called = []

        def handler(name: str) -> None:
            called.append(name)
            loop.watch(ours.fileno(), READ, None)
            loop.watch(ours.fileno(), WRITE, None)
            loop.call_soon(loop.stop)

        loop.watch(ours.fileno(), READ, lambda: handler("read"))
        loop.watch(ours.fileno(), WRITE, lambda: handler("write"))
        loop.run()
        assert called == ["read"]


def test_files_that_epoll_does_not_know_are_refused_and_forgotten(loop: Loop) -> None:
    with tempfile.TemporaryFile() as file:
        for _ in range(2):  # the second time as the first: nothing is left of the attempt
            with pytest.raises(PermissionError):
                loop.watch(file.fileno(), READ, loop.stop)
        loop.watch(file.fileno(), READ, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.watch(file_number_that_is_free(), READ, loop.stop)


def file_number_that_is_free() -> int:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd


def test_a_descriptor_number_that_was_closed_can_be_watched_again(loop: Loop) -> None:
    first = os.pipe()
    loop.watch(first[0], READ, lambda: None)
    os.close(first[0])
    os.close(first[1])
    loop.watch(first[0], READ, None)
    second = os.pipe()
    assert first[0] in second
    loop.watch(second[0], READ, loop.stop)
    os.write(second[1], b"x")
    loop.run()
    os.close(second[0])
    os.close(second[1])


def test_deadlines_come_in_their_order(loop: Loop) -> None:
    called = []
    loop.call_later(0.02, lambda: (called.append("late"), loop.stop()))
    loop.call_later(0.005, lambda: called.append("early"))
    loop.call_later(0, lambda: called.append("now"))
    cancelled = loop.call_later(0.001, lambda: called.append("cancelled"))
    cancelled.cancel()
    cancelled.cancel()
    loop.run()
    assert called == ["now", "early", "late"]


@pytest.mark.parametrize("seconds", [1e7, 1e18, float("inf")])
def test_a_deadline_may_be_far_away(loop: Loop, seconds: float) -> None:
    loop.call_later(seconds, lambda: pytest.fail("too early"))
    threading.Timer(0.01, loop.stop).start()
    loop.run()


def test_a_deadline_may_set_another(loop: Loop) -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        if count == 5:
            loop.stop()
        else:
            loop.call_later(0, again)

    loop.call_later(0, again)
    loop.run()
    assert count == 5


def test_deadlines_that_set_themselves_at_once_do_not_shut_out_descriptors(loop: Loop, pipe: tuple[int, int]) -> None:
    loop.watch(pipe[0], READ, loop.stop)
    rounds = 0

    def again() -> None:
        nonlocal rounds
        rounds += 1
        assert rounds < 1000, "nothing else is served"
        loop.call_later(-1, again)

    loop.call_later(0, again)
    os.write(pipe[1], b"x")
    loop.run()


def test_calls_that_repeat_themselves_do_not_shut_out_descriptors(loop: Loop, pipe: tuple[int, int]) -> None:
    loop.watch(pipe[0], READ, loop.stop)
    rounds = 0

    def again() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 10:
            os.write(pipe[1], b"x")
        assert rounds < 1000, "nothing else is served"
        loop.call_soon(again)

    loop.call_soon(again)
    loop.run()


def test_calls_from_other_threads_arrive_in_order(loop: Loop) -> None:
    called: list[int] = []
    threads: set[int] = set()

    def call(value: int) -> None:
        called.append(value)
        threads.add(threading.get_ident())
        if value == 499:
            loop.stop()

    def hammer() -> None:
        for value in range(500):
            loop.call_soon(lambda value=value: call(value))

    thread = threading.Thread(target=hammer)
    thread.start()
    loop.run()
    thread.join()
    assert called == list(range(500))
    assert threads == {threading.get_ident()}


def test_stop_from_another_thread(loop: Loop) -> None:
    thread = threading.Timer(0.01, loop.stop)
    thread.start()
    loop.run()
    thread.join()


def test_a_stop_before_the_loop_runs_is_not_lost(loop: Loop) -> None:
    loop.stop()
    done = threading.Timer(2, lambda: loop.call_soon(lambda: pytest.fail("the stop was forgotten")))
    done.start()
    try:
        loop.run()
    finally:
        done.cancel()
        done.join()


def test_what_was_asked_for_before_a_stop_is_done(loop: Loop) -> None:
    called: list[int] = []
    loop.call_soon(lambda: called.append(1))
    loop.stop()
    loop.run()
    assert called == [1]


def test_a_loop_runs_again_after_it_was_stopped(loop: Loop) -> None:
    for _ in range(3):
        loop.call_later(0.001, loop.stop)
        loop.run()


def test_what_a_callback_raises_ends_the_loop_and_loses_nothing_else(loop: Loop) -> None:
    called = []

    def fail() -> None:
        raise ZeroDivisionError

    loop.call_soon(lambda: called.append(1))
    loop.call_soon(fail)
    loop.call_soon(lambda: (called.append(2), loop.stop()))
    with pytest.raises(ZeroDivisionError):
        loop.run()
    loop.run()
    assert called == [1, 2]


def test_closing_twice_is_closing_once() -> None:
    loop = Loop()
    loop.close()
    loop.close()
