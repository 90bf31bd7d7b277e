"""A guest that sends a stream is looked at by the clock, and told to save its events; one that is answered is not."""

from __future__ import annotations

from vif_rig import OURS, THEIRS, connected, ethernet

from xenpy.devices.vif.frame import Frame
from xenpy.devices.vif.pace import Pace

STREAM = 8


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [ethernet(number.to_bytes(4, "big")) for number in range(first, first + count)]


def test_frames_without_an_answer_make_a_stream() -> None:
    pace = Pace()
    pace.sent(STREAM - 1, 0.0)
    assert pace.ahead == 0
    pace.sent(1, 0.0)
    assert pace.ahead > 0
    pace.received()
    assert pace.ahead == 0
    pace.sent(STREAM, 0.0)
    pace.sent(0, 0.0)
    assert pace.ahead == 0


def test_the_longer_frames_take_us_the_later_we_look() -> None:
    pace = Pace()
    waits = []
    for took in (0.0, 0.004, 100.0):
        pace.sent(STREAM, took)
        waits.append(pace.wait_s)
    assert waits == sorted(set(waits))
    assert waits[-1] < 1


def test_what_a_stream_sends_without_an_event_is_found_by_the_clock() -> None:
    with connected() as front:
        deadlines = front.services.loop.deadlines
        for data in numbered(STREAM):
            front.first.send(data)
        assert front.link.frames == numbered(STREAM)
        front.first.send(numbered(1, STREAM)[0])  # the last that we are told of
        front.first.send(numbered(1, STREAM + 1)[0])
        assert front.link.frames == numbered(STREAM + 1)
        (deadline,) = deadlines
        deadlines.clear()
        deadline[1]()
        front.services.pump()
        assert front.link.frames == numbered(STREAM + 2)
        (deadline,) = deadlines
        deadlines.clear()
        deadline[1]()  # there is nothing more
        front.services.pump()
        assert deadlines == []
        front.first.send(b"".join(numbered(1, STREAM + 2)))
        assert front.link.frames == numbered(STREAM + 3), "of the next frame we are told"


def test_a_stream_that_fills_the_ring_is_heard_before_the_clock() -> None:
    with connected() as front:
        data = numbered(100)
        for one in data:
            front.first.send(one)
        assert len(front.link.frames) > len(data) / 2
        assert front.link.frames == data[: len(front.link.frames)]


def test_an_answer_to_the_stream_leaves_nothing_waiting() -> None:
    with connected() as front:
        for data in numbered(STREAM + 1):
            front.first.send(data)
        front.first.post(1)
        answer = ethernet(b"answer", dest=OURS, source=THEIRS)
        front.link.give(Frame([answer], len(answer)))
        front.first.send(numbered(1, STREAM + 1)[0])
        for _, callback in front.services.loop.deadlines:
            callback()
        front.services.pump()
        assert front.link.frames == numbered(STREAM + 2)
