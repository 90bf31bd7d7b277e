"""A snapshot in a directory: plain data as JSON, memory as a sparse file, and of each disk what differs from its image.

Nothing in it is code, and nothing is believed: what does not fit is refused with the reason.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xenpy
from xenpy.api.settings import quoted
from xenpy.api.transcript import Written
from xenpy.codec import CodecError, decode, encode, plain
from xenpy.errors import ConfigError, HostError
from xenpy.frozen import FrozenRam, Run, copy_file
from xenpy.saved import GuestState, SavedGuest

if TYPE_CHECKING:
    from xenpy.api.snapshot import Snapshot
    from xenpy.config import DomainConfig
    from xenpy.config.grammar import Value
    from xenpy.devices.vbd.frozen import FrozenDisk
    from xenpy.kvm.system import Kvm

FORMAT: Final = 1
"""Changes whenever an older or newer xenpy would misunderstand the rest."""
_STATE: Final = "snapshot.json"
_RAM: Final = "memory"
_FEATURE_LEAVES: Final = ((1, 0), (7, 0), (0xD, 1), (0x8000_0001, 0))
"""CPUID leaves whose bits are features. Ref: AMD64 APM volume 3, appendix E; Intel SDM volume 2, CPUID"""
_FEATURE_REGISTERS: Final = {(1, 0): (2, 3), (7, 0): (1, 2, 3), (0xD, 1): (0,), (0x8000_0001, 0): (2, 3)}
_REGISTERS: Final = ("eax", "ebx", "ecx", "edx")


@plain
@dataclass(frozen=True, slots=True)
class Image:
    """The image under a disk: it must be what it was. `layers` says that files with what was written over it are here too."""

    path: str
    size: int
    changed_ns: int
    layers: bool


@plain
@dataclass(frozen=True, slots=True)
class Saved:
    """All of a snapshot but what is in files of its own. `features` are CPUID's (leaf, subleaf, register) -> bits."""

    config: str
    uuid: str
    macs: tuple[str, ...]
    features: dict[tuple[int, int, int], int]
    vendor: tuple[int, int, int]
    memory_size: int
    runs: tuple[Run, ...]
    disks: dict[int, Image]
    state: GuestState
    console: Written
    emergency: Written
    shell_ready: bool
    timeout: float


def write(snapshot: Snapshot, directory: Path, kvm: Kvm) -> None:
    """Write a snapshot into a new directory. Raises HostError for one that is there, OSError."""
    saved, config = snapshot.saved, snapshot.config
    try:
        directory.mkdir()
    except FileExistsError:
        raise HostError(
            f"{directory} exists already: a snapshot is saved into a directory that is not there yet"
        ) from None
    ram = os.open(directory / _RAM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        copy_file(saved.ram.fd, ram, saved.ram.size)
    finally:
        os.close(ram)
    whole = Saved(
        config=_text_of(config),
        uuid=str(config.uuid),
        macs=tuple(vif.mac for vif in config.vifs),
        features=_features(kvm),
        vendor=_vendor(kvm),
        memory_size=saved.ram.size,
        runs=saved.ram.runs,
        disks={
            disk.devid: _write_disk(directory, disk.devid, disk.target, saved.disks[disk.devid])
            for disk in config.disks
        },
        state=saved.state,
        console=snapshot.console,
        emergency=snapshot.emergency,
        shell_ready=snapshot.shell_ready,
        timeout=snapshot.timeout,
    )
    header = {"format": FORMAT, "xenpy": xenpy.__version__, "domain": config.name, "memory_mib": config.maxmem_mib}
    text = json.dumps({**header, "snapshot": encode(whole)}, separators=(",", ":"))
    (directory / _STATE).write_text(text, encoding="ascii")  # last: without it the directory is no snapshot


def read(directory: Path, kvm: Kvm) -> Snapshot:
    """Return the snapshot in a directory, which must stay as it is while there are forks.

    Raises ConfigError where there is none, HostError with what does not fit.
    """
    from xenpy.api.snapshot import Snapshot

    saved = _read_state(directory)
    _check_processor(directory, saved, kvm)
    try:
        ram_fd = os.open(directory / _RAM, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"{directory / _RAM}: {error.strerror}") from None
    ram = FrozenRam(ram_fd, saved.runs)
    disks: dict[int, FrozenDisk] = {}
    try:
        if os.fstat(ram_fd).st_size != saved.memory_size or ram.size != saved.memory_size:
            raise HostError(f"{directory / _RAM} has not the {saved.memory_size} bytes that {_STATE} tells of")
        config = _config_of(saved)
        for disk in config.disks:
            disks[disk.devid] = _read_disk(directory, disk, saved.disks[disk.devid])
    except BaseException:
        SavedGuest(saved.state, ram, disks).close()
        raise
    return Snapshot(
        config, SavedGuest(saved.state, ram, disks), saved.console, saved.emergency, shell_ready=saved.shell_ready,
        timeout=saved.timeout,
    )  # fmt: skip


def read_config(directory: Path) -> DomainConfig:
    """Return the configuration of the guest that a directory holds. Raises ConfigError, HostError."""
    return _config_of(_read_state(directory))


def _read_state(directory: Path) -> Saved:
    path = directory / _STATE
    try:
        whole: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: no snapshot is there") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not a snapshot: {error}") from None
    version = whole.get("format") if isinstance(whole, dict) else None
    if version != FORMAT:
        raise HostError(f"{path}: format {version!r}, but this xenpy ({xenpy.__version__}) reads format {FORMAT}")
    if whole.get("xenpy") != xenpy.__version__:
        raise HostError(
            f"{path}: saved by xenpy {whole.get('xenpy')}; only that version goes on with it, and this is {xenpy.__version__}"
        )
    try:
        return decode(Saved, whole.get("snapshot"))
    except CodecError as error:
        raise HostError(f"{path}: {error}") from None


# -- processors -------------------------------------------------------------------------------------------------------


def _features(kvm: Kvm) -> dict[tuple[int, int, int], int]:
    leaves = {(leaf, subleaf): registers for leaf, subleaf, _, registers in kvm.supported_cpuid()}
    return {
        (*leaf, register): leaves[leaf][register]
        for leaf in _FEATURE_LEAVES
        if leaf in leaves
        for register in _FEATURE_REGISTERS[leaf]
    }


def _vendor(kvm: Kvm) -> tuple[int, int, int]:
    for leaf, _, _, registers in kvm.supported_cpuid():
        if leaf == 0:
            return registers[1], registers[2], registers[3]
    return 0, 0, 0


def _check_processor(directory: Path, saved: Saved, kvm: Kvm) -> None:
    """Raise HostError unless this host's processors can do all that those could on which the guest was saved."""
    if saved.vendor != _vendor(kvm):
        raise HostError(f"{directory}: saved on a processor of another vendor")
    here = _features(kvm)
    missing = [
        f"leaf {leaf:#x}.{subleaf} {_REGISTERS[register]} {bits & ~here.get((leaf, subleaf, register), 0):#x}"
        for (leaf, subleaf, register), bits in saved.features.items()
        if bits & ~here.get((leaf, subleaf, register), 0)
    ]
    if missing:
        raise HostError(
            f"{directory}: saved on a processor with features that this host has not: CPUID {', '.join(missing)}"
        )


# -- configuration ----------------------------------------------------------------------------------------------------


def _text_of(config: DomainConfig) -> str:
    return "".join(f"{key} = {_value(setting.value)}\n" for key, setting in config.settings.items())


def _value(value: Value) -> str:
    items = getattr(value, "items", None)
    if isinstance(items, tuple):
        return f"[{', '.join(map(_value, items))}]"
    return quoted("", getattr(value, "text", ""))


def _config_of(saved: Saved) -> DomainConfig:
    from uuid import UUID

    from xenpy.config.building import build
    from xenpy.config.grammar import parse_text

    config = build(parse_text(saved.config, _STATE), _STATE, lenient=True)
    vifs = tuple(replace(vif, mac=mac) for vif, mac in zip(config.vifs, saved.macs, strict=True))
    disks = tuple(replace(disk, target=saved.disks[disk.devid].path) for disk in config.disks)
    return replace(config, uuid=UUID(saved.uuid), vifs=vifs, disks=disks)


# -- disks ------------------------------------------------------------------------------------------------------------


def _names(directory: Path, devid: int) -> tuple[Path, Path]:
    return directory / f"disk-{devid}", directory / f"disk-{devid}.map"


def _write_disk(directory: Path, devid: int, target: str, disk: FrozenDisk) -> Image:
    layers = disk.write_layers(*_names(directory, devid))
    size, changed = _identity(target) if target else (0, 0)
    return Image(str(Path(target).absolute()) if target else "", size, changed, layers)


def _identity(path: str) -> tuple[int, int]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def _read_disk(directory: Path, disk: Any, image: Image) -> FrozenDisk:
    from xenpy.devices.vbd.frozen import FrozenDisk
    from xenpy.devices.vbd.image import open_disk

    if image.path:
        try:
            now = _identity(image.path)
        except OSError as error:
            raise HostError(f"{directory}: disk {disk.vdev}: {image.path}: {error.strerror}") from None
        if now != (image.size, image.changed_ns):
            raise HostError(f"{directory}: disk {disk.vdev}: {image.path} has been changed since the guest was saved")
    base = open_disk(replace(disk, writable=False), ephemeral=False)
    return FrozenDisk.read_layers(base, *_names(directory, disk.devid), writable=disk.writable, layers=image.layers)
