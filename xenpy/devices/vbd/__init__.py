"""Block devices: the blkif protocol on one side, images and block devices of the host on the other.

`requests` knows the protocol and does no I/O, `queue` joins a ring, granted pages and a `Backing`, `backend` is the device in xenbus.

Ref: xen/include/public/io/blkif.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.config.disk import DiskConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.devices.vbd.backend import VbdBackend
    from xenpy.devices.xenbus import Services


def create(services: Services, domid: int, record: DiskConfig, options: DeviceOptions) -> VbdBackend:
    """Open a disk and make its backend. Raises ConfigError, HostError."""
    from xenpy.devices.vbd.backend import VbdBackend
    from xenpy.devices.vbd.image import open_disk

    return VbdBackend(services, domid, record, open_disk(record, ephemeral=options.ephemeral_disks))
