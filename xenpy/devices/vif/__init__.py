"""Network interfaces: frames between a guest's netfront and user networking, a tap or other guests.

Ref: xen/include/public/io/netif.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.config.vif import VifConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.devices.vif.backend import Vif
    from xenpy.devices.vif.services import VifServices


def create(services: VifServices, domid: int, record: VifConfig, options: DeviceOptions) -> Vif:
    """Make the backend of one vif= entry, and what is behind it. Raises ConfigError, HostError."""
    from xenpy.devices.vif.backend import Vif
    from xenpy.devices.vif.opening import open_station

    return Vif(services, domid, record, open_station(services, domid, record, isolated=options.isolated_nets))
