"""Snapshots: a guest at one moment, and any number of guests that go on from there."""

from __future__ import annotations

import weakref
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from xenpy.errors import ConfigError
from xenpy.kvm.system import Kvm

if TYPE_CHECKING:
    import os

    from xenpy.api.guest import Guest
    from xenpy.api.host import Host
    from xenpy.api.transcript import Written
    from xenpy.config import DomainConfig
    from xenpy.saved import SavedGuest

Clock = Literal["continue", "wall"]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a guest begins with that goes on from a snapshot."""

    saved: SavedGuest
    console: Written
    emergency: Written
    shell_ready: bool
    wall: bool


class Snapshot:
    """A guest at one moment, made by `Guest.snapshot`. `with` closes it; guests that it was forked into keep what they have."""

    def __init__(
        self,
        config: DomainConfig,
        saved: SavedGuest,
        console: Written,
        emergency: Written,
        *,
        shell_ready: bool,
        timeout: float,
    ) -> None:
        self.config = config
        self.saved = saved
        """The guest itself, for those who know the hypervisor."""
        self.console, self.emergency = console, emergency
        self.shell_ready = shell_ready
        self.timeout = timeout
        self._close = weakref.finalize(self, saved.close)

    def fork(
        self,
        *,
        host: Host | None = None,
        name: str | None = None,
        clock: Clock = "continue",
        timeout: float | None = None,
        paused: bool = False,
    ) -> Guest:
        """Return a guest that goes on from this moment, when `with` or `start` lets it; on `host`, or on one of its own.

        With the clock "continue" no time has passed for it; with "wall" it finds that it has stood still until now. Otherwise as
        `Guest.from_cfg`. Raises HostError, for a host too on which the guest's domid is taken.
        """
        from xenpy.api.guest import Guest

        if clock not in ("continue", "wall"):
            raise ConfigError(f'clock={clock!r} is neither "continue" nor "wall"')
        self._check_open()
        config = self.config if name is None else replace(self.config, name=name)
        beginning = Beginning(self.saved, self.console, self.emergency, self.shell_ready, clock == "wall")
        return Guest(
            config, host=host, timeout=self.timeout if timeout is None else timeout, paused=paused, beginning=beginning
        )

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the snapshot into a new directory, for `load` in this or another process. Raises HostError, OSError."""
        from xenpy.api.savefile import write

        self._check_open()
        with closing(Kvm()) as kvm:
            write(self, Path(directory), kvm)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Snapshot:
        """Return a snapshot that `save` wrote; the directory must stay as it is while there are forks.

        Raises HostError with the reason for one of another version, or that this host's processor or the disks' images do not fit.
        """
        from xenpy.api.savefile import read

        with closing(Kvm()) as kvm:
            return read(Path(directory), kvm)

    def _check_open(self) -> None:
        if not self._close.alive:
            raise ConfigError(f"the snapshot of {self.config.name} is closed")

    def close(self) -> None:
        """Free what the snapshot holds; idempotent."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Snapshot of {self.config.name}{'' if self._close.alive else ', closed'}>"
