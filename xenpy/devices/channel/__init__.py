"""Consoles beside the first, which xl.cfg calls channels: bytes between a guest's hvcN and a pty or a socket of the host.

Ref: xen-pv-channel(7), docs/misc/console.txt
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.config.devices import ChannelConfig
    from xenpy.devices.channel.backend import Channel, ChannelServices
    from xenpy.devices.registry import DeviceOptions


def create(services: ChannelServices, domid: int, record: ChannelConfig, _options: DeviceOptions) -> Channel:
    """Open the host's end of a channel and make its backend. Raises ConfigError, HostError."""
    from xenpy.devices.channel.backend import Channel
    from xenpy.devices.channel.ends import open_end

    return Channel(services, domid, record, open_end(services.loop, record))
