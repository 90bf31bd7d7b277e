"""A guest in the foreground of its process that other processes may command."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xenpy.domain.ending import SHUTDOWN_ENDS, End, Ending
from xenpy.exitcodes import ExitCode
from xenpy.runner import Runner
from xenpy.terminal import prompt_line
from xenpy.toolstack.commands import Commands
from xenpy.toolstack.console import SharedConsole
from xenpy.toolstack.dmesg import Messages
from xenpy.toolstack.server import Server
from xenpy.toolstack.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.config import DomainConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.domain.domain import Domain
    from xenpy.host import Guest
    from xenpy.toolstack.registry import Entry


class Supervisor(Runner):
    """Runs `config` under the registration `entry`, whose domid it takes and which it closes at the end.

    `paused` starts the guest paused. With `outlive_console` Ctrl-] leaves the console and not the guest. `on_ready` is called
    when the guest has been started.
    """

    def __init__(
        self,
        config: DomainConfig,
        entry: Entry,
        *,
        timeout_s: float | None = None,
        events: bool = False,
        stdin: int = 0,
        stdout: int = 1,
        paused: bool = False,
        outlive_console: bool = False,
        on_ready: Callable[[], None] | None = None,
        options: DeviceOptions | None = None,
        gdb_port: int | None = None,
    ) -> None:
        super().__init__(config, timeout_s=timeout_s, events=events, options=options, gdb_port=gdb_port)
        self.entry = entry
        self._paused = paused
        self._outlive_console = outlive_console
        self._on_ready = on_ready
        self._started_before = False
        self._console = SharedConsole(
            self._host.loop, self._on_escape, self._on_lost, self._host.lock, stdin=stdin, stdout=stdout
        )
        self._terminal = self._console
        self._messages = Messages(self._host.loop, entry)
        self._tracing = Tracing(self._host.loop, lambda: self.guest)
        self._observer = self._tracing
        self._server = Server(self._host.loop, entry.listener, Commands(self).table, self._console, self._tracing.begin)

    @property
    def guest(self) -> Guest:
        """Return the guest as it is now: each start makes a new one."""
        assert self._guest is not None
        return self._guest

    @property
    def config(self) -> DomainConfig:
        """Return what the guest is started from, the next time as well."""
        return self._config

    @config.setter
    def config(self, config: DomainConfig) -> None:
        self._config = config

    def run(self) -> int:
        """Run to the end and return the exit code; nothing of the guest's is left then. Raises ConfigError, HostError."""
        try:
            return super().run()
        finally:
            self.entry.close()  # the name is free before anybody hears of the end
            self._server.close()
            ending = self._guest.domain.ending if self._guest is not None else None
            self._tracing.finish(str(ending or End.DESTROYED.value))
            self._console.finish()

    # -- what other processes ask for ---------------------------------------------------------------------------------

    def destroy(self) -> None:
        """End the guest, or let go of one that has ended and is preserved."""
        domain = self.guest.domain
        if domain.ending is None:
            domain.end(Ending(End.DESTROYED))
        else:
            self._stop(ExitCode.INTERRUPTED)

    def rename(self, name: str) -> None:
        """Give the guest another name. Raises NameTaken."""
        self.entry.rename(name)
        self._config = replace(self._config, name=name)
        domain, store = self.guest.domain, self._host.store
        with self._host.lock:
            domain.name = name
            home = f"/local/domain/{domain.domid}"
            store.write(f"{home}/name", name)
            vm_path = store.get(f"{home}/vm")
            if vm_path is not None:
                store.write(f"{vm_path}/name", name)

    def say(self, text: str) -> None:
        """Say something in the messages that `xl dmesg` shows."""
        self._messages.add(text)
        self._messages.flush()

    # -- what happens to the guest ------------------------------------------------------------------------------------

    def _start(self) -> None:
        domid = self.entry.renumber() if self._started_before else self.entry.record.domid
        self._started_before = True
        self._host._next_domid = domid
        super()._start()
        if self._on_ready is not None:
            self._on_ready()
            self._on_ready = None

    def _event(self, what: str, **fields: Any) -> None:
        super()._event(what, **fields)
        if what == "created" and self._paused:
            self.guest.domain.pause()
            self._paused = False  # started anew it runs at once

    def _on_emergency_output(self, data: bytes) -> None:
        super()._on_emergency_output(data)
        self._messages.add_output(data)

    def _on_end(self, domain: Domain) -> None:
        ours = self._guest is not None and domain is self._guest.domain
        super()._on_end(domain)
        if ours and self._code is None:
            self._announce(domain, last=False)

    def _finish_console(self) -> None:
        super()._finish_console()
        if self._code is not None:
            self._announce(self.guest.domain, last=True)
            self._messages.flush()
            self._server.stop()

    def _announce(self, domain: Domain, *, last: bool) -> None:
        ending = domain.ending or Ending(End.DESTROYED)
        code = SHUTDOWN_ENDS.index(ending.kind) if ending.kind in SHUTDOWN_ENDS else None
        self._server.announce({"domid": domain.domid, "code": code, "text": str(ending), "last": last})

    def _on_lost(self, error: OSError) -> None:
        if not self._outlive_console:
            super()._on_lost(error)

    def _on_escape(self) -> None:
        if not self._outlive_console:
            super()._on_escape()
            return
        self._console.let_go()
        prompt_line("left the console; the guest goes on")
