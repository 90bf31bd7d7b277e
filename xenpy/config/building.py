"""Settings to `DomainConfig`: defaults, ranges and the rules between keys, as xl has them.

Ref: xl.cfg(5); defaults compared with `xl create -n` of Xen 4.17
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.config.keys import check
from xenpy.config.model import Action, DomainConfig, GuestType, TscMode
from xenpy.config.text import fail, parse_integer, quote
from xenpy.config.values import Reader
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from uuid import UUID

    from xenpy.config.cpuid import CpuidRule
    from xenpy.config.cpus import CpuList
    from xenpy.config.devices import ChannelConfig, P9Config, VfbConfig, VkbConfig
    from xenpy.config.disk import DiskConfig
    from xenpy.config.grammar import Settings
    from xenpy.config.vif import VifConfig

_HVM = "hvm"
_TYPES = (_HVM, *GuestType)  # in xl's order: a prefix such as "p" means the first that matches
_BUILDERS = {"hvm": _HVM, "generic": GuestType.PV}
_NO_HVM = "HVM guests need an emulated PC, which xenpy has not: use pvh, or pv"

_ACTIONS = {action.value: action for action in Action}
_TSC_MODES = {mode.value: mode for mode in TscMode}
_TSC_NUMBERS = tuple(TscMode)

_DEFAULT_MEMORY_MIB = 32
_MAX_MEMORY_MIB = 8 << 20  # 8 TiB. Ref: xen/SUPPORT.md
_MAX_VCPUS = 128  # HVM_MAX_VCPUS. Ref: xen/include/public/hvm/hvm_info_table.h
_DEFAULT_GRANT_FRAMES, _MAX_GRANT_FRAMES = 64, 1 << 16  # Xen's gnttab_max_frames; a bound of our own
_DEFAULT_MAPTRACK_FRAMES, _MAX_MAPTRACK_FRAMES = 1024, 1 << 20  # Xen's gnttab_max_maptrack_frames; likewise
_MAX_GRANT_VERSION = 2
_DEFAULT_EVENT_CHANNELS = 1023
_MAX_EVENT_CHANNELS = 131_071  # of the FIFO ABI. Ref: xl.cfg(5), max_event_channels
_MAX_OFFSET_S = (1 << 31) - 1
_MAX_MASK = (1 << 32) - 1
_MAX_QUOTA = (1 << 31) - 1
_MAX_NAME = 255
DEFAULT_XEN_VERSION = (4, 20)
_MAX_VERSION = 0xFFFF  # XENVER_version packs two 16-bit halves. Ref: xen/include/public/version.h


def build(
    settings: Settings, filename: str, *, type_override: str | None = None, lenient: bool = False
) -> DomainConfig:
    """Make a `DomainConfig` of settings; `filename` is named where a mandatory key is missing.

    `type_override` stands for type= and builder=. With `lenient`, keys that xl ignores are warnings instead of errors.
    No file is looked at. Raises ConfigError for the first thing wrong.
    """
    warnings: list[str] = []
    reader = Reader(settings, warnings)
    guest_type = _guest_type(reader, type_override)
    ignored = check(settings, guest_type, warnings, lenient=lenient)
    name = _name(reader, filename)
    kernel = reader.string("kernel")
    if not kernel:
        raise ConfigError(f"{filename}: key 'kernel' is missing: the path of a kernel image")
    ramdisk = reader.string("ramdisk")
    memory_mib, maxmem_mib = _memory(reader)
    vcpus, maxvcpus = _vcpus(reader)
    vfbs, vkbs = _displays(reader)
    return DomainConfig(
        name=name,
        type=guest_type,
        kernel=Path(kernel),
        uuid=_uuid(reader),
        settings=settings,
        ramdisk=Path(ramdisk) if ramdisk else None,
        cmdline=_cmdline(reader),
        memory_mib=memory_mib,
        maxmem_mib=maxmem_mib,
        vcpus=vcpus,
        maxvcpus=maxvcpus,
        cpus=_cpus(settings, maxvcpus),
        on_poweroff=reader.choice("on_poweroff", _ACTIONS, Action.DESTROY),
        on_reboot=reader.choice("on_reboot", _ACTIONS, Action.RESTART),
        on_watchdog=reader.choice("on_watchdog", _ACTIONS, Action.DESTROY),
        on_crash=reader.choice("on_crash", _ACTIONS, Action.DESTROY),
        on_soft_reset=reader.choice("on_soft_reset", _ACTIONS, Action.SOFT_RESET),
        max_grant_frames=reader.number("max_grant_frames", _DEFAULT_GRANT_FRAMES, low=1, high=_MAX_GRANT_FRAMES),
        max_maptrack_frames=reader.number(
            "max_maptrack_frames", _DEFAULT_MAPTRACK_FRAMES, low=0, high=_MAX_MAPTRACK_FRAMES
        ),
        max_grant_version=reader.number("max_grant_version", _MAX_GRANT_VERSION, low=1, high=_MAX_GRANT_VERSION),
        max_event_channels=reader.number(
            "max_event_channels", _DEFAULT_EVENT_CHANNELS, low=1, high=_MAX_EVENT_CHANNELS
        ),
        tsc_mode=_tsc_mode(reader),
        nomigrate=reader.boolean("nomigrate"),
        cpuid=_cpuid(settings),
        acpi=reader.boolean("acpi", default=True),
        localtime=reader.boolean("localtime"),
        rtc_timeoffset=reader.number("rtc_timeoffset", 0, low=-_MAX_OFFSET_S, high=_MAX_OFFSET_S),
        msr_relaxed=reader.boolean("msr_relaxed"),
        xenstore_feature_mask=_feature_mask(reader),
        xenstore_quota=_xenstore_quota(reader),
        disks=_disks(reader),
        vifs=_vifs(reader, reader.string("uuid") or name, warnings),
        p9=_p9(reader),
        channels=_channels(reader),
        vfbs=vfbs,
        vkbs=vkbs,
        xen_version=_xen_version(reader),
        kvm_xen=reader.flag("xenpy_kvm_xen"),
        kvm_events=reader.flag("xenpy_kvm_events"),
        warnings=tuple(warnings),
        ignored=tuple(ignored),
    )


def _guest_type(reader: Reader, override: str | None) -> GuestType:
    """Return the type by type=, else by builder=, else pv, which is xl's default on x86."""
    if override is not None:
        if (kind := _match_type(override)) is None:
            raise ConfigError(f"guest type {quote(override)} is neither pv nor pvh")
        if kind == _HVM:
            raise ConfigError(f"guest type hvm is refused: {_NO_HVM}")
        return GuestType(kind)
    by_builder = None
    if (builder := reader.atom("builder")) is not None:
        by_builder = next((kind for name, kind in _BUILDERS.items() if name.startswith(builder.text)), None)
        if by_builder is None:
            raise fail(
                builder.position, f"key 'builder': {quote(builder.text)} is neither generic nor hvm; write type="
            )
        reader.warn("builder", f'it is deprecated: write type="{by_builder}"')
    by_type = None
    if (chosen := reader.atom("type")) is not None:
        by_type = _match_type(chosen.text)
        if by_type is None:
            raise fail(chosen.position, f"key 'type': {quote(chosen.text)} is neither pv nor pvh")
        if by_builder not in (None, by_type):
            raise fail(chosen.position, f"key 'type': {quote(chosen.text)} contradicts builder=")
    kind = by_type or by_builder or GuestType.PV.value
    if kind == _HVM:
        key = "type" if by_type else "builder"
        raise fail(reader.position(key), f"key '{key}': hvm is refused: {_NO_HVM}")
    return GuestType(kind)


def _match_type(text: str) -> str | None:
    """Return the first of xl's types that begins with `text`; like xl's, the empty text means hvm."""
    return next((kind for kind in _TYPES if kind.startswith(text)), None)


def _name(reader: Reader, filename: str) -> str:
    name = reader.string("name")
    if name is None:
        raise ConfigError(f"{filename}: key 'name' is missing: the name of the domain")
    if not 0 < len(name) <= _MAX_NAME or "/" in name or not name.isprintable():
        right = f"1 to {_MAX_NAME} printable characters without '/'"
        raise fail(reader.position("name"), f"key 'name': {quote(name)} is not {right}")
    return name


def _memory(reader: Reader) -> tuple[int, int]:
    """Return memory= and maxmem= in MiB; either stands in for the other, 32 for both."""
    maxmem = reader.number("maxmem", 0, low=1, high=_MAX_MEMORY_MIB)
    memory = reader.number("memory", maxmem or _DEFAULT_MEMORY_MIB, low=1, high=_MAX_MEMORY_MIB)
    if not maxmem and "memory" not in reader:
        reader.remark(f"memory= is not set: the guest gets {memory} MiB, as with xl")
    if maxmem and maxmem < memory:
        raise fail(reader.position("maxmem"), f"key 'maxmem': {maxmem} MiB is less than memory= {memory} MiB")
    return memory, maxmem or memory


def _vcpus(reader: Reader) -> tuple[int, int]:
    """Return vcpus= and maxvcpus=, the latter vcpus= by default."""
    maxvcpus = reader.number("maxvcpus", 0, low=1, high=_MAX_VCPUS)
    vcpus = reader.number("vcpus", 1, low=1, high=_MAX_VCPUS)
    if maxvcpus and maxvcpus < vcpus:
        raise fail(reader.position("maxvcpus"), f"key 'maxvcpus': {maxvcpus} is less than vcpus= {vcpus}")
    return vcpus, maxvcpus or vcpus


def _uuid(reader: Reader) -> UUID:
    from uuid import UUID, uuid4

    atom = reader.atom("uuid")
    if atom is None:
        return uuid4()
    try:
        return UUID(atom.text)
    except ValueError:
        right = "it is like 1c7ada8e-3426-4fd7-93ec-9e03f26a85ef"
        raise fail(atom.position, f"key 'uuid': {quote(atom.text)} is no UUID; {right}") from None


def _cmdline(reader: Reader) -> str:
    """Return cmdline=, or root= and extra= put together."""
    cmdline, root, extra = (reader.string(key) for key in ("cmdline", "root", "extra"))
    if cmdline is not None:
        for key in ("root", "extra"):
            if key in reader:
                reader.warn(key, "it is ignored in favour of cmdline=")
        return cmdline
    return " ".join(part for part in (None if root is None else f"root={root}", extra) if part)


def _tsc_mode(reader: Reader) -> TscMode:
    text = reader.string("tsc_mode")
    number = parse_integer(text) if text else None
    if number is None or not 0 <= number < len(_TSC_NUMBERS):
        return reader.choice("tsc_mode", _TSC_MODES, TscMode.DEFAULT)
    reader.warn("tsc_mode", f'a number is deprecated: write tsc_mode="{_TSC_NUMBERS[number]}"')
    return _TSC_NUMBERS[number]


def _cpus(settings: Settings, maxvcpus: int) -> tuple[CpuList | None, ...]:
    if "cpus" not in settings:
        return ()
    from xenpy.config.cpus import parse_cpus

    return parse_cpus(settings["cpus"], maxvcpus)


def _cpuid(settings: Settings) -> tuple[CpuidRule, ...]:
    if "cpuid" not in settings:
        return ()
    from xenpy.config.cpuid import parse_cpuid

    return parse_cpuid(settings["cpuid"])


def _feature_mask(reader: Reader) -> int | None:
    key = "xenstore_feature_mask"
    return reader.number(key, 0, low=0, high=_MAX_MASK) if key in reader else None


def _xenstore_quota(reader: Reader) -> tuple[tuple[str, int], ...]:
    quotas: dict[str, int] = {}
    for atom in reader.items("xenstore_quota"):
        name, _, text = (part.strip() for part in atom.text.partition("="))
        value = parse_integer(text)
        if not name or value is None or not 0 <= value <= _MAX_QUOTA:
            raise fail(atom.position, f"key 'xenstore_quota': {quote(atom.text)} is not like nodes=1000")
        quotas[name] = value
    return tuple(quotas.items())


def _xen_version(reader: Reader) -> tuple[int, int]:
    atom = reader.atom("xenpy_xen_version")
    if atom is None:
        return DEFAULT_XEN_VERSION
    numbers = [
        int(part) if part.isascii() and part.isdigit() and len(part) < 6 else -1 for part in atom.text.split(".")
    ]
    if len(numbers) != 2 or not all(0 <= number <= _MAX_VERSION for number in numbers):
        raise fail(atom.position, f"key 'xenpy_xen_version': {quote(atom.text)} is not like 4.20")
    return numbers[0], numbers[1]


def _disks(reader: Reader) -> tuple[DiskConfig, ...]:
    if "disk" not in reader:
        return ()
    from xenpy.config.disk import parse_disk

    disks: dict[int, DiskConfig] = {}
    for atom in reader.items("disk"):
        disk = parse_disk(atom)
        if (other := disks.get(disk.devid)) is not None:
            raise fail(
                atom.position, f"disk {quote(atom.text)}: {disk.vdev} is also that of the disk at {other.position}"
            )
        disks[disk.devid] = disk
    return tuple(disks.values())


def _vifs(reader: Reader, seed: str, warnings: list[str]) -> tuple[VifConfig, ...]:
    if "vif" not in reader:
        return ()
    from xenpy.config.vif import parse_vifs

    return parse_vifs(reader.items("vif"), seed, warnings)


def _p9(reader: Reader) -> tuple[P9Config, ...]:
    if "p9" not in reader:
        return ()
    from xenpy.config.devices import parse_p9

    shares: dict[str, P9Config] = {}
    for devid, atom in enumerate(reader.items("p9")):
        share = parse_p9(atom, devid)
        if (other := shares.get(share.tag)) is not None:
            raise fail(atom.position, f"p9 {quote(atom.text)}: tag {share.tag} is also that of {other.path}")
        shares[share.tag] = share
    return tuple(shares.values())


def _channels(reader: Reader) -> tuple[ChannelConfig, ...]:
    if "channel" not in reader:
        return ()
    from xenpy.config.devices import parse_channel

    return tuple(parse_channel(atom, devid) for devid, atom in enumerate(reader.items("channel")))


def _displays(reader: Reader) -> tuple[tuple[VfbConfig, ...], tuple[VkbConfig, ...]]:
    """Return the framebuffers and the keyboards; each framebuffer brings a keyboard of its own, as in xl."""
    if not any(key in reader for key in ("vfb", "vkb", "vnc")):
        return (), ()
    from xenpy.config.devices import VkbConfig, parse_vfb, parse_vkb, vfb_of_domain

    vkb_atoms = list(reader.items("vkb"))
    vkbs = [parse_vkb(atom, devid) for devid, atom in enumerate(vkb_atoms)]
    vfbs = [parse_vfb(atom, devid) for devid, atom in enumerate(reader.items("vfb"))]
    if not vfbs and (vfb := vfb_of_domain(reader)) is not None:
        vfbs.append(vfb)
    vfbs = [replace(vfb, keyboard=len(vkbs) + number) for number, vfb in enumerate(vfbs)]
    vkbs += [VkbConfig(devid=vfb.keyboard or 0, position=vfb.position) for vfb in vfbs]
    return tuple(vfbs), tuple(vkbs)
