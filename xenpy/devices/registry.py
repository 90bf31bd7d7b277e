"""Which backend serves which kind of device, and the devices that one guest has."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from xenpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xenpy.config import DomainConfig
    from xenpy.devices.vbd.frozen import FrozenDisk
    from xenpy.devices.xenbus import Backend, BackendState, Services

BACKENDS: Final[Mapping[str, str]] = {
    "vbd": "xenpy.devices.vbd",
    "vif": "xenpy.devices.vif",
    "console": "xenpy.devices.channel",
    "9pfs": "xenpy.devices.p9",
    "vfb": "xenpy.devices.vfb",
    "vkbd": "xenpy.devices.vkbd",
}
"""Kind of device -> the module whose `create(services, domid, record, options)` makes its backend; imported when a guest has one.

`create` opens what the device has of the host and raises ConfigError or HostError; `record` is the configuration's.
"""

FIELDS: Final[Mapping[str, str]] = {
    "disks": "vbd",
    "vifs": "vif",
    "channels": "console",
    "p9": "9pfs",
    "vfbs": "vfb",
    "vkbs": "vkbd",
}
"""Field of a configuration that holds records -> the kind of device they describe."""


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What is decided for all devices of a guest, beside its configuration."""

    ephemeral_disks: bool = False
    """What the guest writes goes to temporary files and is gone with it."""

    isolated_disks: bool = True
    """Each disk whose medium can go there is served by a process of its own, whose death costs nothing but a pause."""

    isolated_nets: bool = True
    """Each interface but those on switches is served by a process of its own, whose death costs a pause and some frames."""

    disks: Mapping[int, FrozenDisk] = field(default_factory=dict)
    """Disks of a guest that goes on, by device number, in place of what the configuration says."""

    saved_in: str = ""
    """The directory of a snapshot that the guest goes on from, the first time that it is started, instead of booting."""


class Devices:
    """The split devices of one guest, by kind and number; they come and go at run time."""

    def __init__(self, services: Services, domid: int, options: DeviceOptions) -> None:
        self._services = services
        self._domid = domid
        self._options = options
        self._backends: dict[tuple[str, int], Backend] = {}

    def open(self, config: DomainConfig) -> None:
        """Make the backends of a configuration, without showing them to the guest. Raises ConfigError, HostError."""
        for name, kind in FIELDS.items():
            for record in getattr(config, name):
                self._create(kind, record)

    def start(self) -> None:
        """Show the guest its devices; when its tree exists and before it runs."""
        for backend in self._backends.values():
            backend.start()

    def resume(self, states: Iterable[BackendState]) -> None:
        """Go on with devices that the guest knows, where others have left them."""
        for state in states:
            backend = self.find(state.kind, state.devid)
            if backend is not None:
                backend.take_over(state)

    def check_saveable(self) -> None:
        """Raise HostError if one of the devices holds state that no other backend could go on from."""
        for (kind, devid), backend in self._backends.items():
            if not backend.can_be_saved:
                raise HostError(
                    f"a guest with a {kind} device ({devid}) cannot be saved: its open files are known to this process only"
                )

    def park(self) -> tuple[BackendState, ...]:
        """Let go of the guest, which stands still and sees nothing of it; the caller must not hold the host's lock."""
        return tuple(backend.park() for backend in self._backends.values())

    def memory_frozen(self) -> None:
        """Take note, parked, that the guest's RAM is private from now on."""
        for backend in self._backends.values():
            backend.memory_frozen()

    def unpark(self) -> None:
        """Go on where `park` left off."""
        for backend in self._backends.values():
            backend.unpark()

    def freeze_disks(self) -> dict[int, FrozenDisk]:
        """Return the disks as they are now; those here go on as overlays of them. While parked. Raises HostError."""
        from xenpy.devices.vbd.backend import VbdBackend

        return {
            backend.params.devid: backend.freeze()
            for backend in self._backends.values()
            if isinstance(backend, VbdBackend)
        }

    def plug(self, kind: str, record: Any) -> Backend:
        """Add a device to a guest that runs. Raises ConfigError, HostError."""
        backend = self._create(kind, record)
        backend.start()
        return backend

    def _create(self, kind: str, record: Any) -> Backend:
        backend: Backend = import_module(BACKENDS[kind]).create(self._services, self._domid, record, self._options)
        key = kind, backend.params.devid
        if key in self._backends:
            backend.release()
            raise ConfigError(f"{kind} {backend.params.devid} exists already")
        backend.on_gone = lambda backend: self._forget(key, backend)
        backend.find = self.find
        self._backends[key] = backend
        return backend

    def _forget(self, key: tuple[str, int], backend: Backend) -> None:
        if self._backends.get(key) is backend:
            del self._backends[key]

    def find(self, kind: str, devid: int) -> Backend | None:
        """Return a device that the guest has."""
        return self._backends.get((kind, devid))

    def names(self) -> list[tuple[str, int]]:
        """Return kind and number of each device, in order."""
        return sorted(self._backends)

    def unplug(self, kind: str, devid: int, *, force: bool = False) -> None:
        """Ask the guest to give up a device, or take it away without asking. Raises ConfigError if it has none such."""
        backend = self.find(kind, devid)
        if backend is None:
            raise ConfigError(f"there is no {kind} {devid}")
        if force:
            backend.close()
            self._forget((kind, devid), backend)
        else:
            backend.unplug()

    def close(self) -> None:
        """Take all devices away, and wait until nothing of the guest's is used; the caller must not hold the host's lock."""
        while self._backends:
            self._backends.popitem()[1].close()
