"""Creating a domain: in the background, in the foreground, with its console or without.

Ref: xl(1), create
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from xenpy.errors import HostError
from xenpy.exitcodes import ExitCode
from xenpy.log import debug, note

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.config import DomainConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.runner import Runner


def load(file: str | None, arguments: Sequence[str]) -> tuple[str, DomainConfig]:
    """Return the name of the configuration file and what it comes to with its overrides; warnings are said.

    The first argument is the file unless `file` is given or it is a setting; without a file there are settings alone.
    Raises ConfigError.
    """
    from xenpy import config
    from xenpy.domain.supported import without_effect

    rest = list(arguments)
    if file is None:
        file = rest.pop(0) if rest and "=" not in rest[0] else os.devnull
    domain = config.load(file, rest)
    for warning in (*domain.warnings, *without_effect(domain)):
        note(f"warning: {warning}")
    return file, domain


def create(
    config: DomainConfig,
    *,
    paused: bool,
    console: bool,
    foreground: bool,
    options: DeviceOptions | None = None,
    gdb_port: int | None = None,
) -> int:
    """Create a domain and return the command's exit code: 0, or in the foreground how the guest ended.

    With `console` its console is on this terminal, from the first byte. `options` are for its devices. With `gdb_port` it waits for
    a debugger there. Raises ConfigError, HostError, CommandError.
    """
    if foreground:
        return _run(config, options, paused=paused, console=console, gdb_port=gdb_port)
    from xenpy.toolstack.daemon import start

    domid = start(config, options, paused=paused or console or gdb_port is not None)
    from xenpy.toolstack.client import call, connect

    if gdb_port is not None:
        address = call(str(domid), "gdb", port=gdb_port, hold=True)
        note(f"{config.name} waits for a debugger: target remote {address}")
        if not paused and not console:
            call(str(domid), "unpause")
    if console:
        from xenpy.toolstack.viewer import attach, view

        with connect(str(domid)) as connection:
            attach(connection)
            if not paused:
                call(str(domid), "unpause")
            view(connection)
    return ExitCode.POWEROFF


def _run(
    config: DomainConfig, options: DeviceOptions | None, *, paused: bool, console: bool, gdb_port: int | None
) -> int:
    from xenpy.toolstack.registry import Registry
    from xenpy.toolstack.supervisor import Supervisor

    entry = Registry().register(config.name, str(config.uuid))
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    stdin, stdout = (0, 1) if console else (null, null)
    try:
        return Supervisor(
            config,
            entry,
            paused=paused,
            stdin=stdin,
            stdout=stdout,
            outlive_console=True,
            options=options,
            gdb_port=gdb_port,
        ).run()
    finally:
        entry.close()
        os.close(null)


def runner(
    config: DomainConfig,
    *,
    timeout_s: float | None,
    events: bool,
    options: DeviceOptions | None = None,
    gdb_port: int | None = None,
) -> Runner:
    """Return what `xenpy run` runs: a guest that other processes may command, if there is a place to register it."""
    from xenpy.toolstack.registry import Registry

    try:
        entry = Registry().register(config.name, str(config.uuid), unique=False)
    except HostError as error:
        from xenpy.runner import Runner

        debug(f"this guest cannot be commanded from outside: {error}")
        return Runner(config, timeout_s=timeout_s, events=events, options=options, gdb_port=gdb_port)
    from xenpy.toolstack.supervisor import Supervisor

    try:
        return Supervisor(config, entry, timeout_s=timeout_s, events=events, options=options, gdb_port=gdb_port)
    except BaseException:
        entry.close()
        raise
