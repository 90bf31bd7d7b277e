"""Making a process for a domain that outlives the command, and hearing from it how its start went."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from xenpy.errors import XenpyError
from xenpy.exitcodes import ExitCode
from xenpy.log import note
from xenpy.toolstack.protocol import CommandError
from xenpy.toolstack.registry import Registry

if TYPE_CHECKING:
    from xenpy.config import DomainConfig
    from xenpy.devices.registry import DeviceOptions

_CHUNK = 4096


def start(config: DomainConfig, options: DeviceOptions | None, *, paused: bool) -> int:
    """Start a guest in a process of its own, in this directory, where relative paths of its configuration are; return its domid.

    `options` are for its devices.

    Raises CommandError with what went wrong there and where the process's log is.
    """
    log = Registry().new_log(config.name)
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _become_daemon(config, options, log, writer, paused=paused)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    try:
        message: Any = json.loads(data)
    except ValueError:
        raise CommandError(f"the domain's process ended at once; its log is {log}") from None
    if "error" in message:
        where = f"; the log is {log}" if log.exists() else ""
        raise CommandError(f"{message['error']}{where}", message["code"])
    return int(message["domid"])


def _become_daemon(
    config: DomainConfig, options: DeviceOptions | None, log: Path, writer: int, *, paused: bool
) -> NoReturn:
    """Leave the terminal, the session and everything else of the command's, and run the guest."""
    code = int(ExitCode.FAILURE)
    try:
        os.setsid()
        if os.fork():
            os._exit(0)  # so that nobody is the leader of the session, and no terminal opened later becomes its own
        _replace_files(log, writer)
        code = _run(config, options, log, writer, paused=paused)
    finally:
        os._exit(code)


def _replace_files(log: Path, writer: int) -> None:
    """Have no open file but /dev/null, the log and the pipe."""
    null = os.open(os.devnull, os.O_RDWR)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (null, 1), (output, 2)):
        os.dup2(source, target)
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd != writer:
            with suppress(OSError):  # the one that the list was read from
                os.close(fd)


def _run(config: DomainConfig, options: DeviceOptions | None, log: Path, writer: int, *, paused: bool) -> int:
    """Run the guest, tell the command how its start went, and return the exit code."""

    def tell(**message: Any) -> None:
        nonlocal writer
        if writer >= 0:
            with suppress(BrokenPipeError):  # the command was killed; the guest is not its affair any more
                os.write(writer, json.dumps(message).encode())
            os.close(writer)
            writer = -1

    try:
        from xenpy.toolstack.supervisor import Supervisor

        entry = Registry().register(config.name, str(config.uuid), log=os.fspath(log))
        try:
            supervisor = Supervisor(
                config, entry, paused=paused, on_ready=lambda: tell(domid=entry.record.domid), options=options
            )
        except BaseException:
            entry.close()
            raise
        code = supervisor.run()
    except XenpyError as error:
        if writer < 0:
            note(str(error))
        _remove_if_empty(log)
        tell(error=str(error), code=int(error.exit_code))
        return int(error.exit_code)
    except BaseException as error:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        tell(error=f"{type(error).__name__}: {error}", code=int(ExitCode.FAILURE))
        return int(ExitCode.FAILURE)
    _remove_if_empty(log)
    return code


def _remove_if_empty(log: Path) -> None:
    with suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
