"""Debian's Xen packages for the tests of this folder; without them the tests say so and are skipped."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xs_oracle import build_stub

from tests.xen_tools import LIBRARIES, unpacked
from xenpy.pv.xenstore import Xenstore
from xenpy.pv.xenstore.loops import SelectorLoop
from xenpy.pv.xenstore.socket import SocketServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def xen_root() -> Path:
    """Return the folder in which the packages are unpacked."""
    return unpacked()


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
