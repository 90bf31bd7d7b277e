"""What a configuration means: frozen records with typed fields, the result of `xenpy.config.load`.

Sizes are in MiB and times in microseconds where a field's name says so. `None` stands for "not given" where the default
is for the device or the host to choose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from xenpy.config.cpuid import CpuidRule
    from xenpy.config.cpus import CpuList
    from xenpy.config.grammar import Position, Settings


DEFAULT_VNC_LISTEN = "127.0.0.1"


class GuestType(StrEnum):
    """The kinds of guest xenpy runs; HVM, which needs an emulated PC, is not one of them."""

    PV = "pv"
    PVH = "pvh"


class Action(StrEnum):
    """What to do when a domain ends.

    Ref: xl.cfg(5), Event Actions
    """

    DESTROY = "destroy"
    RESTART = "restart"
    RENAME_RESTART = "rename-restart"
    PRESERVE = "preserve"
    COREDUMP_DESTROY = "coredump-destroy"
    COREDUMP_RESTART = "coredump-restart"
    SOFT_RESET = "soft-reset"


class TscMode(StrEnum):
    """How the guest sees the time stamp counter.

    Ref: xen-tscmode(7)
    """

    DEFAULT = "default"
    ALWAYS_EMULATE = "always_emulate"
    NATIVE = "native"


class DiskFormat(StrEnum):
    """Format of a disk's image; `EMPTY` is a CD drive with nothing in it."""

    RAW = "raw"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    VHD = "vhd"
    QED = "qed"
    EMPTY = "empty"


class DiskBackend(StrEnum):
    """The implementation a disk asks for with backendtype=."""

    PHY = "phy"
    TAP = "tap"
    QDISK = "qdisk"
    STANDALONE = "standalone"


class ChannelConnection(StrEnum):
    """What the host's end of a channel is."""

    PTY = "pty"
    SOCKET = "socket"


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """One disk= entry.

    `target` is as written: the argument of `script`, or a path, which is looked for in the current directory and then
    under /dev unless it is absolute. `devid` is the number of `vdev` in xenstore. `discard` is None when not given,
    which means yes.

    Ref: xl-disk-configuration(5), xen-vbd-interface(7)
    """

    target: str
    vdev: str
    devid: int
    format: DiskFormat = DiskFormat.RAW
    writable: bool = True
    cdrom: bool = False
    backendtype: DiskBackend | None = None
    script: str | None = None
    direct_io_safe: bool = False
    discard: bool | None = None
    trusted: bool = True
    position: Position | None = field(default=None, compare=False)


class VifRate(NamedTuple):
    """A credit: `bytes_per_interval` may leave the guest every `interval_us` microseconds."""

    bytes_per_interval: int
    interval_us: int


@dataclass(frozen=True, slots=True)
class VifConfig:
    """One vif= entry; `mac` is six lower-case hexadecimal groups.

    Ref: xl-network-configuration(5)
    """

    devid: int
    mac: str
    bridge: str | None = None
    gatewaydev: str | None = None
    vifname: str | None = None
    script: str | None = None
    ip: tuple[str, ...] = ()
    rate: VifRate | None = None
    mtu: int | None = None
    vlan: str | None = None
    trusted: bool = True
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class P9Config:
    """One p9= entry: the directory `path`, mounted in the guest by its `tag`. `max_space` is in MiB, 0 is no limit."""

    tag: str
    path: str
    security_model: str = "none"
    max_space: int = 0
    max_files: int = 0
    max_open_files: int = 0
    auto_delete: bool = False
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """One channel= entry; `path` is the socket's, for `ChannelConnection.SOCKET`.

    Ref: xen-pv-channel(7)
    """

    devid: int
    name: str
    connection: ChannelConnection
    path: str | None = None
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class VfbConfig:
    """One vfb= entry. The VNC port is 5900 + `vncdisplay`, or the next free one with `vncunused`."""

    devid: int
    vnc: bool = True
    vnclisten: str = DEFAULT_VNC_LISTEN
    vncdisplay: int = 0
    vncunused: bool = True
    vncpasswd: str | None = None
    keymap: str | None = None
    position: Position | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class VkbConfig:
    """One vkb= entry, or the keyboard and pointer that comes with a vfb=; sizes are in pixels."""

    devid: int
    unique_id: str | None = None
    backend_type: str | None = None
    feature_disable_keyboard: bool = False
    feature_disable_pointer: bool = False
    feature_abs_pointer: bool = False
    feature_raw_pointer: bool = False
    feature_multi_touch: bool = False
    multi_touch_width: int = 0
    multi_touch_height: int = 0
    multi_touch_num_contacts: int = 0
    width: int = 0
    height: int = 0
    position: Position | None = field(default=None, compare=False)


class Ignored(NamedTuple):
    """A key that was accepted and has no effect here."""

    key: str
    position: Position
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainConfig:
    """A whole guest, made by `build`, which has the defaults.

    `settings` is what was written, `warnings` are sentences for the user. `cpus` has an entry for each of `maxvcpus`,
    or none at all. `rtc_timeoffset` is in seconds. `kvm_xen` says whether to use KVM's Xen support; None: if it is there.
    """

    name: str
    type: GuestType
    kernel: Path
    uuid: UUID
    settings: Settings = field(repr=False)
    ramdisk: Path | None
    cmdline: str
    memory_mib: int
    maxmem_mib: int
    vcpus: int
    maxvcpus: int
    cpus: tuple[CpuList | None, ...]
    on_poweroff: Action
    on_reboot: Action
    on_watchdog: Action
    on_crash: Action
    on_soft_reset: Action
    max_grant_frames: int
    max_maptrack_frames: int
    max_grant_version: int
    max_event_channels: int
    tsc_mode: TscMode
    nomigrate: bool
    cpuid: tuple[CpuidRule, ...]
    acpi: bool
    localtime: bool
    rtc_timeoffset: int
    msr_relaxed: bool
    xenstore_feature_mask: int | None
    xenstore_quota: tuple[tuple[str, int], ...]
    disks: tuple[DiskConfig, ...]
    vifs: tuple[VifConfig, ...]
    p9: tuple[P9Config, ...]
    channels: tuple[ChannelConfig, ...]
    vfbs: tuple[VfbConfig, ...]
    vkbs: tuple[VkbConfig, ...]
    xen_version: tuple[int, int]
    kvm_xen: bool | None
    warnings: tuple[str, ...]
    ignored: tuple[Ignored, ...]

    def where(self, key: str) -> str:
        """Return the `file:line` that sets `key`, or the domain's name for a default; for messages."""
        setting = self.settings.get(key)
        return str(setting.position) if setting else self.name
