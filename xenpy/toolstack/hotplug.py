"""Adding and taking away devices from outside.

Ref: xl(1), block-attach, network-attach
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xenpy.toolstack.client import connect
from xenpy.toolstack.protocol import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DETACH_S: Final = 10.0
"""How long a guest may take to give up a device. Ref: libxl, LIBXL_DESTROY_TIMEOUT"""
_LOOK_S: Final = 0.05


def attach(identifier: str, kind: str, spec: Sequence[str]) -> None:
    """Add the device that the parts of a specification describe. Raises CommandError."""
    with connect(identifier) as connection:
        connection.call("attach", kind=kind, spec=",".join(spec), directory=str(Path.cwd()))


def detach(identifier: str, kind: str, device: str, *, force: bool) -> None:
    """Ask the guest to give up a device and wait until it has, or take it away. Raises CommandError."""
    with connect(identifier) as connection:
        devid = connection.call("detach", kind=kind, device=device, force=force)
        deadline = time.monotonic() + _DETACH_S
        while any(row["devid"] == devid for row in connection.call("devices", kind=kind)):
            if time.monotonic() > deadline:
                raise CommandError(
                    f"Domain {connection.record.domid}: the guest has not given up {kind} {device} within "
                    f"{_DETACH_S:.0f} s; --force takes it away"
                )
            time.sleep(_LOOK_S)


def insert(identifier: str, device: str, target: str) -> None:
    """Put what `target` names into a CD drive, or take out what is in it if that is "". Raises CommandError."""
    with connect(identifier) as connection:
        connection.call("cd_insert", device=device, target=target, directory=str(Path.cwd()))


def devices(identifiers: Sequence[str], kind: str) -> list[dict[str, Any]]:
    """Return the devices of domains, each with its domain's number as "domid". Raises CommandError."""
    found: list[dict[str, Any]] = []
    for identifier in identifiers:
        with connect(identifier) as connection:
            domid = connection.record.domid
            found += [{**row, "domid": domid} for row in connection.call("devices", kind=kind)]
    return found
