"""Guest configurations: the xl.cfg grammar, its keys, and typed records of what they mean.

`load` reads a file with `key=value` overrides; `parse_text` and `build` are its two halves without files.
"""

from __future__ import annotations

from xenpy.config.building import build
from xenpy.config.grammar import Position, Settings, parse_text
from xenpy.config.keys import known_keys
from xenpy.config.loading import load
from xenpy.config.model import (
    Action,
    ChannelConfig,
    ChannelConnection,
    DiskBackend,
    DiskConfig,
    DiskFormat,
    DomainConfig,
    GuestType,
    Ignored,
    P9Config,
    TscMode,
    VfbConfig,
    VifConfig,
    VifRate,
    VkbConfig,
)

__all__ = [
    "Action",
    "ChannelConfig",
    "ChannelConnection",
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


def support_table() -> str:
    """Return the documentation of every key as Markdown."""
    from xenpy.config import docs

    return docs.support_table()
