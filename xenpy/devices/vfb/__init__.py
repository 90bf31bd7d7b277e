"""Framebuffers: what a guest shows on its screen, as an image.

Ref: xen/include/public/io/fbif.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xenpy.config.devices import VfbConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.devices.vfb.backend import Vfb, VfbServices


def create(services: VfbServices, domid: int, record: VfbConfig, _options: DeviceOptions) -> Vfb:
    """Make the backend of a framebuffer."""
    from xenpy.devices.vfb.backend import Vfb

    return Vfb(services, domid, record)
