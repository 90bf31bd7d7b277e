"""Disks served by a process of their own, and ways to end it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vbd_rig import BlkFrontend
from xenbus_rig import DOMID, PATIENCE, FakeServices

from xenpy.devices.vbd.backend import VbdBackend
from xenpy.devices.vbd.image import open_disk
from xenpy.devices.vbd.isolated import Isolated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.config.disk import DiskConfig
    from xenpy.devices.isolation.keeper import Keeper
    from xenpy.devices.vbd.backing import Backing


class Services(FakeServices):
    """The host, which also knows where the guest's memory is."""

    def domain(self, domid: int) -> Services:
        assert domid == DOMID
        return self


@contextmanager
def isolated(disk: DiskConfig, *, backing: Backing | None = None, ephemeral: bool = False) -> Iterator[BlkFrontend]:
    """Plug a disk into a guest whose driver has not looked at it yet."""
    services = Services()
    backend = VbdBackend(services, DOMID, disk, backing or open_disk(disk, ephemeral=ephemeral), isolated=True)
    backend.start()
    services.pump()
    try:
        yield BlkFrontend(services, backend)
    finally:
        backend.close()
        assert not services.bound
        assert not services.gnttab.describe()[1:]
        services.close()


def keeper(frontend: BlkFrontend) -> Keeper:
    """Return what keeps the process of a connected disk running."""
    connection = frontend.backend.connection
    assert isinstance(connection, Isolated)
    return connection.keeper


def pid(frontend: BlkFrontend) -> int:
    """Return the process that serves a disk, when there is one."""
    deadline = time.monotonic() + PATIENCE
    while (process := keeper(frontend).process) is None:
        assert time.monotonic() < deadline, "no process"
        time.sleep(0.001)
    return process.pid


def kill(frontend: BlkFrontend) -> None:
    """End the process that serves a disk the way that leaves it no choice; return when that has been noticed."""
    deaths = keeper(frontend).deaths
    os.kill(pid(frontend), signal.SIGKILL)
    frontend.services.until(lambda: keeper(frontend).deaths > deaths, "the process' death")
