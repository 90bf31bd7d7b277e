"""Guest configurations: the xl.cfg grammar, its keys, and typed records of what they mean.

`load` reads a file with `key=value` overrides; `parse_text` and `build` are its two halves without files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.config.building import build
from xenpy.config.grammar import Position, Settings, parse_text
from xenpy.config.keys import known_keys
from xenpy.config.loading import load
from xenpy.config.model import Action, DomainConfig, GuestType, Ignored, TscMode

if TYPE_CHECKING:
    from xenpy.config.cpuid import CpuidFeature, CpuidRegister
    from xenpy.config.cpus import CpuList
    from xenpy.config.devices import ChannelConfig, ChannelConnection, P9Config, VfbConfig, VkbConfig
    from xenpy.config.disk import DiskBackend, DiskConfig, DiskFormat
    from xenpy.config.docs import support_table
    from xenpy.config.vif import VifConfig, VifRate

__all__ = [
    "Action",
    "ChannelConfig",
    "ChannelConnection",
    "CpuList",
    "CpuidFeature",
    "CpuidRegister",
    "DiskBackend",
    "DiskConfig",
    "DiskFormat",
    "DomainConfig",
    "GuestType",
    "Ignored",
    "P9Config",
    "Position",
    "Settings",
    "TscMode",
    "VfbConfig",
    "VifConfig",
    "VifRate",
    "VkbConfig",
    "build",
    "known_keys",
    "load",
    "parse_text",
    "support_table",
]

_LATER = {  # by the module that makes them, imported at their first use
    "cpuid": ("CpuidFeature", "CpuidRegister"),
    "cpus": ("CpuList",),
    "devices": ("ChannelConfig", "ChannelConnection", "P9Config", "VfbConfig", "VkbConfig"),
    "disk": ("DiskBackend", "DiskConfig", "DiskFormat"),
    "docs": ("support_table",),
    "vif": ("VifConfig", "VifRate"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
