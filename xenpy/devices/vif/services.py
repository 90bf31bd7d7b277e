"""What an interface needs of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from xenpy.devices.isolation.grants import IsolationServices

if TYPE_CHECKING:
    from xenpy.devices.vif.switch import Switches
    from xenpy.loop import Loop


class VifServices(IsolationServices, Protocol):
    """What a vif needs of the host beyond what every backend does."""

    @property
    def loop(self) -> Loop:
        """Return the host's loop."""

    @property
    def switches(self) -> Switches:
        """Return the switches between this host's guests."""
