"""Watches: who hears of which change.

Ref: docs/misc/xenstore.txt "Watches"
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Protocol

from xenpy.pv.xenstore.paths import parent
from xenpy.pv.xenstore.tree import Access, Caller, Perms, View

if TYPE_CHECKING:
    from collections.abc import Callable


class Sink(Protocol):
    """Who set a watch: a connection or a function in this process."""

    caller: Caller

    def event(self, watch: Watch, path: str) -> None:
        """Queue one event; `path` is as the watcher wants it, relative if it watched so."""


class Watch:
    """One watch; `depth` limits how many levels below `path` count, None is without limit."""

    __slots__ = ("depth", "order", "path", "sink", "strip", "token")

    def __init__(self, sink: Sink, path: str, token: bytes, *, strip: int = 0, depth: int | None = None) -> None:
        self.sink = sink
        self.path = path
        self.token = token
        self.strip = strip
        """Characters to cut from the front of a path reported to one who watched a relative path."""
        self.depth = depth
        self.order = 0

    def reported(self, path: str) -> str:
        """Return the path to put in an event."""
        return path[self.strip :] if self.strip else path

    def covers(self, path: str) -> bool:
        """Say whether a change at `path`, which is at or below the watch's own, is within its depth."""
        if self.depth is None:
            return True
        below = path[len(self.path) :] if self.path != "/" else path[:-1] if path == "/" else path
        return below.count("/") <= self.depth


class WatchTable:
    """All watches by path, and the events that wait until the request that caused them was answered."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[Watch]] = {}
        self._order = count()
        self._pending: list[tuple[Watch, str]] = []
        self.hand: Callable[[Watch, str], None] = _hand
        """Gives an event to its watcher; an attribute, for traces and faults to take its place."""

    def enter(self, watch: Watch) -> None:
        """Enter a watch that has fired for its being there already."""
        watch.order = next(self._order)
        self._by_path.setdefault(watch.path, []).append(watch)

    def add(self, watch: Watch) -> None:
        """Enter a watch, which fires once straight away whatever its owner may read."""
        self.enter(watch)
        self._pending.append((watch, watch.path))

    def remove(self, watch: Watch) -> None:
        """Take a watch out, with its events that wait."""
        at_path = self._by_path[watch.path]
        at_path.remove(watch)
        if not at_path:
            del self._by_path[watch.path]
        self._pending = [entry for entry in self._pending if entry[0] is not watch]

    def fire(self, view: View, path: str, old_perms: Perms, *, exact: bool) -> None:
        """Queue the events of a change at `path`.

        An unprivileged watcher hears of it if it could read the node before, or can now, or can read its parent.
        """
        for watch in self._matching(path, exact=exact):
            if _permitted(view, watch.sink.caller, path, old_perms):
                self._pending.append((watch, path))

    def fire_removed(self, path: str, old_perms: Perms, *, exact: bool) -> None:
        """Queue the events of a removal by a transaction, which only those hear of who could read the node before."""
        for watch in self._matching(path, exact=exact):
            if watch.sink.caller.access(old_perms) & Access.READ:
                self._pending.append((watch, path))

    def _matching(self, path: str, *, exact: bool) -> list[Watch]:
        """Return the watches that a change at `path` concerns, in the order of their setting."""
        matching = list(self._by_path.get(path, ()))
        if not exact:
            above = path
            while above != "/":
                above = parent(above)
                matching += self._by_path.get(above, ())
            matching.sort(key=_order)
        return [watch for watch in matching if watch.depth is None or watch.covers(path)]

    def fire_special(self, name: str, domid: int, perms: Perms) -> None:
        """Queue the events of @introduceDomain or @releaseDomain; a depth of 1 asks for the domid."""
        specific = f"{name}/{domid}"
        matching = sorted((*self._by_path.get(name, ()), *self._by_path.get(specific, ())), key=_order)
        for watch in matching:
            if watch.sink.caller.access(perms) & Access.READ:
                self._pending.append((watch, specific if watch.depth == 1 or watch.path == specific else name))

    def deliver(self) -> None:
        """Hand the waiting events to their watchers."""
        while self._pending:
            pending, self._pending = self._pending, []
            for watch, path in pending:
                self.hand(watch, watch.reported(path))


def _hand(watch: Watch, path: str) -> None:
    watch.sink.event(watch, path)


def _order(watch: Watch) -> int:
    return watch.order


def _permitted(view: View, caller: Caller, path: str, old_perms: Perms) -> bool:
    if caller.privileged or caller.access(old_perms) & Access.READ:
        return True
    node = view.lookup(path)
    if node is not None and caller.access(node.perms) & Access.READ:
        return True
    above = view.lookup(parent(path))
    return above is not None and bool(caller.access(above.perms) & Access.READ)
