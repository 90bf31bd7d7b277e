"""Saving a domain to a directory, in the domain's process.

Ref: xl(1), save
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.api.processors import Processors
from xenpy.api.progress import DEFAULT_TIMEOUT_S, Progress
from xenpy.api.savefile import write
from xenpy.api.snapshot import Snapshot
from xenpy.api.transcript import Written
from xenpy.saved import save_guest

if TYPE_CHECKING:
    from xenpy.config import DomainConfig
    from xenpy.host import Guest

_NOTHING: Final = Written(b"", 0, 0)
"""What the guest wrote to its console stays with the console of this process."""
_LOOK_S: Final = 0.05


def save(guest: Guest, config: DomainConfig, path: str, *, go_on: bool) -> None:
    """Save a guest into a new directory. It goes on if it did and `go_on` says so, or if saving fails; else it stays paused.

    Raises HostError for what cannot be saved, OSError, Timeout.
    """
    processors = Processors(guest.domain, Progress(config.name, lambda: ""))
    ran = not guest.domain.paused
    if ran:
        processors.pause()
    else:
        _await_stop(guest)
    done = False
    try:
        snapshot = Snapshot(config, save_guest(guest), _NOTHING, _NOTHING, shell_ready=False, timeout=DEFAULT_TIMEOUT_S)
        with snapshot:
            write(snapshot, Path(path), guest.host.kvm)
        done = True
    finally:
        if ran and (go_on or not done):
            processors.unpause()


def _await_stop(guest: Guest) -> None:
    """Wait until the vCPUs of a guest that has been paused just now have come to rest: they leave the guest no more."""
    before: list[int] = []
    while before != (before := [vcpu.exits for vcpu in guest.domain.vcpus]):
        time.sleep(_LOOK_S)
