"""Files out of Debian's and PyPI's packages, fetched by those clients and unpacked here: no root, nothing installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, TypeVar, cast

from xenpy.cache import cache_directory, locked
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

AR_MAGIC = b"!<arch>\n"
AR_HEADER_SIZE = 60
AR_HEADER_END = b"`\n"


def _run(command: Sequence[str], *, cwd: Path, progress: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a package client; with `progress` its own display goes to a terminal's stderr, and nowhere in a pipe."""
    shown = progress and sys.stderr.isatty()
    environment = {**os.environ, "LC_ALL": "C", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if shown else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


def _reason(result: subprocess.CompletedProcess[str]) -> str:
    """Return what a failed client said last, for an error message."""
    lines = [line.strip() for line in (result.stderr or "").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("E:", "ERROR"))] or lines
    return errors[-1] if errors else f"exit code {result.returncode}"


@dataclass(frozen=True)
class Apt:
    """One view of the distribution's package lists: the system's own, or a private one that any user can refresh."""

    lists: Path | None = None

    def candidates(self, pattern: str) -> Iterator[str]:
        """Iterate over names that match `pattern` whole and that these lists can download, newest first."""
        prefix = re.split(r"[\\\[(.*+?]", pattern, maxsplit=1)[0]
        result = self._call("apt-cache", "pkgnames", prefix)
        names = [name for name in result.stdout.split() if re.fullmatch(pattern, name)]
        return (name for name in sorted(names, key=version_key, reverse=True) if self.offers(name))

    def offers(self, package: str) -> bool:
        """Tell whether these lists know where to get `package`, rather than only its name."""
        result = self._call("apt-get", "download", "--print-uris", package)
        return result.returncode == 0 and bool(result.stdout.strip())

    def download(self, package: str, directory: Path) -> Path:
        """Fetch one package into an empty `directory`; raises HostError."""
        result = self._call("apt-get", "download", package, cwd=directory, progress=True)
        found = list(directory.glob("*.deb"))
        if result.returncode or not found:
            raise HostError(f"apt-get download {package}: {_reason(result)}")
        return found[0]

    def download_closure(self, packages: Sequence[str], directory: Path) -> list[Path]:
        """Fetch packages and all that they depend on, as for a system that has none, into an empty `directory`; raises HostError."""
        nothing_installed = directory / "status"
        nothing_installed.touch()
        options = {
            "Dir::State::status": str(nothing_installed),
            "Dir::Cache": str(directory),
            "APT::Install-Recommends": "0",
            "Debug::NoLocking": "1",  # the system's lock is root's, and nothing of the system's is touched
        }
        arguments = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        (directory / "archives" / "partial").mkdir(parents=True)
        result = self._call(
            "apt-get", *arguments, "--assume-yes", "--download-only", "install", *packages, progress=True
        )
        if result.returncode:
            raise HostError(f"apt-get install --download-only: {_reason(result)}")
        return sorted((directory / "archives").glob("*.deb"))

    def update(self) -> None:
        """Refresh a private copy of the lists; raises HostError."""
        if self.lists is None:
            raise ValueError("the system's own lists are the administrator's to refresh")
        (self.lists / "partial").mkdir(parents=True, exist_ok=True)
        result = self._call("apt-get", "update", progress=True)
        if result.returncode:
            raise HostError(f"apt-get update: {_reason(result)}")

    def _call(
        self, tool: str, *arguments: str, cwd: Path | None = None, progress: bool = False
    ) -> subprocess.CompletedProcess[str]:
        program = shutil.which(tool)
        if program is None:
            raise HostError(f"{tool} not found: kernels are fetched as Debian packages, which takes the package `apt`")
        # As root apt would drop to a user that cannot write into the cache, and then warn about it.
        options = ["-q", "-o", "APT::Sandbox::User=root"]
        if self.lists is not None:
            options += ["-o", f"Dir::State={self.lists.parent}", "-o", f"Dir::State::Lists={self.lists}"]
            options += ["-o", f"Dir::Cache={self.lists.parent}"]
        return _run([program, *options, *arguments], cwd=cwd or Path("/"), progress=progress)


def version_key(name: str) -> tuple[tuple[int, str], ...]:
    """Return a sort key that orders the numbers inside package names as numbers."""
    return tuple((int(digits or -1), text) for digits, text in re.findall(r"(\d+)|(\D+)", name))


def fetch_debian(pattern: str, directory: Path) -> Path:
    """Download the newest Debian package whose name matches `pattern` whole into an empty `directory`.

    Raises HostError naming the package if it is not on offer.
    """
    return _with_lists(pattern.replace("\\", ""), lambda apt: _newest(apt, pattern, directory))


def fetch_debian_closure(packages: Sequence[str], directory: Path) -> list[Path]:
    """Download Debian packages and all that they depend on below `directory`; raises HostError."""

    def fetch(apt: Apt) -> list[Path]:
        return apt.download_closure(packages, Path(tempfile.mkdtemp(dir=directory)))

    return _with_lists("packages of a root file system", fetch)


def _with_lists(wanted: str, fetch: Callable[[Apt], T]) -> T:
    """Fetch by the system's package lists or, where they are missing or stale, by a private copy of them.

    Raises HostError naming what is `wanted`.
    """
    try:
        return fetch(Apt())
    except HostError:
        if shutil.which("apt-get") is None:
            raise
    private = Apt(cache_directory("apt") / "lists")
    with locked(cache_directory("apt") / "lists"):
        try:
            private.update()
            return fetch(private)
        except HostError as error:
            raise HostError(f"cannot get the Debian package {wanted}: {error}") from error


def _newest(apt: Apt, pattern: str, directory: Path) -> Path:
    newest = next(apt.candidates(pattern), None)
    if newest is None:
        raise HostError("this system's apt sources do not offer it, Debian 12 (bookworm) does")
    return apt.download(newest, directory)


def fetch_wheel(project: str, directory: Path) -> Path:
    """Download the newest wheel of a PyPI `project` alone into an empty `directory`; raises HostError."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(directory),
        project,
    ]
    result = _run(command, cwd=directory, progress=True)
    found = list(directory.glob("*.whl"))
    if "No module named pip" in (result.stderr or ""):
        raise HostError(f"pip not found, which fetches {project}: run `{sys.executable} -m ensurepip`")
    if result.returncode or not found:
        raise HostError(f"cannot download the PyPI package {project}: {_reason(result)}")
    return found[0]


def unpack_wheel(wheel: Path, directory: Path, wanted: Callable[[str], bool]) -> None:
    """Extract the members of a wheel whose path is `wanted`; raises HostError if the file is damaged."""
    import zipfile

    try:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(directory, [name for name in archive.namelist() if wanted(name)])
    except (zipfile.BadZipFile, OSError) as error:
        raise HostError(f"{wheel.name}: damaged wheel ({error})") from error


def unpack_deb(package: Path, directory: Path, wanted: Callable[[str], bool]) -> None:
    """Extract the regular files of a Debian package whose path (`usr/bin/x`, no leading `./`) is `wanted`.

    Raises HostError if the file is damaged.

    Ref: deb(5): an ar archive of debian-binary, control.tar*, data.tar*
    """
    import lzma
    import tarfile

    try:
        with package.open("rb") as stream:
            name = _seek_member(stream, "data.tar")
            with tarfile.open(fileobj=_decompressed(name, stream), mode="r|") as archive:
                for member in archive:
                    path = member.name.removeprefix("./")
                    content = archive.extractfile(member) if member.isreg() and wanted(path) else None
                    if content is not None:
                        _write_member(directory, path, content, member.mode)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, OSError) as error:
        raise HostError(f"{package.name}: damaged package ({error})") from error


def _write_member(directory: Path, path: str, content: IO[bytes], mode: int) -> None:
    if ".." in Path(path).parts or path.startswith("/"):
        raise ValueError(f"{path} leaves the package")
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as stream:
        shutil.copyfileobj(content, stream)
    target.chmod(mode & 0o755)


def _seek_member(stream: BinaryIO, prefix: str) -> str:
    """Leave `stream` at the data of the first ar member whose name starts with `prefix` and return the name.

    Raises ValueError if there is none.

    Ref: ar(5): header name[16] date[12] uid[6] gid[6] mode[8] size[10] magic[2], data padded to an even size
    """
    if stream.read(len(AR_MAGIC)) != AR_MAGIC:
        raise ValueError("not an ar archive")
    while len(header := stream.read(AR_HEADER_SIZE)) == AR_HEADER_SIZE and header.endswith(AR_HEADER_END):
        name, size = header[:16].decode("ascii", "replace").rstrip(" /"), int(header[48:58])
        if name.startswith(prefix):
            return name
        stream.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError(f"no member {prefix}")


def _decompressed(name: str, stream: BinaryIO) -> BinaryIO:
    """Return a reader of the plain tar in a member that `name` says how to decompress; raises ValueError."""
    import gzip
    import lzma

    match Path(name).suffix:
        case ".xz":
            return cast("BinaryIO", lzma.open(stream))
        case ".gz":
            return cast("BinaryIO", gzip.open(stream))
        case ".zst":
            try:
                import zstandard
            except ImportError:
                raise ValueError("packed with zstd: install xenpy[compression]") from None
            return cast("BinaryIO", zstandard.ZstdDecompressor().stream_reader(stream))
        case ".tar":
            return stream
        case suffix:
            raise ValueError(f"unknown compression {suffix}")
