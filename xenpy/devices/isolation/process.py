"""Processes for devices, and the template that they are forked from."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from xenpy.devices.isolation.channel import PID, Channel, ChannelError, Kind
from xenpy.errors import HostError

_BOOTSTRAP: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; from xenpy.devices.isolation.template import main; main(int(sys.argv[1]))"
)
_ATTEMPTS: Final = 3
_END_S: Final = 5.0
_FORK_S: Final = 30.0
"""A template that was just started has its modules to read."""


class Process:
    """A process that was forked for us."""

    def __init__(self, pid: int, pidfd: int | None) -> None:
        self.pid = pid
        self._pidfd = pidfd

    def kill(self) -> None:
        """End it without asking."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until it is gone: all its threads, and with them every system call that they were in."""
        if self._pidfd is not None:
            poll = select.poll()
            poll.register(self._pidfd, select.POLLIN)
            poll.poll()
            os.close(self._pidfd)
            self._pidfd = None


class Template:
    """The template of this process' devices; it runs as long as somebody holds it, and is started anew if it dies."""

    def __init__(self) -> None:
        self._forking = threading.Lock()
        self._lock = threading.Lock()  # not held while it is waited for, which nobody but who forks shall do
        self._holders = 0
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guarded: dict[int, tuple[bytes, int]] = {}

    @property
    def pid(self) -> int | None:
        """Return its process, if it runs."""
        process = self._process
        return process.pid if process is not None else None

    def hold(self) -> None:
        """Keep it running, and have it started, for whoever is about to need it; goes with a `drop`."""
        with self._lock:
            self._holders += 1
            if self._channel is None:
                with suppress(HostError):  # `fork` tries again, and tells
                    self._start()

    def drop(self) -> None:
        """Undo one `hold`."""
        with self._lock:
            self._holders -= 1
            if not self._holders:
                self._end()

    def guard(self, pid: int, pidfd: int, directory: str) -> None:
        """Have a process killed and its directory removed when this one is no more, however it ended.

        It goes with an `unguard`, before which `pidfd` stays open.
        """
        self.hold()
        with self._lock:
            payload = PID.pack(pid) + os.fsencode(directory)
            self._guarded[pid] = payload, pidfd
            with suppress(OSError):  # it has died: who starts it anew sends everything again
                if self._channel is not None:
                    self._channel.send(Kind.GUARD, payload, [pidfd])

    def unguard(self, pid: int) -> None:
        """Undo one `guard`."""
        with self._lock:
            del self._guarded[pid]
            with suppress(OSError):
                if self._channel is not None:
                    self._channel.send(Kind.UNGUARD, PID.pack(pid))
        self.drop()

    def fork(self, theirs: Channel) -> Process:
        """Make a process that gets one end of a connection, which is the caller's to close.

        Raises HostError if the template dies, or does not answer, again and again.
        """
        with self._forking:
            for _ in range(_ATTEMPTS):
                with suppress(OSError, ChannelError):
                    process = self._ask(theirs)
                    if process is not None:
                        return process
                with self._lock:
                    self._end()
        raise HostError(
            "no process for a device can be started: the one that they are forked from dies, or is not answering"
        )

    def _ask(self, theirs: Channel) -> Process | None:
        with self._lock:
            if self._channel is None:
                self._start()
            assert self._channel is not None
            assert self._process is not None
            channel, template = self._channel, self._process
            channel.send(Kind.FORK, fds=[theirs.fileno()], wait=False)
        if not channel.wait(_FORK_S):
            template.kill()  # or it might go on later, and end what it guards
            return None
        answer = channel.receive()
        if answer is None or answer.kind is not Kind.FORKED:
            return None
        return Process(PID.unpack(answer.payload)[0], answer.fds[0] if answer.fds else None)

    def _start(self) -> None:
        ours, theirs = Channel.pair()
        path = [os.fspath(Path(entry).absolute()) for entry in sys.path]
        try:
            # -I -S -B: no settings of the user's, no start-up files, no bytecode written; the modules are those that we use.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", _BOOTSTRAP, str(theirs.fileno()), *path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={},
                start_new_session=True,  # a Ctrl-C at the terminal is the guest's, or ours
            )
        except OSError as error:
            ours.close()
            raise HostError(f"{sys.executable}: {error.strerror}") from None
        finally:
            theirs.close()
        self._channel = ours
        with suppress(OSError):  # it has died already: `fork` tries again
            for payload, pidfd in self._guarded.values():
                ours.send(Kind.GUARD, payload, [pidfd])

    def _end(self) -> None:
        """Close the connection, at which the template ends; what was forked from it does not."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


TEMPLATE: Final = Template()
