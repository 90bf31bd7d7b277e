"""Running one guest in the foreground, through its reboots, to its end."""

from __future__ import annotations

import errno
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from xenpy import log
from xenpy.config.model import Action
from xenpy.domain.ending import End, Ending
from xenpy.exitcodes import ExitCode
from xenpy.host import Guest, Host
from xenpy.loop import READ
from xenpy.signals import handled
from xenpy.terminal import Terminal, prompt_line

if TYPE_CHECKING:
    from xenpy.config import DomainConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.domain.domain import Domain

_LOOP_REBOOTS: Final = 5
"""So many reboots in a row, each within `_LOOP_SECONDS` of its start, are a reboot loop."""
_LOOP_SECONDS: Final = 20.0

_CODES: Final = {
    End.POWEROFF: ExitCode.POWEROFF,
    End.REBOOT: ExitCode.REBOOT,
    End.SUSPEND: ExitCode.SUSPEND,
    End.CRASH: ExitCode.CRASH,
    End.WATCHDOG: ExitCode.WATCHDOG,
    End.SOFT_RESET: ExitCode.CRASH,
    End.UNSUPPORTED: ExitCode.HOST,
    End.INTERNAL: ExitCode.FAILURE,
    End.DESTROYED: ExitCode.INTERRUPTED,
}
_RESTARTS: Final = (Action.RESTART, Action.RENAME_RESTART, Action.COREDUMP_RESTART, Action.SOFT_RESET)
_CORE_DUMPS: Final = (Action.COREDUMP_DESTROY, Action.COREDUMP_RESTART)


class Observer(Protocol):
    """Somebody who hears of the guest that runs."""

    def created(self, guest: Guest) -> None:
        """Take note of a guest that does not run yet: the first, and one for every reboot."""

    def output(self, data: bytes) -> None:
        """Take note of what the guest wrote to its console."""


class Runner:
    """Runs `config` with the terminal as its console.

    `timeout_s` bounds the whole run; `events` prints one JSON line on stderr for each thing that happens to the domain; `observer` hears of
    each guest. `options` are for its devices. With `gdb_port` a debugger may connect there, for which the first guest waits.
    """

    def __init__(
        self,
        config: DomainConfig,
        *,
        timeout_s: float | None = None,
        events: bool = False,
        observer: Observer | None = None,
        options: DeviceOptions | None = None,
        gdb_port: int | None = None,
    ) -> None:
        self._config = config
        self._gdb_port = gdb_port
        self._options = options
        self._timeout_s = timeout_s
        self._events = events
        self._observer = observer
        self._host = Host()
        self._host.on_end = self._on_end
        self._terminal = Terminal(self._host.loop, self._on_escape, self._on_lost)
        self._guest: Guest | None = None
        self._code: int | None = None
        self._quick_reboots = 0
        self._started = 0.0

    def run(self) -> int:
        """Run to the end and return the exit code. Raises ConfigError, HostError."""
        loop = self._host.loop
        try:
            with handled(_SIGNALS, self._on_signal) as wake:
                loop.watch(wake.fileno(), READ, wake.drained)
                self._start()
                with self._terminal:
                    if self._timeout_s is not None:
                        loop.call_later(self._timeout_s, self._on_timeout)
                    loop.run()
                    self._finish_console()
                loop.watch(wake.fileno(), READ, None)
        finally:
            if self._guest is not None:
                self._guest.close()
            self._host.close()
        return ExitCode.FAILURE if self._code is None else self._code

    # -- the guest ----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._guest = self._make_guest()
        if self._observer is not None:
            self._observer.created(self._guest)
        self._guest.domain.on_emergency_output = self._on_emergency_output
        self._event("created", domid=self._guest.domain.domid)
        self._terminal.attach(self._guest.console)
        if self._gdb_port is not None:
            prompt_line(f"{self._config.name} waits for a debugger: target remote {self._guest.gdb(self._gdb_port)}")
            self._gdb_port = None  # started anew it waits for nobody
        self._started = time.monotonic()
        self._guest.start()
        self._event("started", domid=self._guest.domain.domid)

    def _make_guest(self) -> Guest:
        options = self._options
        if options is None or not options.saved_in:
            return self._host.create(self._config, self._sink, options)
        from xenpy.api.savefile import read

        # What it writes to its disks stays apart from their images; so it must when it boots anew.
        self._options = replace(options, saved_in="", ephemeral_disks=True)
        with read(Path(options.saved_in), self._host.kvm) as snapshot:
            return self._host.restore(self._config, self._sink, snapshot.saved)

    def _sink(self, data: bytes) -> int:
        taken = self._terminal.sink(data)
        if self._observer is not None:
            self._observer.output(data[:taken])
        return taken

    def _on_emergency_output(self, data: bytes) -> None:
        if log.verbose:
            sys.stderr.write(data.decode("utf-8", "replace"))
            sys.stderr.flush()

    def _finish_console(self) -> None:
        self._terminal.attach(None)
        if self._guest is not None:
            self._guest.domain.wait_closed(2)
            rest = self._guest.console.drain()
            if self._observer is not None:
                self._observer.output(rest)
            self._terminal.write_all(rest)

    def _on_end(self, domain: Domain) -> None:
        if self._code is not None or self._guest is None or domain is not self._guest.domain:
            return
        ending = domain.ending
        assert ending is not None
        self._event("ended", domid=domain.domid, reason=ending.kind.value, detail=ending.detail)
        action = self._action(ending)
        if ending.kind is not End.POWEROFF:
            prompt_line(f"{domain.name}: {ending}")
        if action in _CORE_DUMPS:
            prompt_line("core dumps are not written; on_crash is carried out without one")
        if action is Action.PRESERVE:
            prompt_line(f"{domain.name} is preserved; end this command (Ctrl-] or a signal) to let it go")
            return
        if action in _RESTARTS:
            self._restart(ending)
        else:
            self._stop(_CODES[ending.kind])

    def _action(self, ending: Ending) -> Action:
        config = self._config
        return {
            End.POWEROFF: config.on_poweroff,
            End.REBOOT: config.on_reboot,
            End.CRASH: config.on_crash,
            End.WATCHDOG: config.on_watchdog,
            End.SOFT_RESET: config.on_soft_reset,
        }.get(ending.kind, Action.DESTROY)

    def _restart(self, ending: Ending) -> None:
        quick = time.monotonic() - self._started < _LOOP_SECONDS
        self._quick_reboots = self._quick_reboots + 1 if quick else 0
        if self._quick_reboots >= _LOOP_REBOOTS:
            prompt_line(
                f"{self._config.name} ended {_LOOP_REBOOTS} times in a row soon after its start ({ending}); giving up"
            )
            self._stop(ExitCode.REBOOT_LOOP)
            return
        assert self._guest is not None
        self._finish_console()
        self._guest.close()
        self._guest = None
        self._start()

    def _stop(self, code: int) -> None:
        self._code = code
        self._host.loop.stop()

    # -- from outside -------------------------------------------------------------------------------------------------

    def _on_lost(self, error: OSError) -> None:
        """End the guest, whose console nobody gets any more: as a shell expects of a pipe whose reader has gone."""
        if self._code is not None:
            return
        if error.errno == errno.EPIPE:
            self._stop(128 + signal.SIGPIPE)
        else:
            prompt_line(f"stdout: {error.strerror}: the console would be lost, so {self._config.name} is ended")
            self._stop(ExitCode.FAILURE)

    def _on_escape(self) -> None:
        self._terminal.restore()
        prompt_line("left the console; the guest is destroyed")
        self._stop(ExitCode.INTERRUPTED)

    def _on_timeout(self) -> None:
        prompt_line(f"{self._config.name}: did not end within {self._timeout_s:g} s")
        self._event("timeout")
        self._stop(ExitCode.TIMEOUT)

    def _on_signal(self, number: int, _frame: Any) -> None:
        self._stop(128 + number)

    def _event(self, what: str, **fields: Any) -> None:
        if self._events:
            import json

            record = {"event": what, "name": self._config.name, "time": round(time.time(), 6), **fields}
            sys.stderr.write(json.dumps(record) + "\n")
            sys.stderr.flush()


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
