"""What a test has go wrong with frames."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from xenpy.devices.trouble import Mishap, Trouble
from xenpy.devices.vif import troubles as module
from xenpy.devices.vif.frame import Frame
from xenpy.devices.vif.troubles import Troubles

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


class FakeLoop:
    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.later.append((seconds, callback))


class Wire:
    """Frames of one byte each, what goes wrong with which, and those that came late."""

    def __init__(self, **wrong: Mishap) -> None:
        self.loop: Any = FakeLoop()
        self.late: list[bytes] = []
        self._wrong = wrong
        self._next = b""

        def take(frames: Any) -> None:
            self.late += [bytes(frame.head) for frame in frames]

        self.troubles = Troubles(self._ask, self.loop, threading.RLock(), take, take)

    def _ask(self, way: str) -> Trouble | None:
        mishap = self._wrong.get(f"{way}{self._now.pop(0).decode()}")
        return None if mishap is None else Trouble(mishap, 0.5)

    def through(self, way: str, *names: bytes) -> list[bytes]:
        self._now = list(names)
        frames = [Frame([name], 1) for name in names]
        method = self.troubles.sent if way == "tx" else self.troubles.received
        return [bytes(frame.head) for frame in method(frames)]


def test_lost_twice_and_overtaken() -> None:
    wire = Wire(txb=Mishap.DROP, txc=Mishap.DUPLICATE, txd=Mishap.REORDER, rxa=Mishap.ERROR)
    assert wire.through("tx", b"a", b"b", b"c", b"d") == [b"a", b"c", b"c"]
    assert wire.through("rx", b"a", b"d") == [b"d"], "each way has its own"
    assert wire.through("tx", b"e") == [b"e", b"d"]


def test_late() -> None:
    wire = Wire(txa=Mishap.DELAY, rxa=Mishap.DELAY)
    assert wire.through("tx", b"a", b"b") == [b"b"]
    assert [seconds for seconds, _ in wire.loop.later] == [0.5]
    wire.loop.later[0][1]()
    assert wire.late == [b"a"]
    assert wire.through("rx", b"a") == []
    wire.troubles.end()
    wire.loop.later[1][1]()
    assert wire.late == [b"a"], "what was late at the end is lost"


def test_not_too_many_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LATE", 3)
    wire = Wire(txa=Mishap.DELAY, txr=Mishap.REORDER)
    assert wire.through("tx", *[b"a"] * 5) == []
    assert len(wire.loop.later) == 3
    assert wire.through("tx", *[b"r"] * 5, b"x") == [b"x", b"r", b"r", b"r"]
