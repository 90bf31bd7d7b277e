"""A device's process: it sets up what its first message names, and serves every queue in a thread until told to stop."""

from __future__ import annotations

import json
import mmap
import os
import resource
import select
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from xenpy.devices.isolation.channel import Channel, Kind
from xenpy.devices.isolation.memory import Ram, RemoteGrants, VmmGone
from xenpy.errors import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SERVICES: Final[Mapping[str, str]] = {"vbd": "xenpy.devices.vbd.served", "vif": "xenpy.devices.vif.served"}
"""Kind of device -> the module whose `main(job, control)` serves it until told to stop, or until the VMM is gone."""
FDS_OF_LINE: Final = 4
NOBODY: Final = 65534
"""Linux' overflow uid, who owns nothing."""


@dataclass(frozen=True, slots=True)
class Line:
    """What one queue has of the VMM."""

    grants: RemoteGrants
    wake: int
    """An eventfd that the guest's events count up."""
    notify: int
    """An eventfd that the guest gets an event for."""
    state: memoryview
    """Memory that outlives the process."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process is for."""

    ram: Ram
    lines: Sequence[Line]
    device: Mapping[str, Any]
    fds: Sequence[int]


def main(control: Channel) -> None:
    """Serve the device that the first message describes; then end the process."""
    try:
        _main(control)
    except Exception as error:
        _report(control, error)
    finally:
        os._exit(0)


def _main(control: Channel) -> None:
    message = control.receive()
    if message is None or message.kind is not Kind.SETUP:
        return
    _drop_privileges()
    setup = json.loads(message.payload)
    ram_fd, *fds = message.fds
    ram = Ram(ram_fd)
    end = setup["lines"] * FDS_OF_LINE
    lines = [_line(ram, fds[start : start + FDS_OF_LINE]) for start in range(0, end, FDS_OF_LINE)]
    import_module(SERVICES[setup["service"]]).main(Job(ram, lines, setup["device"], fds[end:]), control)


def serve_in_threads(job: Job, control: Channel, serves: Sequence[Callable[[Callable[[], bool]], None]]) -> None:
    """Have each line served in a thread by what goes with it, called again and again, until told to stop."""
    stopping = threading.Event()
    threads = [
        threading.Thread(target=_serve, args=(control, line, serve, stopping), daemon=True)
        for line, serve in zip(job.lines, serves, strict=True)
    ]
    for thread in threads:
        thread.start()
    control.receive()  # to stop is all there is to say; a VMM that is gone wants the same
    stopping.set()
    for line in job.lines:
        os.eventfd_write(line.wake, 1)
    for thread in threads:
        thread.join()


def _line(ram: Ram, fds: Sequence[int]) -> Line:
    grants, wake, notify, state = fds
    shared = memoryview(mmap.mmap(state, os.fstat(state).st_size))
    return Line(RemoteGrants(Channel(socket.socket(fileno=grants)), ram), wake, notify, shared)


def _serve(
    control: Channel, line: Line, serve: Callable[[Callable[[], bool]], None], stopping: threading.Event
) -> None:
    try:
        wanted = select.poll()
        wanted.register(line.wake, select.POLLIN)
        serve(stopping.is_set)
        control.send(Kind.IDLE)
        while not stopping.is_set():
            wanted.poll()
            os.eventfd_read(line.wake)
            serve(stopping.is_set)
    except BrokenPipeError:  # the VMM has gone
        return
    except Exception as error:  # of the frontend's making, or a bug of ours that must cost one device only
        _report(control, error)


def _report(control: Channel, error: Exception) -> None:
    if isinstance(error, VmmGone):
        return
    reason = str(error) if isinstance(error, FrontendError) else f"{type(error).__name__}: {error}"
    with suppress(OSError):
        control.send(Kind.FAILED, reason.encode())


def _drop_privileges() -> None:
    """Keep nothing but the descriptors: no core dump of the guest's memory, and, if we are root, no user's rights."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        with suppress(OSError):  # a container may not let us, or know no such user
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
