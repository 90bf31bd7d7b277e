"""QEMU emulating an x86 processor with SVM: its command line, its process, and the channels into it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

QEMU = "qemu-system-x86_64"
INSTALL_QEMU = f"{QEMU} not found: install QEMU (Debian: apt install qemu-system-x86)"

KERNEL_PARAMETERS = (
    "console=ttyS0 loglevel=3 panic=-1"
    # What the emulated processor would spend most of its boot on, and an emulated host has no use for.
    " mitigations=off tsc=reliable audit=0 lsm= cryptomgr.notests=1 cgroup_disable=memory"
    " initcall_blacklist=jent_mod_init,load_system_certificate_list"
)


class Channel(IntEnum):
    """The virtio-serial ports, by number; port 0 is the console, the kernel's reservation."""

    TERMINAL = 0
    CONTROL = 1
    STDIN = 2
    STDOUT = 3
    STDERR = 4

    @property
    def device(self) -> str:
        """The path of the channel's inner end."""
        return "/dev/hvc0" if self is Channel.TERMINAL else f"/dev/vport0p{self.value}"


@dataclass(frozen=True)
class Share:
    """A directory of the outer machine that the emulated host mounts at the same path, over 9p."""

    path: Path
    tag: str
    writable: bool


@dataclass(frozen=True)
class MachineOptions:
    """What may be chosen about the emulated host."""

    memory: int = 3072
    """MiB."""
    cpus: int = 1
    writable: tuple[Path, ...] = ()
    """Directories whose files the inner command may change; everything else it writes is gone at the end."""

    def shares(self) -> list[Share]:
        """Return what the machine mounts, the root first; raises HostError for a directory that is none."""
        shares = [Share(Path("/"), "root", writable=False)]
        for number, given in enumerate(self.writable):
            path = given.resolve()
            if not path.is_dir() or path == Path("/"):
                raise HostError(
                    f"{given}: only a directory below the root can be shared with the emulated host for writing"
                )
            shares.append(Share(path, f"share{number}", writable=True))
        return shares


def find_qemu() -> str:
    """Return QEMU's path; raises HostError with the package to install."""
    qemu = shutil.which(QEMU)
    if qemu is None:
        raise HostError(INSTALL_QEMU)
    return qemu


def qemu_command(
    qemu: str, kernel: Path, initramfs: Path, options: MachineOptions, descriptors: dict[Channel, int]
) -> list[str]:
    """Return QEMU's command line, whose channels are the inherited sockets `descriptors`."""
    command = [qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-M", "q35", "-accel", "tcg,thread=single", "-cpu", "EPYC,+svm,+npt"]
    command += ["-m", str(options.memory), "-smp", str(options.cpus)]
    command += ["-kernel", str(kernel), "-initrd", str(initramfs), "-append", KERNEL_PARAMETERS]
    command += ["-device", f"virtio-serial-pci,max_ports={len(Channel)}"]
    for channel, descriptor in descriptors.items():
        kind = "virtconsole" if channel is Channel.TERMINAL else "virtserialport"
        command += ["-chardev", f"socket,id=channel{channel.value},fd={descriptor}"]
        command += ["-device", f"{kind},nr={channel.value},chardev=channel{channel.value}"]
    for share in options.shares():
        path = str(share.path).replace(",", ",,")
        access = "" if share.writable else ",readonly=on"
        command += ["-fsdev", f"local,id={share.tag},path={path},security_model=none,multidevs=remap{access}"]
        command += ["-device", f"virtio-9p-pci,fsdev={share.tag},mount_tag={share.tag}"]
    return command


class Machine:
    """One running QEMU: channels as sockets, the kernel's and QEMU's messages as `log`; ends with `close`.

    QEMU is killed if this process dies in whatever way: by the kernel where util-linux' `setpriv` is there to ask for it, and
    by the agent inside, which powers off when its control channel closes.
    """

    def __init__(self, command: Sequence[str], channels: dict[Channel, socket.socket], theirs: Sequence[int]) -> None:
        self.channels = channels
        self._process = subprocess.Popen(
            [*_ends_with_parent(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=theirs,
            start_new_session=True,  # a terminal's Ctrl-C is for this process to act on
        )
        if self._process.stdout is None:
            raise ValueError("no pipe")
        self.log = self._process.stdout.fileno()

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._process.pid

    def close(self) -> None:
        """Kill QEMU, which has nothing to save, and close the channels."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        for channel in self.channels.values():
            channel.close()


def start(kernel: Path, initramfs: Path, options: MachineOptions) -> Machine:
    """Start QEMU; raises HostError if it is not installed or does not start."""
    qemu = find_qemu()
    ours: dict[Channel, socket.socket] = {}
    theirs: dict[Channel, socket.socket] = {}
    try:
        for channel in Channel:
            ours[channel], theirs[channel] = socket.socketpair()
        descriptors = {channel: end.fileno() for channel, end in theirs.items()}
        command = qemu_command(qemu, kernel, initramfs, options, descriptors)
        return Machine(command, ours, tuple(descriptors.values()))
    except BaseException as error:
        for end in ours.values():
            end.close()
        if isinstance(error, OSError):
            raise HostError(f"cannot start {qemu}: {error.strerror}") from error
        raise
    finally:
        for end in theirs.values():
            end.close()


def _ends_with_parent() -> Iterator[str]:
    """Return the words that make a command die with the thread that starts it.

    Ref: PR_SET_PDEATHSIG in prctl(2), which setpriv(1) sets
    """
    import threading

    # The signal comes when the starting thread ends, so only the main one may ask for it.
    setpriv = shutil.which("setpriv")
    if setpriv is not None and threading.current_thread() is threading.main_thread() and _is_util_linux(setpriv):
        yield from (setpriv, "--pdeathsig", "KILL")


def _is_util_linux(setpriv: str) -> bool:
    """Tell util-linux' setpriv from busybox', which lacks the option."""
    return "busybox" not in os.path.realpath(setpriv)
