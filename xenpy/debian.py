"""A Debian root file system out of the host's package lists: packages unpacked, what their scripts would write written here.

No package's script runs, on the host or later, and no privilege is needed. systemd does at boot what it does for an empty /etc.

Ref: Debian Policy 6 (maintainer scripts); systemd file-hierarchy(7), sysusers.d(5)
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGES: Final = (
    *("base-files", "base-passwd", "libc-bin", "libpam-modules", "libpam-runtime", "ncurses-base"),
    *(
        "bash",
        "coreutils",
        "dash",
        "debianutils",
        "findutils",
        "grep",
        "gzip",
        "hostname",
        "less",
        "mawk",
        "sed",
        "tar",
    ),
    *("e2fsprogs", "kmod", "login", "mount", "passwd", "procps", "systemd-sysv", "udev", "util-linux"),
    *("iproute2", "iputils-ping", "netcat-openbsd", "systemd-resolved", "wget"),
)
"""What is asked for; what it depends on comes with it, recommendations do not."""

_SIZE_MIB: Final = 1024
_LABEL: Final = "debian"
_LEFT_OUT: Final = ("./usr/share/doc", "./usr/share/info", "./usr/share/locale", "./usr/share/man")
_MERGED: Final = ("bin", "lib", "lib64", "sbin")
_MERGED_PREFIXES: Final = tuple(f"{directory}/" for directory in _MERGED)

_FILES: Final[Mapping[str, str]] = {
    "etc/fstab": f"LABEL={_LABEL} / ext4 errors=remount-ro 0 1\n",
    "etc/hostname": "debian\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n",
    "etc/machine-id": "",  # empty: made at boot, without the questions of a first boot
    "etc/pam.d/common-account": "account required pam_unix.so\n",
    "etc/pam.d/common-auth": "auth required pam_unix.so nullok\n",
    "etc/pam.d/common-password": "password required pam_unix.so obscure yescrypt\n",
    "etc/pam.d/common-session": "session required pam_unix.so\n",
    "etc/pam.d/common-session-noninteractive": "session required pam_unix.so\n",
    # udev may take longer than 90 s to tell of hvc0 where a host is busy or emulated, and then there would be no login
    "etc/systemd/system.conf.d/patience.conf": "[Manager]\nDefaultDeviceTimeoutSec=30min\nDefaultTimeoutStartSec=30min\n",
    "etc/systemd/network/80-dhcp.network": "[Match]\nKind=!*\nType=ether\n\n[Network]\nDHCP=yes\n",
}
"""What packages' scripts or an administrator would write."""

_DIRECTORIES: Final = ("media", "mnt", "opt", "srv", "usr/local/bin", "usr/local/lib", "usr/local/sbin")

_LINKS: Final[Mapping[str, str]] = {
    "etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
    "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
    "etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
    "etc/systemd/system/multi-user.target.wants/systemd-networkd.service": "/lib/systemd/system/systemd-networkd.service",
    "etc/systemd/system/multi-user.target.wants/systemd-resolved.service": "/lib/systemd/system/systemd-resolved.service",
    "usr/bin/awk": "mawk",
    "usr/bin/nc": "nc.openbsd",
    "usr/bin/pager": "less",
    "usr/bin/sh": "dash",
}

_SKELETON: Final[Mapping[str, str]] = {
    "etc/nsswitch.conf": "usr/share/libc-bin/nsswitch.conf",
    "etc/profile": "usr/share/base-files/profile",
    "root/.bashrc": "usr/share/base-files/dot.bashrc",
    "root/.profile": "usr/share/base-files/dot.profile",
}
"""Files that packages carry elsewhere and their scripts copy."""

_MASTERS: Final = "usr/share/base-passwd"
_SHADOW_GID: Final = 42
_SHADOW_FIELDS: Final = "19000:0:99999:7:::"


def make_disk(target: Path) -> None:
    """Write a raw image of one ext4 file system with Debian on it. Raises HostError."""
    from xenpy.packages import fetch_debian_closure

    with tempfile.TemporaryDirectory(prefix=".debian.", dir=target.parent) as name:
        scratch = Path(name)
        root = scratch / "root"
        for directory in _MERGED:
            _directory(root / "usr" / directory / "file")
            (root / directory).symlink_to(f"usr/{directory}")
        owners: dict[str, tuple[int, int]] = {"etc/shadow": (0, _SHADOW_GID)}
        for package in fetch_debian_closure(PACKAGES, scratch):
            owners.update(_unpack(package, root))
        _configure(root)
        _pack(root, owners, target)


def _unpack(package: Path, root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Unpack a package below `root`; yield what of it is not root's: paths and numbers of users and groups.

    dpkg-deb and tar are asked, not tarfile: they know that a directory may be a link, as /bin is.
    """
    left_out = [f"--exclude={path}" for path in _LEFT_OUT]
    options = ["--extract", "--keep-directory-symlink", "--no-same-owner", "--preserve-permissions", "--numeric-owner"]
    unpack = ["tar", *options, "--verbose", "--verbose", *left_out, "-C", str(root)]
    environment = {**os.environ, "LC_ALL": "C"}
    with tempfile.TemporaryFile() as complaints:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=complaints
        ) as source:
            done = subprocess.run(
                unpack, stdin=source.stdout, stdout=subprocess.PIPE, stderr=complaints, env=environment, check=False
            )
        if done.returncode or source.returncode:
            complaints.seek(0)
            raise HostError(
                f"{package.name}: cannot be unpacked: {complaints.read().decode('utf-8', 'replace').strip()}"
            )
    for line in done.stdout.decode().splitlines():
        _mode, owner, _size, _date, _time, path = line.split(None, 5)
        uid, gid = (int(number) for number in owner.split("/"))
        if uid or gid:
            name = path.partition(" -> ")[0].removeprefix("./").rstrip("/")
            yield f"usr/{name}" if name.startswith(_MERGED_PREFIXES) else name, (uid, gid)


def _configure(root: Path) -> None:
    passwd = (root / _MASTERS / "passwd.master").read_text().replace(":*:", ":x:")
    names = [line.partition(":")[0] for line in passwd.splitlines()]
    shadow = "".join(f"{name}:{'' if name == 'root' else '*'}:{_SHADOW_FIELDS}\n" for name in names)
    for path in _DIRECTORIES:
        _directory(root / path / "file")
    files = {
        **_FILES,
        **{path: (root / source).read_text() for path, source in _SKELETON.items()},
        "etc/group": (root / _MASTERS / "group.master").read_text(),
        "etc/passwd": passwd,
        "etc/shadow": shadow,
    }
    for path, text in files.items():
        _directory(root / path)
        (root / path).write_text(text)
        (root / path).chmod(0o640 if path == "etc/shadow" else 0o644)
    for path, link in _LINKS.items():
        _directory(root / path)
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(link)


def _directory(path: Path) -> None:
    """Make the directory of a file, whatever this process's umask."""
    if not path.parent.exists():
        _directory(path.parent)
        path.parent.mkdir()
        path.parent.chmod(0o755)


def _pack(root: Path, owners: Mapping[str, tuple[int, int]], target: Path) -> None:
    """Make an image of what is below `root`; whoever owns it here, there it is root's or as `owners` says."""
    from xenpy.ext import debugfs, ownership, program

    options = ["-q", "-t", "ext4", "-L", _LABEL, "-E", "root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1"]
    command = [program("mke2fs"), *options, "-d", str(root), str(target), f"{_SIZE_MIB}M"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HostError(f"mke2fs {target}: {done.stderr.strip()}")
    commands: list[str] = []
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        wanted = owners.get(name, (0, 0))
        if (status.st_uid, status.st_gid) != wanted:
            mode = stat.S_IMODE(status.st_mode) | stat.S_IFMT(status.st_mode)
            commands += ownership(f"/{name}", *wanted, mode)
    debugfs(target, commands)
