"""Distributions on disks of their own: unmodified user spaces that boot from xvda to a login, made once and kept in the cache."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy.cache import cache_directory, locked, published
from xenpy.errors import ConfigError, HostError
from xenpy.guests import ALPINE, provide
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["DISTRIBUTIONS", "Distribution", "provide_distribution"]

DEBIAN: Final = "debian"
DISTRIBUTIONS: Final = (ALPINE, DEBIAN)
"""Names that `provide_distribution` knows."""

_DEBIAN_KERNEL: Final = "debian-6.12-cloud"
_DEBIAN_MODULES: Final = ("ext4", "xen-blkfront", "xen-netfront")

_MEMORY_MIB: Final = 512
_SHADOW_GID: Final = 42


@dataclass(frozen=True)
class Distribution:
    """A disk with a file system and no partitions, and what boots from it; root logs in on hvc0 without a password."""

    name: str
    disk: Path
    format: str
    """As disk= has it: raw or qcow2."""
    kernel: Path
    ramdisk: Path
    cmdline: str

    def config(self, guest_type: str = "pv") -> str:
        """Return a configuration in xl.cfg syntax, with a network interface."""
        settings = {
            "name": f'"{self.name}"',
            "type": f'"{guest_type}"',
            "memory": str(_MEMORY_MIB),
            "vcpus": "1",
            "kernel": f'"{self.kernel}"',
            "ramdisk": f'"{self.ramdisk}"',
            "cmdline": f'"{self.cmdline}"',
            "disk": f"['format={self.format},vdev=xvda,access=rw,target={self.disk}']",
            "vif": "['']",
        }
        return "".join(f"{name:8}= {value}\n" for name, value in settings.items())


def provide_distribution(name: str, *, refresh: bool = False) -> Distribution:
    """Return the distribution `name`, making its disk unless the cache has it; `refresh` makes it anew of the newest packages.

    Raises ConfigError for an unknown name and HostError if it cannot be made.
    """
    if name == ALPINE:
        return _alpine(refresh=refresh)
    if name == DEBIAN:
        return _debian(refresh=refresh)
    raise ConfigError(f"no distribution {name!r}: one of {', '.join(DISTRIBUTIONS)}")


# -- Alpine -----------------------------------------------------------------------------------------------------------

_ALPINE_GETTY: Final = b"hvc0::respawn:/sbin/getty -L 0 hvc0 vt100\n"


def _alpine(*, refresh: bool) -> Distribution:
    """Return Alpine's own kernel, initrd and disk, to which a login on hvc0 was added: the image is made for an agent on virtio."""
    images = provide(ALPINE, refresh=refresh)
    assert images.disk is not None
    assert images.initrd is not None
    directory = cache_directory("distributions") / ALPINE
    with locked(directory):
        if refresh or not directory.exists():
            with published(directory) as made:
                _add_login(images.disk, made / "disk.qcow2")
    cmdline = "console=hvc0 root=/dev/xvda modules=ext4 rootfstype=ext4 rootflags=rw"
    return Distribution(ALPINE, directory / "disk.qcow2", "qcow2", images.kernel, images.initrd, cmdline)


def _add_login(package: Path, target: Path) -> None:
    from xenpy.ext import Content, read, write

    raw = target.with_suffix(".raw")
    _convert(package, raw)
    inittab, shadow = read(raw, "/etc/inittab"), read(raw, "/etc/shadow")
    open_shadow = b"".join(_without_password(line) for line in shadow.splitlines(keepends=True))
    write(
        raw,
        {
            "/etc/inittab": Content(inittab.rstrip() + b"\n" + _ALPINE_GETTY),
            "/etc/shadow": Content(open_shadow, mode=0o640, gid=_SHADOW_GID),
        },
    )
    _convert(raw, target)
    raw.unlink()


def _without_password(line: bytes) -> bytes:
    """Return a line of shadow(5) with root's password empty."""
    name, _, rest = line.partition(b":")
    return b"root::" + rest.partition(b":")[2] if name == b"root" else line


def _convert(source: Path, target: Path) -> None:
    """Write an image in the format of the target's suffix. Raises HostError."""
    import shutil

    program = shutil.which("qemu-img")
    if program is None:
        raise HostError("qemu-img not found, which converts images: apt install qemu-utils")
    command = [program, "convert", "-O", target.suffix[1:], str(source), str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"qemu-img convert {source}: {done.stderr.strip()}")


# -- Debian -----------------------------------------------------------------------------------------------------------


def _debian(*, refresh: bool) -> Distribution:
    """Return a Debian made of the packages of the host's own release, with a kernel of ours to boot it."""
    directory = cache_directory("distributions") / DEBIAN
    with locked(directory):
        if refresh or not directory.exists():
            from xenpy.debian import make_disk

            with published(directory) as made:
                make_disk(made / "disk.raw")
    images = provide(_DEBIAN_KERNEL)
    ramdisk = make_initramfs(ending="boot", images=images, modules=_DEBIAN_MODULES)
    return Distribution(
        DEBIAN, directory / "disk.raw", "raw", images.kernel, ramdisk, "console=hvc0 root=/dev/xvda rw quiet"
    )
