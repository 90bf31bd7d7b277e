"""Xen's own tools, out of Debian's packages."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from xenpy.cache import cache_directory, locked, published
from xenpy.errors import HostError
from xenpy.packages import fetch_debian, unpack_deb

PACKAGES = (
    "xenstore-utils",
    "xen-utils-common",
    r"xen-utils-4\.17",
    "libxenstore4",
    r"libxenmisc4\.17",
    "libxencall1",
    "libxenevtchn1",
    "libxengnttab1",
    "libxenforeignmemory1",
    "libxendevicemodel1",
    "libxentoolcore1",
    "libxentoollog1",
    "libxenhypfs1",
    "libyajl2",
    "python3-pyxs",
)
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def _link_sonames(folder: Path) -> None:
    """Give each library its shorter names: packages carry those as symbolic links, which are not unpacked."""
    for library in folder.glob("lib*.so.*"):
        stem, _, version = library.name.partition(".so.")
        parts = version.split(".")
        for count in range(1, len(parts)):
            link = folder / f"{stem}.so.{'.'.join(parts[:count])}"
            if not link.exists():
                link.symlink_to(library.name)


def unpacked() -> Path:
    """Return the folder in which the packages are unpacked; skips the test where they cannot be had."""
    target = cache_directory("xen-tools") / "4.17-common"
    try:
        with locked(target):
            if not target.exists():
                with published(target) as made:
                    for package in PACKAGES:
                        with tempfile.TemporaryDirectory() as scratch:
                            unpack_deb(fetch_debian(package, Path(scratch)), made, lambda path: path.startswith("usr/"))
                    _link_sonames(made / LIBRARIES)
    except HostError as error:
        pytest.skip(f"needs Debian's Xen 4.17 packages: {error}")
    return target
