"""Small root filesystems that boot a guest to a shell, or run one command and end as asked."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xenpy.guests import GuestImages

Ending = Literal["poweroff", "reboot", "panic", "shell", "boot"]
"""What happens after the command: `shell` leaves the user at a prompt, then powers off; `boot` goes on from the disk that root= names."""

BOOT = """\
fail() {
    echo "initramfs: $*; the device or file system may need a module; a shell, then power-off" >$tty
    setsid -c sh -l <$tty >$tty 2>&1
    poweroff -f
}
init=/sbin/init root= kind= flags= mode=ro
for word in $(cat /proc/cmdline); do
    case "$word" in
        root=*) root=${word#root=} ;;
        rootfstype=*) kind=${word#*=} ;;
        rootflags=*) flags=,${word#*=} ;;
        init=*) init=${word#init=} ;;
        ro | rw) mode=$word ;;
    esac
done
found() {
    case "$root" in
        UUID=* | LABEL=*) device=$(findfs "$root" 2>/dev/null) ;;
        *) device=$root ;;
    esac
    [ -b "$device" ]
}
for try in $(seq 100); do
    found && break
    usleep 100000
done
found || fail "root=$root is no disk"
mkdir -p /root.new
mount ${kind:+-t "$kind"} -o "$mode$flags" "$device" /root.new || fail "root=$root cannot be mounted"
for place in dev proc sys; do
    mount -o move "/$place" "/root.new/$place" || fail "root=$root has no directory $place"
done
exec switch_root -c "$tty" /root.new $init"""

ENDINGS: Mapping[Ending, str] = {
    "poweroff": "poweroff -f",
    "reboot": "reboot -f",
    "panic": "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger",
    "shell": "setsid -c sh -l <$tty >$tty 2>&1; poweroff -f",
    "boot": BOOT,
}

INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root TERM=${{TERM:-linux}}
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
tty=/dev/{console}
for module in {modules}; do insmod /lib/modules/$module.ko; done
{command}
{ending}
"""

MODULE_DIRECTORY = "lib/modules"
SCRIPT = "etc/command"
UNUSED_FOR = 7 * 24 * 3600
"""Seconds after which a generated image that nobody asked for again may go."""


def build_initramfs(
    busybox: bytes,
    *,
    command: str | None = None,
    ending: Ending | None = None,
    images: GuestImages | None = None,
    modules: Sequence[str] = (),
    files: Mapping[str, bytes | Path] | None = None,
    console: str = "hvc0",
) -> bytes:
    """Return the uncompressed archive that `make_initramfs` keeps; same arguments."""
    from xenpy.cpio import Archive
    from xenpy.kmodules import ModuleTree

    archive = Archive()
    for directory in ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "run"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)  # init's first stdin and stdout, before devtmpfs is mounted
    archive.file("bin/busybox", busybox, mode=0o755)
    archive.symlink("bin/sh", "busybox")
    loaded: list[str] = []
    if modules:
        if images is None or images.modules is None:
            raise ConfigError(
                f"no modules are known for {images.name if images else 'this kernel'}: {', '.join(modules)}"
            )
        for module in ModuleTree(images.modules).closure(tuple(modules)):
            archive.file(f"{MODULE_DIRECTORY}/{module.name}.ko", module.image)
            loaded.append(module.name)
    for path, content in (files or {}).items():
        if isinstance(content, Path):
            archive.file(path, _read(content), mode=content.stat().st_mode & 0o777)
        else:
            archive.file(path, content, mode=0o755 if content.startswith((b"#!", b"\x7fELF")) else 0o644)
    if command is not None:
        archive.file(SCRIPT, command.encode() + b"\n")
    archive.file("init", _init(command, ending, loaded, console).encode(), mode=0o755)
    return archive.to_bytes()


def make_initramfs(
    *,
    command: str | None = None,
    ending: Ending | None = None,
    images: GuestImages | None = None,
    modules: Sequence[str] = (),
    files: Mapping[str, bytes | Path] | None = None,
    console: str = "hvc0",
    compress: bool = True,
) -> Path:
    """Return an initramfs of busybox that boots to a shell, or runs `command` on the console and ends with `ending`.

    Without a command the ending is `shell`, with one it is `poweroff`.  `command` is sh text whose stdin, stdout and
    stderr are the console.  `modules` of the kernel `images` are loaded first, dependencies before dependents.  `files`
    maps guest paths to contents, or to a host file whose mode is kept.

    Results live in the cache, named by content: equal arguments give the same path.  They are packed with gzip level 1;
    `compress=False` spares a slow guest even that.  Raises ConfigError, HostError.
    """
    from xenpy.guests import busybox

    data = build_initramfs(
        busybox().read_bytes(),
        command=command,
        ending=ending,
        images=images,
        modules=modules,
        files=files,
        console=console,
    )
    return keep(data, compress=compress)


def keep(data: bytes, *, compress: bool) -> Path:
    """Return the path of an archive in the cache, writing it, gzip'd or plain, if it is not there yet."""
    import gzip
    import hashlib

    from xenpy.cache import cache_directory, publish_bytes

    directory = cache_directory("initramfs")
    target = directory / f"{hashlib.sha256(data).hexdigest()[:32]}.cpio{'.gz' if compress else ''}"
    if target.exists():
        target.touch()
    else:
        publish_bytes(target, gzip.compress(data, compresslevel=1, mtime=0) if compress else data)
        _drop_unused(directory)
    return target


def _init(command: str | None, ending: Ending | None, modules: Sequence[str], console: str) -> str:
    if ending is None:
        ending = "shell" if command is None else "poweroff"
    if ending not in ENDINGS:
        raise ConfigError(f"ending {ending!r}: one of {', '.join(ENDINGS)}")
    # A session of its own with the console as its terminal: job control and Ctrl-C then work as at a login.
    run = f"setsid -c sh /{SCRIPT} <$tty >$tty 2>&1" if command is not None else ""
    return INIT.format(console=shlex.quote(console), modules=" ".join(modules), command=run, ending=ENDINGS[ending])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be put into the initramfs ({error.strerror})") from error


def _drop_unused(directory: Path) -> None:
    import contextlib
    import time

    for path in directory.glob("*.cpio*"):
        with contextlib.suppress(OSError):  # another process may have dropped it
            if time.time() - path.stat().st_mtime > UNUSED_FOR:
                path.unlink()
