"""Xenstore paths: what is well formed, what is whose child, and which are special.

Paths are `str` inside the store; their alphabet is ASCII.

Ref: docs/misc/xenstore.txt
"""

from __future__ import annotations

import re

from xenpy.abi.xs_wire import XENSTORE_ABS_PATH_MAX
from xenpy.errors import Errno, XenError

INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"
SPECIAL_PATHS = frozenset({INTRODUCE_DOMAIN, RELEASE_DOMAIN})

_ABSOLUTE = re.compile(r"(?:/[A-Za-z0-9_@-]+)+|/")
_WATCHABLE_SPECIAL = re.compile(r"@[A-Za-z0-9_@-]*(?:/[A-Za-z0-9_@-]+)*")
_LEADING_NUMBER = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)")
_DOMAIN_PREFIX = re.compile(r"/local/domain/[0-9]+/")


def domain_path(domid: int) -> str:
    """Return a domain's home, to which its relative paths refer."""
    return f"/local/domain/{domid}"


def absolute(raw: bytes, home: str, path_max: int = 0) -> str:
    """Return the absolute path that a client means, or raise EINVAL.

    `home` is the client's domain path; `path_max` limits the length within a domain's home, in characters, unless 0.
    """
    path = raw.decode("latin-1")
    special = path.startswith("@")
    if not path.startswith("/"):
        path = f"{home}/{path}"
    if special or not _ABSOLUTE.fullmatch(path):
        raise XenError(Errno.EINVAL, f"malformed path {path[:80]!r}")
    check_length(path, path_max)
    return path


def check_length(path: str, path_max: int) -> None:
    """Raise EINVAL if a path is too long."""
    if len(path) > XENSTORE_ABS_PATH_MAX:
        raise XenError(Errno.EINVAL, f"path of {len(path)} characters, at most {XENSTORE_ABS_PATH_MAX}")
    if path_max:
        prefix = _DOMAIN_PREFIX.match(path)
        length = len(path) - (prefix.end() if prefix else 0)
        if length > path_max:
            raise XenError(Errno.EINVAL, f"path of {length} characters, at most {path_max} by quota")


def watchable(raw: bytes, home: str, path_max: int = 0) -> str:
    """Return the absolute path or the special name, which no quota limits, that a WATCH means, or raise EINVAL."""
    if not raw.startswith(b"@"):
        return absolute(raw, home, path_max)
    name = raw.decode("latin-1")
    if not _WATCHABLE_SPECIAL.fullmatch(name):
        raise XenError(Errno.EINVAL, f"malformed special path {name[:80]!r}")
    check_length(name, 0)
    return name


def parent(path: str) -> str:
    """Return the path's parent; the root is its own."""
    return path[: path.rindex("/")] or "/"


def leaf(path: str) -> str:
    """Return the last component."""
    return path[path.rindex("/") + 1 :]


def join(path: str, name: str) -> str:
    """Return the child's path."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


def atoi(raw: bytes) -> int:
    """Return the number that a string starts with, 0 if none: numbers on the wire were always read so."""
    match = _LEADING_NUMBER.match(raw)
    return int(match[1][:20]) if match else 0
