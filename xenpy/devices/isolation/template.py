"""The process that devices' processes are forked from: it has everything imported, no threads and nothing of any guest's.

To fork takes a millisecond or two where a new interpreter would take a hundred, which is how long a disk would stand still.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
from importlib import import_module
from typing import Final

from xenpy.devices.isolation import child
from xenpy.devices.isolation.channel import Channel, Kind

PID: Final = struct.Struct("=i")


def main(fd: int) -> None:
    """Serve the connection `fd` until its other end has gone."""
    for module in child.SERVICES.values():
        import_module(module)
    gc.freeze()  # what is here now is shared with every process to come, and not to be touched by its collector
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # the kernel buries them; whoever asked for one has a descriptor of it
    channel = Channel(socket.socket(fileno=fd))
    while (message := channel.receive()) is not None:
        pid = os.fork()
        if not pid:
            channel.close()
            child.main(Channel(socket.socket(fileno=message.fds[0])))
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it lived that short
            channel.send(Kind.FORKED, PID.pack(pid))
        else:
            channel.send(Kind.FORKED, PID.pack(pid), [pidfd])
            os.close(pidfd)
        message.close()
