"""Block devices: the blkif protocol on one side, images and block devices of the host on the other.

`requests` knows the protocol and does no I/O, `queue` joins a ring, granted pages and a `Backing`, `connection` has the queues of a
frontend served by threads, `isolated` by a process (whose side is `served`), `backend` is the device in xenbus.

Ref: xen/include/public/io/blkif.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.config.disk import DiskConfig
    from xenpy.devices.isolation.grants import IsolationServices
    from xenpy.devices.registry import DeviceOptions
    from xenpy.devices.vbd.backend import VbdBackend


def create(services: IsolationServices, domid: int, record: DiskConfig, options: DeviceOptions) -> VbdBackend:
    """Open a disk and make its backend. Raises ConfigError, HostError."""
    from xenpy.devices.vbd.backend import VbdBackend
    from xenpy.devices.vbd.image import open_disk

    frozen = options.disks.get(record.devid)
    backing = frozen.open() if frozen is not None else open_disk(record, ephemeral=options.ephemeral_disks)
    return VbdBackend(services, domid, record, backing, isolated=options.isolated_disks)
