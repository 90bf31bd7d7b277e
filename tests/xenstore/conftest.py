"""Debian's Xen packages for the tests of this folder; without them the tests say so and are skipped."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xs_oracle import build_stub

from xenpy.cache import cache_directory, locked, published
from xenpy.errors import HostError
from xenpy.packages import fetch_debian, unpack_deb
from xenpy.pv.xenstore import Xenstore
from xenpy.pv.xenstore.loops import SelectorLoop
from xenpy.pv.xenstore.socket import SocketServer

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = (
    "xenstore-utils",
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


@pytest.fixture(scope="session")
def xen_root() -> Path:
    """Return the folder in which the packages are unpacked."""
    target = cache_directory("xen-tools") / "4.17"
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


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiled stand-in for xenstored's Xen libraries."""
    if shutil.which("gcc") is None or not Path("/usr/include/xenctrl.h").exists():
        pytest.skip("needs gcc and libxen-dev to run Debian's xenstored without Xen")
    return build_stub(tmp_path_factory.mktemp("stub"))


@dataclass(frozen=True)
class Served:
    """A store behind a socket, and the environment in which Xen's tools find it."""

    store: Xenstore
    socket: Path
    environment: dict[str, str]


@contextmanager
def _serving(store: Xenstore, path: Path) -> Iterator[None]:
    loop = SelectorLoop()
    server = SocketServer(store, path, loop)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        loop.stop()
        thread.join()
        server.close()
        loop.close()


@pytest.fixture
def served(xen_root: Path, tmp_path: Path) -> Iterator[Served]:
    """Return a fresh store behind a socket."""
    path = tmp_path / "socket"
    store = Xenstore()
    environment = {
        **os.environ,
        "XENSTORED_PATH": str(path),
        "LD_LIBRARY_PATH": str(xen_root / LIBRARIES),
    }
    with _serving(store, path):
        yield Served(store, path, environment)
