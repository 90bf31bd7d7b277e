"""Files inside images of ext2, ext3 and ext4, by e2fsprogs' debugfs: nothing is mounted and no privilege is needed.

Ref: debugfs(8)
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_BANNER: Final = b"debugfs "
_SYSTEM_PROGRAMS: Final = "/usr/sbin:/sbin"
_REGULAR: Final = 0o100000


@dataclass(frozen=True, slots=True)
class Content:
    """A file to be written; numbers for who owns it."""

    data: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


def program(name: str) -> str:
    """Return the path of one of e2fsprogs' programs, which users often have not in their PATH. Raises HostError."""
    found = shutil.which(name) or shutil.which(name, path=_SYSTEM_PROGRAMS)
    if found is None:
        raise HostError(f"{name} not found, which file systems in images take: apt install e2fsprogs")
    return found


def read(image: Path, path: str) -> bytes:
    """Return a file's content. Raises HostError if it is not there, or a symbolic link."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "content"
        debugfs(image, [f"dump {_quoted(path)} {_quoted(str(target))}"])
        return target.read_bytes()


def write(image: Path, files: Mapping[str, Content]) -> None:
    """Put files into an image that nobody uses, in place of those that have their names. Raises HostError."""
    with tempfile.TemporaryDirectory() as scratch:
        commands: list[str] = []
        for number, (path, content) in enumerate(files.items()):
            source = Path(scratch) / str(number)
            source.write_bytes(content.data)
            directory, _, name = path.rpartition("/")
            commands += [f"cd {_quoted(directory or '/')}", f"rm {_quoted(name)}"]
            commands.append(f"write {_quoted(str(source))} {_quoted(name)}")
            commands += ownership(path, content.uid, content.gid, content.mode | _REGULAR)
        debugfs(image, commands, tolerated=b"rm: File not found by ext2_lookup")


def ownership(path: str, uid: int, gid: int, mode: int | None = None) -> list[str]:
    """Return debugfs commands that set who owns a file of an image, by number, and its mode with its type."""
    fields = {"uid": str(uid), "gid": str(gid), **({} if mode is None else {"mode": f"0{mode:o}"})}
    return [f"set_inode_field {_quoted(path)} {name} {value}" for name, value in fields.items()]


def debugfs(image: Path, commands: Iterable[str], *, tolerated: bytes | None = None) -> None:
    """Have debugfs carry out commands on an image. Raises HostError with what it complains of, bar what is `tolerated`."""
    with tempfile.NamedTemporaryFile("w", suffix=".debugfs") as script:
        script.writelines(f"{command}\n" for command in commands)
        script.flush()
        command = [program("debugfs"), "-w", "-f", script.name, str(image)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if not line.startswith(_BANNER)]
    if tolerated is not None:
        complaints = [line for line in complaints if not line.startswith(tolerated)]
    if done.returncode or complaints:
        raise HostError(f"{image}: debugfs: {b'; '.join(complaints).decode('utf-8', 'replace') or done.returncode}")


def _quoted(word: str) -> str:
    """Return a word as debugfs reads it. Ref: libss, quotes are doubled"""
    if "\n" in word:
        raise HostError(f"{word!r}: debugfs takes no names with line ends")
    return '"' + word.replace('"', '""') + '"'
