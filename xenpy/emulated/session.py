"""A running emulated host and the commands run in it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from subprocess import CalledProcessError, CompletedProcess, TimeoutExpired
from typing import TYPE_CHECKING, Self

from xenpy.emulated.connection import Connection
from xenpy.emulated.images import host_images
from xenpy.emulated.machine import Channel, Machine, MachineOptions, start
from xenpy.emulated.protocol import (
    DONE,
    INPUT_FILE,
    NO_INPUT,
    READY,
    MarkedStream,
    command_text,
    default_environment,
    new_mark,
    request,
    setup_text,
)
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

BOOT_TIMEOUT = 180.0
"""Seconds for a boot that takes about 3 on an idle machine."""
KILL_TRIES = 30
KILL_INTERVAL = 2.0
"""Seconds for a command that has been killed to be gone, before the next try."""


class EmulatedHost:
    """An emulated machine with a usable /dev/kvm, on which commands run one after the other.

    The outer machine's root is there, as it is when a command starts, with a layer in memory on top that takes what is
    written.  The `writable` directories are the outer machine's own: both sides see at once what the other writes there.

    Use it as a context manager, in the main thread where possible: QEMU then dies with this process whatever happens.
    Entering raises HostError if QEMU is missing, a package cannot be fetched or the boot fails.
    """

    def __init__(
        self,
        *,
        memory: int = 3072,
        cpus: int = 1,
        writable: Sequence[Path] = (),
        boot_timeout: float = BOOT_TIMEOUT,
    ) -> None:
        """Take the options: `memory` in MiB, `boot_timeout` in seconds."""
        self._options = MachineOptions(memory, cpus, tuple(writable))
        self._boot_timeout = boot_timeout
        self._machine: Machine | None = None
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        kernel, initramfs = host_images()
        self._machine = start(kernel, initramfs, self._options)
        self._connection = Connection(self._machine)
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the machine at once; nothing is left of it but what it wrote to `writable` directories."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._machine is not None:
            self._machine.close()
            self._machine = None

    @property
    def connection(self) -> Connection:
        """The event loop; raises HostError unless the host is running."""
        if self._connection is None:
            raise HostError("the emulated host is not running")
        return self._connection

    @property
    def machine(self) -> Machine:
        """The QEMU process; raises HostError unless the host is running."""
        if self._machine is None:
            raise HostError("the emulated host is not running")
        return self._machine

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        check: bool = False,
    ) -> CompletedProcess[bytes]:
        """Run `argv` there and return its exit code and output; a death by signal is 128 plus the signal.

        `env` is the whole environment, by default `default_environment()`; `cwd` is by default this process's.

        Raises subprocess.TimeoutExpired with the output so far after `timeout` seconds, the command being killed and the
        host still usable; subprocess.CalledProcessError if `check` and the command failed; ConfigError if there is no such
        program; HostError if the host is lost.
        """
        text = command_text(argv, default_environment() if env is None else env, cwd or Path.cwd())
        if stdin:
            self.connection.send(request("input", body=stdin))
        stdout: list[bytes] = []
        stderr: list[bytes] = []
        command = self.begin(
            text,
            INPUT_FILE if stdin else NO_INPUT,
            {Channel.STDOUT: stdout.append, Channel.STDERR: stderr.append},
        )
        try:
            status = command.finish(timeout)
        except BaseException:  # a test's own time limit, or Ctrl-C: the host stays usable
            with suppress(HostError):
                command.kill()
            raise
        output, errors = b"".join(stdout), b"".join(stderr)
        if status is None:
            command.kill()
            raise TimeoutExpired(list(argv), timeout or 0.0, output, errors)
        if check and status:
            raise CalledProcessError(status, list(argv), output, errors)
        return CompletedProcess(list(argv), status, output, errors)

    def begin(self, text: bytes, stdin: str, outputs: Mapping[Channel, Callable[[bytes], None]]) -> RunningCommand:
        """Start the command of shell text `text`, with the inner path `stdin` as its input.

        `outputs` says who gets what arrives by its channels: the first is the command's stdout, the last its stderr.
        """
        return RunningCommand(self.connection, text, stdin, outputs)

    def _boot(self) -> None:
        if self._answer(self._boot_timeout) != READY:
            raise HostError("the emulated host's agent does not speak as expected")
        self.connection.send(request("setup", body=setup_text(self._options.shares())))
        if self._answer(self._boot_timeout) != f"{DONE} 0":
            raise HostError(f"the emulated host cannot mount what it was given:\n{self.connection.log_tail()}")

    def _answer(self, timeout: float) -> str:
        connection = self.connection
        if not connection.wait(lambda: bool(connection.lines), timeout=timeout):
            raise HostError(
                f"the emulated host did not come up within {timeout:.0f} s; its last messages:\n{connection.log_tail()}"
            )
        return connection.lines.pop(0)


class RunningCommand:
    """A command in the emulated host from its start to the end of its output."""

    def __init__(
        self, connection: Connection, text: bytes, stdin: str, outputs: Mapping[Channel, Callable[[bytes], None]]
    ) -> None:
        self._connection = connection
        mark = new_mark()
        self._streams = {channel: MarkedStream(mark, sink) for channel, sink in outputs.items()}
        connection.sinks = {channel: stream.feed for channel, stream in self._streams.items()}
        first, *_, last = [*outputs, *outputs]
        connection.send(request("run", mark.decode(), stdin, first.device, last.device, body=text))

    def finish(self, timeout: float | None) -> int | None:
        """Return the exit code once all output has been passed on, or None if that takes longer than `timeout` seconds."""
        if not self._connection.wait(self._over, timeout=timeout):
            return None
        word, _, status = self._connection.lines.pop(0).partition(" ")
        if word != DONE or not status.isdecimal():
            raise HostError("the emulated host's agent does not speak as expected")
        return int(status)

    def kill(self) -> None:
        """End the command and all that it started; raises HostError if that fails, the host being lost."""
        for _ in range(KILL_TRIES):  # the first may come before the command is where the agent looks for it
            self._connection.send(request("kill"))
            if self.finish(KILL_INTERVAL) is not None:
                return
        raise HostError(f"the emulated host still runs a command that was killed {KILL_TRIES} times")

    def _over(self) -> bool:
        return bool(self._connection.lines) and all(stream.ended for stream in self._streams.values())
