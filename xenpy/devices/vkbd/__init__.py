"""Keyboards and pointers.

Ref: xen/include/public/io/kbdif.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.config.devices import VkbConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.devices.vkbd.backend import Vkbd
    from xenpy.devices.xenbus import Services


def create(services: Services, domid: int, record: VkbConfig, _options: DeviceOptions) -> Vkbd:
    """Make the backend of a keyboard and pointer."""
    from xenpy.devices.vkbd.backend import Vkbd

    return Vkbd(services, domid, record)
