"""Devices that come and go while the guest runs, as xl's block- and network- commands have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenpy.config.grammar import Atom, Position
from xenpy.errors import ConfigError
from xenpy.toolstack.protocol import CommandError

if TYPE_CHECKING:
    from xenpy.config import DiskConfig, DomainConfig, VifConfig
    from xenpy.host import Guest
    from xenpy.pv.xenstore import Xenstore

KINDS: Final = {"vbd": "disks", "vif": "vifs"}
"""Kind of device -> the field of the configuration that has its records."""
_MAX_DIGITS: Final = 9


def rows(store: Xenstore, domid: int, kind: str) -> list[dict[str, Any]]:
    """Return what is known of a domain's devices of a kind, by number; under the host's lock. Raises CommandError."""
    check_kind(kind)
    home = f"/local/domain/{domid}/device/{kind}"
    names = store.ls(home) if store.exists(home) else []
    found = []
    for devid in sorted(int(name) for name in names if name.isdigit()):
        frontend = f"{home}/{devid}"
        backend = f"/local/domain/0/backend/{kind}/{domid}/{devid}"
        queue = f"{frontend}/queue-0" if store.exists(f"{frontend}/queue-0") else frontend
        found.append(
            {
                "devid": devid,
                "backend": backend,
                "mac": store.get(f"{backend}/mac"),
                "vdev": store.get(f"{backend}/dev"),
                "state": _number(store, f"{frontend}/state"),
                "evtch": _number(store, f"{queue}/event-channel", f"{queue}/event-channel-tx"),
                "ring": _number(store, f"{queue}/ring-ref", f"{queue}/ring-ref0"),
                "tx": _number(store, f"{queue}/tx-ring-ref"),
                "rx": _number(store, f"{queue}/rx-ring-ref"),
            }
        )
    return found


def check_kind(kind: str) -> None:
    """Raise CommandError for a kind of device that cannot be plugged."""
    if kind not in KINDS:
        raise CommandError(f"{kind!r} is no kind of device that comes and goes: {', '.join(KINDS)}")


def _number(store: Xenstore, *paths: str) -> int:
    """Return the first number there is in nodes, which are the guest's to write, or -1."""
    for path in paths:
        text = store.get(path)
        if text is not None and text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
            return int(text)
    return -1


def attach(guest: Guest, config: DomainConfig, kind: str, spec: str, directory: str) -> tuple[DomainConfig, int]:
    """Add a device that a string of the configuration file describes; return the new configuration and the device's number.

    Relative paths are looked for in `directory`. Raises ConfigError, HostError, CommandError.
    """
    check_kind(kind)
    record = _disk(spec, directory, "block-attach") if kind == "vbd" else _vif(guest, spec)
    guest.devices.plug(kind, record)
    field = KINDS[kind]
    change: dict[str, Any] = {field: (*getattr(config, field), record)}
    return replace(config, **change), record.devid


def _disk(spec: str, directory: str, command: str) -> DiskConfig:
    from xenpy.config.disk import parse_disk

    disk = parse_disk(Atom(spec, Position(f"<{command}>", 1, 1)))
    beside = Path(directory) / disk.target
    return replace(disk, target=str(beside)) if disk.target and beside.exists() else disk


def _vif(guest: Guest, spec: str) -> VifConfig:
    from xenpy.config.vif import parse_vifs

    if not any(part.strip().startswith("devid") for part in spec.split(",")):
        with guest.host.lock:
            taken = {row["devid"] for row in rows(guest.host.store, guest.domain.domid, "vif")}
        free = next(devid for devid in range(len(taken) + 1) if devid not in taken)
        spec = f"{spec},devid={free}"
    config = guest.domain.config
    return parse_vifs([Atom(spec, Position("<network-attach>", 1, 1))], str(config.uuid), [])[0]


def resize(guest: Guest, device: str, size: int | None) -> int:
    """Look at the size of a disk's medium anew and tell the guest if it changed; return it in bytes.

    With a `size`, in bytes as well, it is made that large before. Raises CommandError, ConfigError, HostError.
    """
    from xenpy.devices.vbd.backend import VbdBackend

    disk = guest.devices.find(VbdBackend.kind, _devid(guest, VbdBackend.kind, device))
    if not isinstance(disk, VbdBackend):
        raise CommandError(f"Domain {guest.domain.domid}: disk {device} is going already")
    disk.resize(size)
    return disk.backing.size


def insert(guest: Guest, config: DomainConfig, device: str, target: str, directory: str) -> DomainConfig:
    """Put what `target` names, as in disk=, into a CD drive, or nothing if it is ""; return the new configuration.

    Relative paths are looked for in `directory`. Raises CommandError, ConfigError, HostError.
    """
    from xenpy.devices.vbd.backend import VbdBackend
    from xenpy.devices.vbd.image import open_disk

    devid = _devid(guest, VbdBackend.kind, device)
    where = f"Domain {guest.domain.domid}: disk {device}"
    before = next((record for record in config.disks if record.devid == devid), None)
    drive = guest.devices.find(VbdBackend.kind, devid)
    if before is None or not isinstance(drive, VbdBackend):
        raise CommandError(f"{where} is going already")
    if not before.cdrom:
        raise CommandError(f"{where} is no CD drive, which has devtype=cdrom in disk=")
    record = _disk(f"vdev={before.vdev},access=r,devtype=cdrom,target={target}", directory, "cd-insert")
    drive.insert(record, open_disk(record))
    return replace(config, disks=tuple(record if each is before else each for each in config.disks))


def _devid(guest: Guest, kind: str, device: str) -> int:
    """Return the number of a device that is known by its number, name or MAC address. Raises CommandError."""
    check_kind(kind)
    with guest.host.lock:
        devices = rows(guest.host.store, guest.domain.domid, kind)
    wanted = device.lower()
    for row in devices:
        if wanted in (str(row["devid"]), row["vdev"], row["mac"]):
            return int(row["devid"])
    raise CommandError(f"Domain {guest.domain.domid} has no {kind} {device}")


def detach(guest: Guest, config: DomainConfig, kind: str, device: str, *, force: bool) -> tuple[DomainConfig, int]:
    """Ask the guest to give up a device, known by its number, name or MAC address, or take it away.

    Return the new configuration and the device's number. Raises CommandError, ConfigError.
    """
    devid = _devid(guest, kind, device)
    try:
        guest.devices.unplug(kind, devid, force=force)
    except ConfigError:
        raise CommandError(f"Domain {guest.domain.domid}: {kind} {device} is going already") from None
    field = KINDS[kind]
    change: dict[str, Any] = {field: tuple(record for record in getattr(config, field) if record.devid != devid)}
    return replace(config, **change), devid
