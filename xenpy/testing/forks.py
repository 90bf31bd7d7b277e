"""Guests that are booted once and forked for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.errors import ConfigError
from xenpy.testing.choice import make_guest, marked

if TYPE_CHECKING:
    import pytest

    from xenpy.api.guest import Guest
    from xenpy.api.snapshot import Snapshot

SCOPES: Final = ("session", "module")


class Forks:
    """The snapshots of one scope, each made when a test first asks for a fork of it."""

    def __init__(self) -> None:
        self._snapshots: dict[str, Snapshot] = {}

    def fork(self, request: pytest.FixtureRequest) -> Guest:
        """Return a fork for a test. Raises ConfigError, HostError, and what the booting of its guest raises."""
        wishes = _wishes(request.node)
        prepare = wishes.get("prepare", "true")
        key = repr((sorted(marked(request.node).items(), key=lambda item: item[0]), prepare))
        snapshot = self._snapshots.get(key)
        if snapshot is None:
            snapshot = self._snapshots[key] = _boot(request, prepare)
        return snapshot.fork()

    def close(self) -> None:
        """Free all snapshots."""
        while self._snapshots:
            self._snapshots.popitem()[1].close()


def scope_of(node: pytest.Item) -> str:
    """Return the scope that a test's marker xen_fork wants for its guest. Raises ConfigError."""
    scope = _wishes(node).get("scope", "session")
    if scope not in SCOPES:
        raise ConfigError(f"scope={scope!r} is none of {', '.join(SCOPES)}")
    return str(scope)


def _wishes(node: pytest.Item) -> dict[str, Any]:
    wishes: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("xen_fork"))):
        odd = [*map(repr, marker.args), *sorted(set(marker.kwargs) - {"scope", "prepare"})]
        if odd:
            raise ConfigError(f"the marker xen_fork has scope= and prepare= only, not {', '.join(odd)}")
        wishes.update(marker.kwargs)
    return wishes


def _boot(request: pytest.FixtureRequest, prepare: Any) -> Snapshot:
    """Boot a guest, have it get ready, and return its snapshot; the guest itself ends."""
    from xenpy.api.host import Host

    with Host() as host, make_guest(request, host) as guest:
        if callable(prepare):
            prepare(guest)
        else:
            guest.run(prepare).check_returncode()
        return guest.snapshot()
