"""Xenstore as a test sees it: the whole tree, with a guest's own part as the place where relative paths begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from xenpy.api.progress import Progress
    from xenpy.pv.xenstore import LocalWatch, Perm, Xenstore


class GuestStore:
    """Privileged access to the store; `home` is prefixed to paths without a leading slash.

    Every method raises XenError, whose `errno` is xenstored's answer, for a path that is malformed or not there.
    """

    def __init__(self, store: Xenstore, home: str, progress: Progress) -> None:
        self._store = store
        self._progress = progress
        self.home = home

    def path(self, path: str) -> str:
        """Return the absolute path that `path` means here; the empty one is the home itself."""
        if path.startswith(("/", "@")):
            return path
        return f"{self.home}/{path}" if path else self.home

    def read(self, path: str) -> str:
        """Return a node's value."""
        return self._store.read(self.path(path))

    def get(self, path: str, default: str | None = None) -> str | None:
        """Return a node's value, or `default` if there is no such node."""
        return self._store.get(self.path(path), default)

    def exists(self, path: str) -> bool:
        """Say whether there is such a node."""
        return self._store.exists(self.path(path))

    def ls(self, path: str = "") -> list[str]:
        """Return the names of a node's children."""
        return self._store.ls(self.path(path))

    def walk(self, path: str = "") -> Iterator[tuple[str, str]]:
        """Yield path and value of a node and of all below it."""
        yield from self._store.walk(self.path(path))

    def write(self, path: str, value: str | bytes | int, perms: Iterable[str | Perm] | None = None) -> None:
        """Set a node's value and, if given, its permissions (`n5`, `r0`); missing parents are created."""
        self._store.write(self.path(path), value, perms)

    def mkdir(self, path: str, perms: Iterable[str | Perm] | None = None) -> None:
        """Create a node unless it exists and, if given, set its permissions."""
        self._store.mkdir(self.path(path), perms)

    def rm(self, path: str) -> None:
        """Remove a node and all below it, if it is there."""
        self._store.rm(self.path(path))

    def watch(self, path: str, callback: Callable[[str], None]) -> LocalWatch:
        """Call `callback(path)` at once and then for every change at or below a path, until `cancel`.

        It runs in the thread that made the change and should return soon.
        """
        return self._store.watch(self.path(path), lambda changed, _token: callback(changed))

    def wait(self, path: str, value: str | Callable[[str], bool] | None = None, timeout: float | None = None) -> str:
        """Wait until a node exists and its value is `value`, or makes `value` true; return the value. `timeout` in seconds.

        Raises Timeout, and GuestEnded if the guest ended without.
        """
        path = self.path(path)

        def look() -> str | None:
            now = self._store.get(path)
            if now is None or value is None:
                return now
            return now if (value(now) if callable(value) else now == value) else None

        what = f"node {path}" if value is None or callable(value) else f"{path} = {value!r}"
        watch = self._store.watch(path, lambda _path, _token: self._progress.notify())
        try:
            return self._progress.wait(look, timeout, what)
        finally:
            watch.cancel()
