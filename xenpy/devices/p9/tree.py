"""A folder of the host, out of which no name leads: every step of a path is opened by itself and follows no link.

What is named is known by its place and not held open, so a client may know as many files as it likes.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_DEPTH: Final = 1024
_MAX_NAME: Final = 255
_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def fault(code: int) -> OSError:
    """Return the error of that errno."""
    return OSError(code, os.strerror(code))


def check_name(name: bytes) -> bytes:
    """Return a name that may be given to a file. Raises OSError."""
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise fault(errno.EINVAL)
    if len(name) > _MAX_NAME:
        raise fault(errno.ENAMETOOLONG)
    return name


class Node:
    """A place in the tree; it moves with what is there when that is renamed, and is nowhere once that is removed."""

    def __init__(self, parent: Node | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self._children: WeakValueDictionary[bytes, Node] = WeakValueDictionary()

    def child(self, name: bytes) -> Node:
        """Return the place of that name below this one."""
        found = self._children.get(name)
        if found is None:
            found = self._children[name] = Node(self, name)
        return found

    def removed(self, name: bytes) -> None:
        """Take note that there is nothing of that name any more."""
        gone = self._children.pop(name, None)
        if gone is not None:
            gone.parent = None

    def moved(self, name: bytes, target: Node, new_name: bytes) -> None:
        """Take note that what had a name here has another, or is elsewhere."""
        if (target, new_name) == (self, name):
            return
        target.removed(new_name)
        node = self._children.pop(name, None)
        if node is not None:
            node.parent, node.name = target, new_name
            target._children[new_name] = node


class Tree:
    """The folder at `path`. Raises ConfigError; what is done in it raises OSError."""

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"p9 path={path}: {error.strerror}") from None
        self.root = Node(None, b"")
        self.device = os.fstat(self._fd).st_dev

    def close(self) -> None:
        """Let go of the folder."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _names(self, node: Node) -> list[bytes]:
        names: list[bytes] = []
        at = node
        while at.parent is not None and len(names) <= _MAX_DEPTH:
            names.append(at.name)
            at = at.parent
        if at is not self.root:
            raise fault(errno.ENAMETOOLONG if len(names) > _MAX_DEPTH else errno.ENOENT)
        return names[::-1]

    @contextmanager
    def pinned(self, node: Node) -> Iterator[int]:
        """Give a descriptor that stands for what is at a place, and with which nothing can be read or written."""
        fd = os.dup(self._fd)
        try:
            for name in self._names(node):
                fd = step(fd, name)
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, node: Node) -> Iterator[tuple[int, bytes]]:
        """Give a descriptor of the directory that a place is in, and its name there. The root is in none: EBUSY."""
        if node is self.root:
            raise fault(errno.EBUSY)
        if node.parent is None:
            raise fault(errno.ENOENT)
        with self.pinned(node.parent) as directory:
            yield directory, node.name

    def open(self, node: Node, flags: int) -> int:
        """Open a file or a directory. Anything else is not to be opened here: a device or a pipe is the guest's own, EPERM."""
        with self.pinned(node) as fd:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise fault(errno.ELOOP if stat.S_ISLNK(mode) else errno.EPERM)
            return os.open(through(fd), flags | os.O_CLOEXEC | os.O_NOCTTY)


def step(fd: int, name: bytes) -> int:
    """Return a descriptor of `name` in a directory in place of the directory's, which is closed unless this raises OSError."""
    following = os.open(name, _STEP, dir_fd=fd)
    os.close(fd)
    return following


def through(fd: int) -> Path:
    """Return a path to what a descriptor stands for, for calls that take no such descriptor."""
    return Path(f"/proc/self/fd/{fd}")
