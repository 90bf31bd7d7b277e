"""The process that devices' processes are forked from: it has everything imported, no threads and nothing of any guest's.

To fork takes a millisecond or two where a new interpreter would take a hundred, which is how long a disk would stand still.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from xenpy.devices.isolation import child
from xenpy.devices.isolation.channel import PID, Channel, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.devices.isolation.channel import Message


def main(fd: int) -> None:
    """Serve the connection `fd` until its other end has gone."""
    for module in child.SERVICES.values():
        import_module(module)
    gc.freeze()  # what is here now is shared with every process to come, and not to be touched by its collector
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # the kernel buries them; whoever asked for one has a descriptor of it
    channel = Channel(socket.socket(fileno=fd))
    guarded: dict[bytes, tuple[int, str]] = {}
    while (message := channel.receive()) is not None:
        match message.kind:
            case Kind.GUARD:
                directory = os.fsdecode(message.payload[PID.size :])
                guarded[message.payload[: PID.size]] = message.fds[0], directory
            case Kind.UNGUARD:
                os.close(guarded.pop(message.payload)[0])
            case _:
                _fork(channel, message, [pidfd for pidfd, _ in guarded.values()])
    for pidfd, directory in guarded.values():
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        shutil.rmtree(directory, ignore_errors=True)


def _fork(channel: Channel, message: Message, guarded: Iterable[int]) -> None:
    pid = os.fork()
    if not pid:
        channel.close()
        for fd in guarded:
            os.close(fd)
        child.main(Channel(socket.socket(fileno=message.fds[0])))
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:  # it lived that short
        channel.send(Kind.FORKED, PID.pack(pid))
    else:
        channel.send(Kind.FORKED, PID.pack(pid), [pidfd])
        os.close(pidfd)
    message.close()
