"""What a guest's driver has written about its end of a device; every word of it is the guest's to invent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.xenbus import XenbusState
from xenpy.errors import FrontendError

if TYPE_CHECKING:
    from xenpy.pv.xenstore.client import Client

_MAX_DIGITS: Final = 20
_SHOWN: Final = 40
"""Characters of a guest's value that a message repeats."""
MAX_GREF: Final = (1 << 32) - 1
MAX_PORT: Final = (1 << 17) - 1
"""Ports of the FIFO ABI, the larger one. Ref: xen/include/public/event_channel.h, EVTCHN_FIFO_NR_CHANNELS"""


class FrontendNodes:
    """The nodes below a frontend's directory, each read when it is asked for; called under the host's lock."""

    def __init__(self, store: Client, path: str) -> None:
        self._store = store
        self.path = path

    def state(self) -> XenbusState:
        """Return the frontend's state."""
        text = self.text("state", "")
        if text.isascii() and text.isdigit() and len(text) == 1 and int(text) in XenbusState.__members__.values():
            return XenbusState(int(text))
        return XenbusState.Unknown

    def text(self, name: str, default: str | None = None) -> str:
        """Return a node's value. Raises FrontendError if it is absent and there is no default."""
        value = self._store.get(f"{self.path}/{name}")
        if value is not None:
            return value
        if default is None:
            raise FrontendError(f"{self.path}: there is no {name}")
        return default

    def number(self, name: str, default: int | None = None, *, low: int = 0, high: int) -> int:
        """Return a node's decimal value. Raises FrontendError if it is none, out of bounds, or absent without a default."""
        value = self._store.get(f"{self.path}/{name}")
        if value is None and default is not None:
            return default
        text = self.text(name).strip()
        if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and low <= int(text) <= high:
            return int(text)
        raise FrontendError(f"{self.path}: {name} is {text[:_SHOWN]!r}, not a number from {low} to {high}")

    def flag(self, name: str) -> bool:
        """Return whether a node says 1; absent is no. Raises FrontendError if it is no number."""
        return self.number(name, 0, high=MAX_GREF) != 0

    def gref(self, name: str) -> int:
        """Return a grant reference. Raises FrontendError."""
        return self.number(name, high=MAX_GREF)

    def port(self, name: str) -> int:
        """Return an event channel port. Raises FrontendError."""
        return self.number(name, low=1, high=MAX_PORT)

    def below(self, directory: str) -> FrontendNodes:
        """Return the nodes of a directory below this one, such as a queue's."""
        return FrontendNodes(self._store, f"{self.path}/{directory}")
