"""Shared folders: 9P2000.L over Xen's 9pfs transport.

`ring` is the transport, `messages` the wire, `tree` the folder, out of which no name leads, `server` joins the last two and knows
no Xen, `backend` is the device in xenbus. The server is ours because the one that is packaged, diod, takes `../x` for a name
and so leaves its folder, and has no limits.

Ref: docs/misc/9pfs.pandoc
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.config.devices import P9Config
    from xenpy.devices.p9.backend import P9Backend
    from xenpy.devices.registry import DeviceOptions
    from xenpy.devices.xenbus import Services


def create(services: Services, domid: int, record: P9Config, _options: DeviceOptions) -> P9Backend:
    """Open a folder and make its backend. Raises ConfigError."""
    from xenpy.devices.p9.backend import P9Backend, open_folder

    return P9Backend(services, domid, record, open_folder(record))
