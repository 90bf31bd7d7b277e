"""Which domains there are: a directory for each, whose lock its process holds as long as it lives.

    RUNTIME/lock              held while the registry is changed
    RUNTIME/last-domid        the domid given out last
    RUNTIME/domains/DOMID/    lock, record (JSON), socket
    RUNTIME/logs/             what the processes of domains had to say

The kernel lets go of the lock whatever ended the process, so a directory whose lock is free is a dead domain's, and whoever
looks next removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xenpy.errors import HostError, XenpyError
from xenpy.toolstack.protocol import listen
from xenpy.toolstack.runtime import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from socket import socket

FIRST_RESERVED_DOMID: Final = 0x7FF0
"""Ref: xen/include/public/xen.h, DOMID_FIRST_RESERVED"""
_MAX_RECORD: Final = 64 << 10
_KEPT_LOGS: Final = 64
_NAME_IN_LOG: Final = 64
"""Characters of a domain's name in the name of its log."""


class NameTaken(XenpyError):
    """A domain of this name is running."""


class Record(NamedTuple):
    """What the registry says of a domain; `started` is in seconds since 1970, `log` a path or empty."""

    domid: int
    name: str
    uuid: str
    pid: int
    started: float
    log: str = ""


class Entry:
    """The registration of a domain of this process; `listener` is its control socket."""

    def __init__(self, registry: Registry, record: Record, lock: int, listener: socket) -> None:
        self._registry = registry
        self.record = record
        self._lock = lock
        self.listener = listener

    @property
    def root(self) -> Path:
        """Return the runtime directory."""
        return self._registry.root

    @property
    def directory(self) -> Path:
        """Return the entry's directory."""
        return self._registry.domains / str(self.record.domid)

    def renumber(self) -> int:
        """Move on to a new domid, as a domain that is started anew does, and return it."""
        with self._registry.locked():
            old, domid = self.directory, self._registry.next_domid()
            self.record = self.record._replace(domid=domid, started=time.time())
            _write_record(old, self.record)
            old.rename(self.directory)
        return domid

    def rename(self, name: str) -> None:
        """Change the domain's name. Raises NameTaken."""
        with self._registry.locked():
            if name != self.record.name:
                self._registry.check_name(name)
            self.record = self.record._replace(name=name)
            _write_record(self.directory, self.record)

    def close(self) -> None:
        """Remove the registration and listen no more; idempotent."""
        if self._lock < 0:
            return
        self.listener.close()
        with suppress(OSError), self._registry.locked():
            _remove(self.directory)
        os.close(self._lock)
        self._lock = -1


class Registry:
    """The domains of this user. Raises HostError when there is no directory for them."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = runtime_directory() if root is None else root
        self.domains = self.root / "domains"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from changing the registry."""
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def register(self, name: str, uuid: str, *, log: str = "", unique: bool = True) -> Entry:
        """Register a domain of this process under a domid that no other has had lately.

        Whoever sees the entry finds somebody listening. Raises NameTaken if `unique` and another runs under this name, and HostError.
        """
        try:
            self.domains.mkdir(mode=0o700, exist_ok=True)
            with self.locked():
                self._sweep()
                if unique:
                    self.check_name(name)
                return self._make_entry(Record(self.next_domid(), name, uuid, os.getpid(), time.time(), log))
        except OSError as error:
            raise HostError(f"{self.root}: a domain cannot be registered there: {error.strerror}") from None

    def _make_entry(self, record: Record) -> Entry:
        """Make the directory of a domain of this process; with the registry locked. Raises OSError."""
        making = self.domains / ".making"
        making.mkdir(mode=0o700)
        lock = os.open(making / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_record(making, record)
            entry = Entry(self, record, lock, listen(making))
            making.rename(entry.directory)
        except BaseException:
            os.close(lock)
            raise
        return entry

    def records(self) -> list[Record]:
        """Return the living domains by domid, and remove what dead ones left."""
        living, dead = self._look()
        if dead:
            with self.locked():
                self._sweep()
        return sorted(living)

    def is_alive(self, domid: int) -> bool:
        """Tell whether a domain's process lives."""
        return _is_locked(self.domains / str(domid))

    def check_name(self, name: str) -> None:
        """Raise NameTaken if a living domain has the name; with the registry locked."""
        if any(record.name == name for record in self._look()[0]):
            raise NameTaken(f'Domain with name "{name}" already exists.')

    def next_domid(self) -> int:
        """Give out a domid; with the registry locked."""
        path = self.root / "last-domid"
        try:
            domid = int(path.read_text())
        except (OSError, ValueError):
            domid = 0
        for _ in range(FIRST_RESERVED_DOMID):
            domid = domid + 1 if 0 <= domid < FIRST_RESERVED_DOMID - 1 else 1
            if not (self.domains / str(domid)).exists():
                break
        _replace(path, str(domid))
        return domid

    def _look(self) -> tuple[list[Record], list[Path]]:
        """Return the living domains, and the directories of dead ones."""
        living: list[Record] = []
        dead: list[Path] = []
        with suppress(FileNotFoundError):
            for path in self.domains.iterdir():
                if not path.name.isdigit() or not _is_locked(path):
                    dead.append(path)
                elif (record := _read_record(path)) is not None:
                    living.append(record)
        return living, dead

    def _sweep(self) -> None:
        """Remove what dead domains left; with the registry locked, so that nobody is about to make an entry."""
        for path in self._look()[1]:
            _remove(path)

    # -- logs ---------------------------------------------------------------------------------------------------------

    def new_log(self, name: str) -> Path:
        """Return a path for the log of a new domain's process; the logs of all but the latest domains are removed."""
        directory = self.root / "logs"
        directory.mkdir(mode=0o700, exist_ok=True)
        logs = sorted(directory.glob("*.log"))
        for path in logs[: max(0, len(logs) - _KEPT_LOGS)]:
            path.unlink(missing_ok=True)
        plain = "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "_" for char in name)
        return directory / f"{time.time_ns()}-{plain[:_NAME_IN_LOG]}.log"


def _is_locked(path: Path) -> bool:
    """Tell whether the process that made an entry lives."""
    try:
        fd = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(
            fd, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # shared, so that two who look do not take each other for the owner
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _write_record(directory: Path, record: Record) -> None:
    _replace(directory / "record", json.dumps(record._asdict()))


def _read_record(directory: Path) -> Record | None:
    try:
        with (directory / "record").open() as file:
            fields: Any = json.loads(file.read(_MAX_RECORD))
        return Record(**fields)
    except (OSError, ValueError, TypeError):
        return None  # it has just been removed


def _replace(path: Path, text: str) -> None:
    """Change a file in one step: a reader sees the old text or the new."""
    making = path.with_name(f".{path.name}.new")
    making.write_text(text)
    making.replace(path)


def _remove(directory: Path) -> None:
    """Remove an entry with all that may be in one."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in directory.iterdir():
            path.unlink(missing_ok=True)
        directory.rmdir()
