"""Xen guests without a Xen host: a hypervisor in Python on Linux KVM."""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for True; importing typing would take longer than all the rest

if TYPE_CHECKING:
    from xenpy.api.console import Console
    from xenpy.api.errors import GuestEnded, Timeout
    from xenpy.api.events import EventChannel
    from xenpy.api.guest import Guest
    from xenpy.api.host import Host
    from xenpy.api.processors import Registers
    from xenpy.api.snapshot import Snapshot
    from xenpy.api.transcript import EOF, Match
    from xenpy.domain.ending import End, Ending
    from xenpy.errors import ConfigError, HostError, XenError, XenpyError

__version__ = "0.1.0"

__all__ = [
    "EOF",
    "ConfigError",
    "Console",
    "End",
    "Ending",
    "EventChannel",
    "Guest",
    "GuestEnded",
    "Host",
    "HostError",
    "Match",
    "Registers",
    "Snapshot",
    "Timeout",
    "XenError",
    "XenpyError",
]

_HOMES = {  # imported at first use: `import xenpy` alone costs next to nothing
    "xenpy.api.console": ("Console",),
    "xenpy.api.errors": ("GuestEnded", "Timeout"),
    "xenpy.api.events": ("EventChannel",),
    "xenpy.api.guest": ("Guest",),
    "xenpy.api.host": ("Host",),
    "xenpy.api.processors": ("Registers",),
    "xenpy.api.snapshot": ("Snapshot",),
    "xenpy.api.transcript": ("EOF", "Match"),
    "xenpy.domain.ending": ("End", "Ending"),
    "xenpy.errors": ("ConfigError", "HostError", "XenError", "XenpyError"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
