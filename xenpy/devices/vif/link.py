"""What is behind a guest's interface, and the contract between the two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

from xenpy.devices.vif.frame import ALL_OFFLOADS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from xenpy.devices.vif.frame import Frame, Offloads

BATCH: Final = 64
"""Frames that are handed over at a time, more or less."""


class Sink(Protocol):
    """An interface as its link sees it. Everything is called in the loop's thread, under `lock`."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Return the host's lock."""

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Give the guest frames; return how many of them, from the first on, need not be offered again."""

    def link_idle(self) -> None:
        """Hear that the link, which was busy, can be sent frames again."""

    def link_changed(self, *, up: bool) -> None:
        """Hear that the link went down or came up."""


class Link(ABC):
    """Where an interface's frames go and come from. Everything is called in the loop's thread, under the sink's lock."""

    offloads: Offloads = ALL_OFFLOADS
    """What the link does with a frame itself."""
    busy = False
    """Whether what was sent is still on its way: until `link_idle`, nothing more should be sent."""

    @abstractmethod
    def attach(self, sink: Sink) -> None:
        """Begin to deliver frames to an interface."""

    @abstractmethod
    def send(self, frames: Sequence[Frame]) -> None:
        """Send frames; what there is no room for is lost."""

    @abstractmethod
    def resume(self) -> None:
        """Offer again what the interface did not take."""

    @abstractmethod
    def close(self) -> None:
        """Free everything. Idempotent."""
