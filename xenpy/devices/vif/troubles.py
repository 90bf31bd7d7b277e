"""What a test has go wrong with the frames of an interface: lost, late, twice, out of order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.devices.trouble import Mishap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from xenpy.devices.trouble import Ask
    from xenpy.devices.vif.frame import Frame
    from xenpy.loop import Loop

_MAX_LATE: Final = 1024
"""Frames that wait for a delay to be over; more are lost."""


class Troubles:
    """Asks about each frame, as `tx` of those that the guest sends and `rx` of others. In the loop's thread, under the lock.

    `send` and `deliver` take frames that come late. What there is no room for then is lost, as on any wire.
    """

    def __init__(
        self,
        ask: Ask,
        loop: Loop,
        lock: AbstractContextManager[object],
        send: Callable[[Sequence[Frame]], object],
        deliver: Callable[[Sequence[Frame]], object],
    ) -> None:
        self._ask = ask
        self._loop = loop
        self._lock = lock
        self._send = send
        self._deliver = deliver
        self._overtaken: dict[str, list[Frame]] = {"tx": [], "rx": []}
        self._late = 0
        self._over = False

    def sent(self, frames: Sequence[Frame]) -> list[Frame]:
        """Return what is to be sent now, in the place of frames of the guest's."""
        return self._sorted("tx", frames, self._send)

    def received(self, frames: Sequence[Frame]) -> list[Frame]:
        """Return what is to be delivered now, in the place of frames for the guest."""
        return self._sorted("rx", frames, self._deliver)

    def end(self) -> None:
        """Lose what is late."""
        self._over = True

    def _sorted(self, way: str, frames: Sequence[Frame], late: Callable[[Sequence[Frame]], object]) -> list[Frame]:
        now: list[Frame] = []
        for frame in frames:
            trouble = self._ask(way)
            match trouble.mishap if trouble is not None else None:
                case Mishap.DROP | Mishap.ERROR:
                    continue
                case Mishap.REORDER:
                    if len(self._overtaken[way]) < _MAX_LATE:
                        self._overtaken[way].append(frame.keep())
                    continue
                case Mishap.DELAY:
                    assert trouble is not None
                    self._delay(frame.keep(), trouble.delay_s, late)
                    continue
                case Mishap.DUPLICATE:
                    now.append(frame.keep())
            now.append(frame)
            now += self._overtaken[way]
            self._overtaken[way] = []
        return now

    def _delay(self, frame: Frame, seconds: float, late: Callable[[Sequence[Frame]], object]) -> None:
        if self._late >= _MAX_LATE:
            return
        self._late += 1

        def due() -> None:
            with self._lock:
                self._late -= 1
                if not self._over:
                    late([frame])

        self._loop.call_later(seconds, due)
