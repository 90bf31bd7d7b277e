"""An interface as its frames see it: between a link and the rings of the frontend, if one is connected.

Everything is called in one thread, that of a loop: the host's, or that of a process of the interface's own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from xenpy.devices.vif.credit import Credit
from xenpy.devices.vif.offload import adapt
from xenpy.devices.vif.troubles import Troubles
from xenpy.errors import FrontendError, XenError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from xenpy.config.vif import VifRate
    from xenpy.devices.trouble import Ask
    from xenpy.devices.vif.connection import Connection
    from xenpy.devices.vif.frame import Frame
    from xenpy.devices.vif.link import Link
    from xenpy.loop import Deadline, Loop


class Owner(Protocol):
    """Whose interface it is."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Return what guards links and rings."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Make a call later, in the loop's thread."""

    def give_up(self, error: Exception) -> None:
        """Hear that the frontend broke the protocol; it is not connected any more."""

    def link_changed(self, *, up: bool) -> None:
        """Hear that the link went down or came up."""


class Port:
    """Moves frames both ways. The link is the port's to close."""

    def __init__(self, owner: Owner, loop: Loop, link: Link, rate: VifRate | None) -> None:
        self._owner = owner
        self._loop = loop
        self.link = link
        self.connection: Connection | None = None
        self.is_open = True
        """Whether frames pass; otherwise they are lost."""
        self.troubles: Troubles | None = None
        self._credit = Credit(rate, time.monotonic()) if rate else None
        self._credit_due: Deadline | None = None
        self._look_due: Deadline | None = None
        self._due = False  # a call of `serve` is on its way
        self._closed = False
        owner.call_soon(self._attach)

    def _attach(self) -> None:
        with self.lock:
            if not self._closed:
                self.link.attach(self)

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Return what guards links and rings."""
        return self._owner.lock

    def schedule(self) -> None:
        """Have the rings looked at in the loop's thread, where links are; called under the lock, from any thread."""
        if not self._due:
            self._due = True
            self._owner.call_soon(self.serve)

    def serve(self) -> None:
        """Look at the rings."""
        with self.lock:
            self._due = False
            connection = self.connection
            if connection is None:
                return
            try:
                again = not self.link.busy and connection.transmit(self._send, self._may_send)
                connection.deliver(())  # what is left of a frame that there was no room for
                self.link.resume()
            except (FrontendError, XenError) as error:
                self._give_up(error)
                return
            if again and not self.link.busy:
                self.schedule()
            elif self._look_due is None and (wait := connection.look_in) is not None:
                self._look_due = self._loop.call_later(wait, self._look)

    def _look(self) -> None:
        with self.lock:
            self._look_due = None
            self.schedule()

    def _may_send(self, size: int) -> bool:
        if self.link.busy:
            return False  # `link_idle` goes on with it
        if self._credit is None:
            return True
        wait = self._credit.take(size, time.monotonic())
        if wait and self._credit_due is None:
            self._credit_due = self._loop.call_later(wait, self._on_credit)
        return not wait

    def _on_credit(self) -> None:
        with self.lock:
            self._credit_due = None
            self.schedule()

    def _send(self, frames: Sequence[Frame]) -> None:
        if not self.is_open:
            return
        self._pass_on(frames if self.troubles is None else self.troubles.sent(frames))

    def _pass_on(self, frames: Sequence[Frame]) -> None:
        offloads = self.link.offloads
        ready = [adapted for frame in frames for adapted in adapt(frame, offloads)]
        self.link.send(ready)

    def trouble(self, ask: Ask | None) -> None:
        """Have somebody asked what goes wrong with each frame, or nobody; under the lock."""
        if self.troubles is not None:
            self.troubles.end()
        self.troubles = None if ask is None else Troubles(ask, self._loop, self.lock, self._pass_on, self._hand_over)

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Give the guest frames; return how many of them, from the first on, need not be offered again."""
        if self.troubles is not None:
            self._hand_over(self.troubles.received(frames))
            return len(frames)
        return self._hand_over(frames)

    def _hand_over(self, frames: Sequence[Frame]) -> int:
        if self.connection is None or not self.is_open:
            return len(frames)
        try:
            return self.connection.deliver(frames)
        except (FrontendError, XenError) as error:
            self._give_up(error)
            return len(frames)

    def _give_up(self, error: Exception) -> None:
        self.connection = None
        self._owner.give_up(error)

    def link_idle(self) -> None:
        """Go on with what the guest wants sent."""
        self.schedule()

    def link_changed(self, *, up: bool) -> None:
        """Pass it on."""
        self._owner.link_changed(up=up)

    def close(self) -> None:
        """Close the link."""
        with self.lock:
            self._closed = True
            for due in (self._credit_due, self._look_due):
                if due is not None:
                    due.cancel()
            self.link.close()
