"""How soon a guest that sends one frame after the other has to be heard: an event for each costs it an exit, and us a wake-up."""

from __future__ import annotations

from typing import Final

_STREAM: Final = 8
"""Frames in a row, with none for the guest between them, that make a stream."""
_AHEAD: Final = 32
"""Slots that a stream may fill before the guest sends an event; far fewer than a ring has."""
_SHARE: Final = 2
"""We look by ourselves after so many times as long as it took to send what there was,"""
_SHORTEST_S: Final = 0.001
_LONGEST_S: Final = 0.02
"""but within these."""


class Pace:
    """Tells a stream from an exchange, whose frames must not wait."""

    def __init__(self) -> None:
        self._unanswered = 0
        self.wait_s = _SHORTEST_S
        """How long until we look again, at a guest that does not tell us of each frame."""

    @property
    def ahead(self) -> int:
        """Return how many slots the guest may fill without telling us."""
        return _AHEAD if self._unanswered >= _STREAM else 0

    def sent(self, frames: int, took_s: float) -> None:
        """Take note of what the guest has sent since we looked last, and how long it took to deal with it."""
        if frames:
            self._unanswered += frames
            self.wait_s = min(max(_SHORTEST_S, _SHARE * took_s), _LONGEST_S)
        else:
            self._unanswered = 0

    def received(self) -> None:
        """Take note that the guest has got a frame."""
        self._unanswered = 0
