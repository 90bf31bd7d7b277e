"""The user's runtime directory: where domains are registered and listened for."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from xenpy.errors import HostError

_PRIVATE: Final = 0o700
_OTHERS: Final = 0o077


def runtime_directory() -> Path:
    """Return the directory, made if it was not there: $XDG_RUNTIME_DIR/xenpy, root's /run/xenpy, or /tmp/xenpy-UID.

    Nobody else can have put anything there: it belongs to the user and is closed to others. Raises HostError.
    Ref: XDG Base Directory Specification, $XDG_RUNTIME_DIR
    """
    path = _candidate()
    try:
        path.mkdir(mode=_PRIVATE, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise HostError(f"{path}: cannot make the directory of running domains: {error.strerror}; {_CURE}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise HostError(f"{path}: is not a directory, so running domains cannot be registered there; {_CURE}")
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
        raise HostError(f"{path}: is not yours alone (mode 0700 is needed), so it cannot be trusted; {_CURE}")
    return path


_CURE: Final = "set XDG_RUNTIME_DIR to a directory of yours"


def _candidate() -> Path:
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/") and Path(given).is_dir():
        return Path(given) / "xenpy"
    uid = os.geteuid()
    return Path("/run/xenpy") if uid == 0 and Path("/run").is_dir() else Path(f"/tmp/xenpy-{uid}")
