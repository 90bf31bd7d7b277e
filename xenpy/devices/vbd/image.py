"""From a disk= entry to what serves it.

Ref: xl-disk-configuration(5)
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.config.disk import DiskBackend, DiskConfig, DiskFormat
from xenpy.devices.vbd.backing import EmptyDrive, RawBacking
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from xenpy.devices.vbd.backing import Backing

CONNECTIONS: Final = 4
"""Requests under way at a time with images that a server holds: one a queue."""
_PROTOCOL: Final = re.compile(r"[a-z][a-z0-9+.-]*:")
"""How a target that is for QEMU to find begins, as in rbd:pool/image."""
_FORMATS: Final = {
    None: tuple(DiskFormat),
    DiskBackend.PHY: (DiskFormat.RAW,),
    DiskBackend.TAP: (DiskFormat.RAW, DiskFormat.VHD),
    DiskBackend.QDISK: tuple(DiskFormat),
}


def open_disk(disk: DiskConfig, *, ephemeral: bool = False) -> Backing:
    """Open a disk's medium; with `ephemeral`, what is written to it is dropped in the end. Raises ConfigError, HostError."""
    try:
        return _open(disk, ephemeral=ephemeral and disk.writable)
    except ConfigError as error:
        raise ConfigError(f"{disk.position}: disk {disk.vdev}: {error}" if disk.position else str(error)) from None


def _open(disk: DiskConfig, *, ephemeral: bool) -> Backing:
    if disk.script is not None:
        raise ConfigError(f"script={disk.script} is refused: give the device or image that it would set up as target")
    formats = _FORMATS[disk.backendtype]
    if disk.format is DiskFormat.EMPTY:
        return EmptyDrive()
    if disk.format not in formats:
        raise ConfigError(
            f"backendtype={disk.backendtype} serves format {', '.join(formats)}, not {disk.format}; leave it out"
        )
    if not ephemeral:
        return _open_medium(disk, writable=disk.writable)
    from xenpy.devices.vbd.overlay import Overlay

    base = _open_medium(disk, writable=False)
    try:
        return Overlay(base)
    except BaseException:
        base.close()
        raise


def _open_medium(disk: DiskConfig, *, writable: bool) -> Backing:
    target = find_target(disk.target)
    if target is not None and disk.format is DiskFormat.RAW:
        return RawBacking(os.fspath(target), writable=writable, direct=disk.direct_io_safe)
    from xenpy.devices.vbd.qemu import DRIVERS, QemuImage

    if target is None and not (_PROTOCOL.match(disk.target) and disk.backendtype in (None, DiskBackend.QDISK)):
        raise ConfigError(f"{disk.target}: there is no such file, nor is there one under /dev")
    return QemuImage(
        disk.target if target is None else os.fspath(target),
        DRIVERS[disk.format],
        writable=writable,
        direct=disk.direct_io_safe,
        discard=disk.discard is not False,
        connections=CONNECTIONS,
    )


def find_target(target: str) -> Path | None:
    """Return the absolute path of a target, which is looked for in the current directory and then under /dev, or None."""
    for path in (Path(target), Path("/dev") / target):
        if path.exists():
            return path.absolute()
    return None
