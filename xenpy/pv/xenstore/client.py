"""Privileged access to the store for code in this process: the toolstack and the backends.

Values are `str`; bytes that are not UTF-8 survive a round trip (surrogateescape).
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Self, TypeVar

from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore import tree
from xenpy.pv.xenstore.paths import absolute, join, watchable
from xenpy.pv.xenstore.transactions import Transaction
from xenpy.pv.xenstore.tree import DOM0, Access, Caller, Limits, Perm, Perms, View
from xenpy.pv.xenstore.watches import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from xenpy.pv.xenstore.server import Xenstore

log = logging.getLogger(__name__)

T = TypeVar("T")
Value = str | bytes | int

MAX_RETRIES = 100

_CALLER = Caller(DOM0, privileged=True)
_NO_LIMITS = Limits(0, 0, 0)
_HOME = "/local/domain/0"


def encode_value(value: Value) -> bytes:
    """Return a value's bytes; an int is written in decimal."""
    if isinstance(value, bytes):
        return value
    return str(value).encode("utf-8", "surrogateescape")


def parse_perms(perms: Iterable[str | Perm]) -> Perms:
    """Return permissions given as `n5`, `r0`, ... or ready made."""
    parsed = tuple(perm if isinstance(perm, Perm) else Perm.parse(perm.encode()) for perm in perms)
    if not parsed:
        raise XenError(Errno.EINVAL, "no permissions")
    return parsed


class Client:
    """The operations on nodes, on the live tree or in a transaction; all raise XenError."""

    def __init__(self, store: Xenstore) -> None:
        self._store = store

    def _view(self) -> View:
        return self._store.tree

    def read(self, path: str) -> str:
        """Return a node's value."""
        return self.read_bytes(path).decode("utf-8", "surrogateescape")

    def read_bytes(self, path: str) -> bytes:
        """Return a node's value as it is."""
        with self._store.guard:
            return tree.find(self._view(), _CALLER, _path(path), Access.READ).value

    def get(self, path: str, default: str | None = None) -> str | None:
        """Return a node's value, or `default` if there is no such node."""
        with self._store.guard:
            node = self._view().lookup(_path(path))
            return default if node is None else node.value.decode("utf-8", "surrogateescape")

    def exists(self, path: str) -> bool:
        """Say whether there is such a node."""
        with self._store.guard:
            return self._view().lookup(_path(path)) is not None

    def ls(self, path: str) -> list[str]:
        """Return the names of a node's children."""
        with self._store.guard:
            return list(tree.find(self._view(), _CALLER, _path(path), Access.READ).children)

    def write(self, path: str, value: Value, perms: Iterable[str | Perm] | None = None) -> None:
        """Set a node's value and, if given, its permissions; missing parents are created."""
        with self._store.guard:
            tree.write(self._view(), _CALLER, _path(path), encode_value(value), _NO_LIMITS)
            if perms is not None:
                self.set_perms(path, perms)
            self._store.watches.deliver()

    def mkdir(self, path: str, perms: Iterable[str | Perm] | None = None) -> None:
        """Create a node unless it exists and, if given, set its permissions."""
        with self._store.guard:
            tree.mkdir(self._view(), _CALLER, _path(path), _NO_LIMITS)
            if perms is not None:
                self.set_perms(path, perms)
            self._store.watches.deliver()

    def rm(self, path: str) -> None:
        """Remove a node and all below it; one that is absent, even with its parents, is well."""
        with self._store.guard:
            if self.exists(path):
                tree.remove(self._view(), _CALLER, _path(path))
                self._store.watches.deliver()

    def get_perms(self, path: str) -> Perms:
        """Return a node's permissions."""
        with self._store.guard:
            return tree.find(self._view(), _CALLER, _path(path), Access.READ).perms

    def set_perms(self, path: str, perms: Iterable[str | Perm]) -> None:
        """Replace a node's permissions; the first entry names the owner."""
        with self._store.guard:
            tree.set_perms(self._view(), _CALLER, _path(path), parse_perms(perms), _NO_LIMITS)
            self._store.watches.deliver()

    def walk(self, path: str = "/") -> Iterable[tuple[str, str]]:
        """Yield path and value of a node and of all below it."""
        stack = [path]
        while stack:
            here = stack.pop()
            value = self.get(here)
            if value is not None:
                yield here, value
                stack += [join(here, name) for name in reversed(self.ls(here))]

    def transaction(self) -> ClientTransaction:
        """Return a transaction for a `with`: it commits at the end, and raises EAGAIN if it lost a race."""
        return ClientTransaction(self._store)

    def atomically(self, body: Callable[[Client], T]) -> T:
        """Run `body` in a transaction and return its result; run it again while somebody else interferes."""
        for _ in range(MAX_RETRIES):
            try:
                with self.transaction() as transaction:
                    return body(transaction)
            except XenError as error:
                if error.errno is not Errno.EAGAIN:
                    raise
        raise XenError(Errno.EAGAIN, f"transaction lost {MAX_RETRIES} races")

    def watch(
        self, path: str, callback: Callable[[str, str], None], token: str = "", *, depth: int | None = None
    ) -> LocalWatch:
        """Call `callback(path, token)` for every change at or below a path, and once at the start.

        It runs in the thread that made the change, with no lock held, and never twice at a time. `cancel` ends it.
        """
        return LocalWatch(self._store, path, callback, token, depth)


class ClientTransaction(Client):
    """A transaction of code in this process: commit at the end of the `with`, abort on an exception."""

    def __init__(self, store: Xenstore) -> None:
        super().__init__(store)
        self._transaction = Transaction(store.tree)

    def _view(self) -> View:
        return self._transaction

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            with self._store.guard:
                self._transaction.commit()
                self._store.watches.deliver()


class LocalWatch:
    """A function in this process that hears of changes."""

    def __init__(
        self, store: Xenstore, path: str, callback: Callable[[str, str], None], token: str, depth: int | None
    ) -> None:
        self.caller = _CALLER
        self._store = store
        self._callback = callback
        self._events: deque[tuple[str, str]] = deque()
        self._running = False
        self.on_output: Callable[[], None] | None = self._run
        self._watch: Watch | None = Watch(self, watchable(path.encode(), _HOME), token.encode(), depth=depth)
        with store.guard:
            store.watches.add(self._watch)
            store.watches.deliver()

    def event(self, watch: Watch, path: str) -> None:
        """Queue an event until the store's lock is free."""
        self._events.append((path, watch.token.decode()))
        self._store.guard.touch(self)

    def cancel(self) -> None:
        """Stop; no call begins after this returns, one that runs in another thread may still end."""
        with self._store.guard:
            if self._watch is not None:
                self._store.watches.remove(self._watch)
                self._watch = None
            self._events.clear()

    def _run(self) -> None:
        with self._store.guard:
            if self._running:
                return
            self._running = True
        while True:
            with self._store.guard:
                if not self._events:
                    self._running = False
                    return
                path, token = self._events.popleft()
            try:
                self._callback(path, token)
            except Exception:
                log.exception("a watch on %s failed", path)


def _path(path: str) -> str:
    return absolute(path.encode(), _HOME)
