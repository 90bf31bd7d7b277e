"""The tree that a toolstack makes for a domain, as libxl does.

Ref: docs/misc/xenstore-paths.pandoc, docs/misc/console.txt
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from xenpy.abi.xenbus import XenbusState
from xenpy.pv.xenstore.paths import domain_path
from xenpy.pv.xenstore.tree import DOM0

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.pv.xenstore.client import Client
    from xenpy.pv.xenstore.connection import Connection
    from xenpy.pv.xenstore.quota import Quotas
    from xenpy.pv.xenstore.server import Xenstore

CONSOLE_LIMIT = 1 << 20
"""Bytes of output that the console backend keeps for a reader. Ref: docs/misc/console.txt"""

_READ_ONLY_DIRECTORIES = ("cpu", "memory", "device", "control", "store")
_WRITABLE_DIRECTORIES = ("data", "drivers", "feature", "attr", "error")
_WRITABLE_NODES = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "device/suspend/event-channel",
)
_HVM_WRITABLE_NODES = ("control/feature-s3", "control/feature-s4")


@dataclass(frozen=True, slots=True)
class RingParams:
    """A ring page and its event channel, as start_info or HVM parameters give them to the guest."""

    gfn: int
    port: int


@dataclass(frozen=True, slots=True)
class ConsoleParams:
    """The first PV console; `tty` is where its output can be had, if known yet."""

    ring: RingParams
    tty: str = ""
    output: str = "pty"
    type: Literal["xenconsoled", "ioemu"] = "xenconsoled"


@dataclass(frozen=True, slots=True)
class DomainParams:
    """What the tree says about a new domain; memory in KiB."""

    domid: int
    name: str
    uuid: str
    memory_kib: int
    maxmem_kib: int
    store: RingParams
    type: Literal["pv", "pvh"] = "pvh"
    vcpus: int = 1
    maxvcpus: int | None = None
    videoram_kib: int = 0
    console: ConsoleParams | None = None
    platform: Mapping[str, str | int] = field(default_factory=dict)
    quotas: Quotas | None = None


def introduce_domain(store: Xenstore, params: DomainParams, connection: Connection | None = None) -> None:
    """Write a domain's tree and introduce it; `connection` is its ring's.

    What was there for an earlier domain of the same id is removed.
    """
    store.add_domain(params.domid, params.quotas)
    store.atomically(lambda client: _write_tree(client, params))
    store.introduce(params.domid, connection)


def release_domain(store: Xenstore, domid: int) -> None:
    """Remove a domain's tree, its backends' halves included, and forget it."""

    def remove(client: Client) -> None:
        home = domain_path(domid)
        backends = f"{domain_path(DOM0)}/backend"
        if client.exists(backends):
            for kind in client.ls(backends):
                client.rm(f"{backends}/{kind}/{domid}")
        vm_path = client.get(f"{home}/vm")
        if vm_path is not None and vm_path.startswith("/vm/"):
            client.rm(vm_path)
        client.rm(f"/libxl/{domid}")
        client.rm(home)

    store.atomically(remove)
    store.forget(domid)


def _write_tree(client: Client, params: DomainParams) -> None:
    domid, home, vm_path, libxl = (
        params.domid,
        domain_path(params.domid),
        f"/vm/{params.uuid}",
        f"/libxl/{params.domid}",
    )
    nobody = [f"n{DOM0}"]
    read_only = [f"n{DOM0}", f"r{domid}"]
    writable = [f"n{domid}"]
    for path, perms in ((home, read_only), (vm_path, read_only), (libxl, nobody)):
        client.rm(path)
        client.mkdir(path, perms)
    client.mkdir(f"{libxl}/device", nobody)
    client.write(f"{libxl}/type", params.type)

    client.write(f"{vm_path}/uuid", params.uuid)
    client.write(f"{vm_path}/name", params.name)
    client.write(f"{vm_path}/start_time", f"{time.time():.2f}")

    client.write(f"{home}/vm", vm_path)
    client.write(f"{home}/name", params.name)
    client.write(f"{home}/domid", domid)
    for name in _READ_ONLY_DIRECTORIES:
        client.mkdir(f"{home}/{name}", read_only)
    for name in _WRITABLE_DIRECTORIES:
        client.mkdir(f"{home}/{name}", writable)
    for name in _WRITABLE_NODES + (_HVM_WRITABLE_NODES if params.type != "pv" else ()):
        client.mkdir(f"{home}/{name}", writable)
    client.write(f"{home}/control/platform-feature-multiprocessor-suspend", 1)
    client.write(f"{home}/control/platform-feature-xs_reset_watches", 1)
    for name, value in params.platform.items():
        client.write(f"{home}/platform/{name}", value)

    client.write(f"{home}/memory/static-max", params.maxmem_kib)
    client.write(f"{home}/memory/target", params.memory_kib - params.videoram_kib)
    client.write(f"{home}/memory/videoram", params.videoram_kib)
    for vcpu_id in range(params.maxvcpus or params.vcpus):
        availability = "online" if vcpu_id < params.vcpus else "offline"
        client.write(f"{home}/cpu/{vcpu_id}/availability", availability)
    client.write(f"{home}/store/port", params.store.port)
    client.write(f"{home}/store/ring-ref", params.store.gfn)
    if params.console is not None:
        _write_console(client, domid, params.console)


def _write_console(client: Client, domid: int, console: ConsoleParams) -> None:
    """Write the first console, whose frontend half the guest must not change: host tools trust `tty`."""
    read_only = [f"n{DOM0}", f"r{domid}"]
    frontend = f"{domain_path(domid)}/console"
    backend = f"{domain_path(DOM0)}/backend/console/{domid}/0"
    frontend_nodes: dict[str, str | int] = {
        "backend": backend,
        "backend-id": DOM0,
        "limit": CONSOLE_LIMIT,
        "type": console.type,
        "output": console.output,
        "tty": console.tty,
        "port": console.ring.port,
        "ring-ref": console.ring.gfn,
    }
    backend_nodes: dict[str, str | int] = {
        "frontend": frontend,
        "frontend-id": domid,
        "online": 1,
        "state": XenbusState.Initialising.value,
        "protocol": "vt100",
    }
    client.rm(backend)
    client.mkdir(backend, read_only)
    for name, value in backend_nodes.items():
        client.write(f"{backend}/{name}", value)
    client.mkdir(frontend, read_only)
    for name, value in frontend_nodes.items():
        client.write(f"{frontend}/{name}", value)
    device = f"/libxl/{domid}/device/console/0"
    client.write(f"{device}/frontend", frontend)
    client.write(f"{device}/backend", backend)


@dataclass(frozen=True, slots=True)
class DeviceParams:
    """A split device: where its two ends are in the tree."""

    domid: int
    kind: str
    devid: int

    @property
    def frontend_path(self) -> str:
        """Return the directory of the guest's end."""
        return f"{domain_path(self.domid)}/device/{self.kind}/{self.devid}"

    @property
    def backend_path(self) -> str:
        """Return the directory of our end."""
        return f"{domain_path(DOM0)}/backend/{self.kind}/{self.domid}/{self.devid}"

    @property
    def error_path(self) -> str:
        """Return the node for what went wrong at our end. Ref: docs/misc/xenstore-paths.pandoc, ~/error"""
        return f"{domain_path(DOM0)}/error/backend/{self.kind}/{self.domid}/{self.devid}/error"

    @property
    def toolstack_path(self) -> str:
        """Return the directory of the toolstack's own record."""
        return f"/libxl/{self.domid}/device/{self.kind}/{self.devid}"


def add_device(
    store: Xenstore,
    device: DeviceParams,
    backend: Mapping[str, str | int],
    frontend: Mapping[str, str | int],
) -> None:
    """Write both ends of a device, in state Initialising, so that the guest finds it; what was there is replaced."""
    domid = device.domid
    shared_backend: dict[str, str | int] = {"frontend": device.frontend_path, "frontend-id": domid, "online": 1}
    shared_frontend: dict[str, str | int] = {"backend": device.backend_path, "backend-id": DOM0}
    state = {"state": XenbusState.Initialising.value}
    ends = (
        (device.backend_path, [f"n{DOM0}", f"r{domid}"], shared_backend | dict(backend) | state),
        (device.frontend_path, [f"n{domid}", f"r{DOM0}"], shared_frontend | dict(frontend) | state),
        (
            device.toolstack_path,
            [f"n{DOM0}"],
            {"frontend": device.frontend_path, "backend": device.backend_path} | dict(backend),
        ),
    )

    def write(client: Client) -> None:
        for path, perms, nodes in ends:
            client.rm(path)
            client.mkdir(path, perms)
            for name, value in nodes.items():
                client.write(f"{path}/{name}", value)

    store.atomically(write)


def remove_device(store: Xenstore, device: DeviceParams) -> None:
    """Remove both ends of a device, and what was written about its errors."""

    def remove(client: Client) -> None:
        for path in (device.frontend_path, device.backend_path, device.toolstack_path):
            client.rm(path)
        client.rm(device.error_path.removesuffix("/error"))

    store.atomically(remove)
