"""What a configuration means: frozen records with typed fields, the result of `xenpy.config.load`.

Sizes are in MiB and times in microseconds where a field's name says so. `None` stands for "not given" where the default
is for the device or the host to choose. The records of devices are beside their parsers, so that a guest without disks
or interfaces does not pay for them.
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
    from xenpy.config.devices import ChannelConfig, P9Config, VfbConfig, VkbConfig
    from xenpy.config.disk import DiskConfig
    from xenpy.config.grammar import Position, Settings
    from xenpy.config.vif import VifConfig


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


class Ignored(NamedTuple):
    """A key that was accepted and has no effect here."""

    key: str
    position: Position
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainConfig:
    """A whole guest, made by `build`, which has the defaults.

    `settings` is what was written, `warnings` are sentences for the user. `cpus` has an entry for each of `maxvcpus`,
    or none at all. `rtc_timeoffset` is in seconds. `kvm_xen` says whether to use KVM's Xen support; None is "if it is
    there"; so is that of `kvm_events`, which says whether KVM is to serve events and timers by itself.
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
    kvm_events: bool | None
    warnings: tuple[str, ...]
    ignored: tuple[Ignored, ...]

    def where(self, key: str) -> str:
        """Return the `file:line` that sets `key`, or the domain's name for a default; for messages."""
        setting = self.settings.get(key)
        return str(setting.position) if setting else self.name
