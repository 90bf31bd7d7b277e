"""The cache directory: what was fetched or built once, published whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator


def cache_directory(*parts: str) -> Path:
    """Return the directory `parts` inside the cache, created if need be.

    The cache is `$XENPY_CACHE`, else `$XDG_CACHE_HOME/xenpy`, else `~/.cache/xenpy`.  Raises HostError if it cannot be
    made.
    """
    if chosen := os.environ.get("XENPY_CACHE"):
        root = Path(chosen)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        root = Path(xdg) / "xenpy"
    else:
        root = Path("~/.cache/xenpy").expanduser()
    directory = root.absolute().joinpath(*parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(
            f"cannot make the cache {directory} ({error.strerror}): set XENPY_CACHE to a writable one"
        ) from error
    return directory


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the inter-process lock of `target`, a file `.NAME.lock` beside it, waiting for as long as another has it.

    Raises HostError if the lock's directory cannot be written.
    """
    import fcntl

    lock = target.with_name(f".{target.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise HostError(f"cannot lock {lock} ({error.strerror}): set XENPY_CACHE to a writable directory") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # and with it the lock; the file stays, since unlinking it would race with a waiter


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target` that becomes `target` if the body succeeds and vanishes if it does not.

    Nobody ever sees a half-made `target`.  Hold `locked(target)` around it.  An existing directory is replaced.
    """
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent, ignore_cleanup_errors=True) as name:
        made, old = Path(name) / "new", Path(name) / "old"
        made.mkdir()
        yield made
        if target.exists():
            target.rename(old)
        made.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def publish_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` through a temporary file and one rename."""
    import tempfile

    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        temporary.chmod(0o644)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
