"""The public Guest: a domain from its configuration to its end, as a test drives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, TypeVar

from xenpy.api import watchers
from xenpy.api.clock import Clock
from xenpy.api.console import Console
from xenpy.api.events import EventChannel
from xenpy.api.host import Host
from xenpy.api.processors import Processors, Registers
from xenpy.api.progress import DEFAULT_TIMEOUT_S, Progress
from xenpy.api.settings import load_with
from xenpy.api.shell import Shell
from xenpy.api.store import GuestStore
from xenpy.api.transcript import Transcript
from xenpy.devices.registry import DeviceOptions
from xenpy.domain.ending import End, Ending
from xenpy.errors import ConfigError
from xenpy.pv.xenstore.paths import domain_path

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from subprocess import CompletedProcess

    from xenpy.api.settings import Setting
    from xenpy.api.snapshot import Beginning, Snapshot
    from xenpy.config import DomainConfig
    from xenpy.devices.registry import Devices
    from xenpy.devices.vfb.image import Image
    from xenpy.devices.vkbd.backend import Vkbd
    from xenpy.domain.domain import Domain
    from xenpy.host import Guest as Core

T = TypeVar("T")

_POLL_S = 0.05
_CLOSE_S = 10.0
_REPORT_LINES, _REPORT_BYTES = 200, 64 << 10


class Guest:
    """A guest. `with` starts it, and at the end destroys it whatever happened; so does the end of its host.

    With `snapshot` its disks' images are left alone: what it writes to them is dropped in the end.

    `timeout` is for every wait that names none, in seconds, as all times here. What waits raises Timeout, and GuestEnded if
    the guest ends first.
    """

    def __init__(
        self,
        config: DomainConfig,
        *,
        host: Host | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        paused: bool = False,
        snapshot: bool = False,
        beginning: Beginning | None = None,
    ) -> None:
        self._own_host = host is None
        self.host = Host() if host is None else host
        self.config = config
        self._paused = paused
        self._options = DeviceOptions(ephemeral_disks=snapshot)
        self._started = False
        self.closed = False
        self._progress = Progress(config.name, self._last_words, timeout_s=timeout)
        self.console = Console(self._progress, self._write)
        """The PV console, hvc0 in Linux."""
        self.emergency = Transcript(self._progress)
        """What the guest writes to Xen's own console: by the console_io hypercall and I/O port 0xe9."""
        self._shell = Shell(self.console)
        self._beginning = beginning
        if beginning is not None:
            self.console.load(beginning.console)
            self.emergency.load(beginning.emergency)
            self._shell.ready = beginning.shell_ready
        try:
            self._core: Core = self.host.call(self._create)
        except BaseException:
            if self._own_host:
                self.host.close()
            raise
        self.domain: Domain = self._core.domain
        """The domain itself, for those who know the hypervisor; its state belongs to `host.lock`."""
        self.xenstore = GuestStore(self.host.core.store, domain_path(self.domid), self._progress)
        self._processors = Processors(self.domain, self._progress)
        self.clock = Clock(self.domain, self._processors)
        """The guest's time: to stop it, to have it pass faster or at once, to have it leap."""
        for hear in watchers.on_created:
            hear(self)

    @classmethod
    def from_cfg(
        cls, path: str | os.PathLike[str], *, host: Host | None = None, timeout: float = DEFAULT_TIMEOUT_S,
        paused: bool = False, snapshot: bool = False, **settings: Setting,
    ) -> Self:  # fmt: skip
        """Make a guest of an xl.cfg file; `settings` stand for the file's own, such as memory=128.

        On `host`, or on one of its own. With `paused` it does not run before `unpause`; with `snapshot` its disks' images stay as they
        are. Raises ConfigError, HostError.
        """
        return cls(load_with(path, settings), host=host, timeout=timeout, paused=paused, snapshot=snapshot)

    @classmethod
    def from_kernel(
        cls, kernel: str | os.PathLike[str], *, host: Host | None = None, timeout: float = DEFAULT_TIMEOUT_S,
        paused: bool = False, snapshot: bool = False, **settings: Setting,
    ) -> Self:  # fmt: skip
        """Make a guest of a kernel image and `settings`, which are xl.cfg keys; type="pvh" and name="guest" unless they say so.

        Otherwise as `from_cfg`.
        """
        defaults: dict[str, Setting] = {"name": "guest", "type": "pvh"}
        every = {**defaults, "kernel": kernel, **settings}
        return cls(load_with("/dev/null", every), host=host, timeout=timeout, paused=paused, snapshot=snapshot)

    def _create(self) -> Core:
        """Build the domain. In the loop's thread, where a caller that was interrupted meanwhile leaves it to the host."""
        if self._beginning is None:
            core = self.host.core.create(self.config, self.console.feed, self._options)
        else:
            begin, self._beginning = self._beginning, None
            core = self.host.core.restore(self.config, self.console.feed, begin.saved, wall=begin.wall)
        core.domain.on_emergency_output = self._take_emergency_output
        self._core, self.domain = core, core.domain
        self.host.guests.append(self)
        return core

    def _take_emergency_output(self, data: bytes) -> None:
        self.emergency.feed(data)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<Guest {self.name}, domid {self.domid}, {self.ending or ('paused' if self.domain.paused else 'running')}>"
        )

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def core(self) -> Core:
        """Return the guest as the hypervisor has it, for those who know that."""
        return self._core

    @property
    def name(self) -> str:
        """Return the domain's name."""
        return self.config.name

    @property
    def domid(self) -> int:
        """Return the domain's number on its host."""
        return self.domain.domid

    @property
    def ending(self) -> Ending | None:
        """Return how the guest ended, or None while it lives."""
        return self._progress.ending

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Let the guest run, unless it does."""
        if self._started:
            return
        self._started = True
        if self._paused:
            self.domain.pause()
        self.host.call(self._core.start)

    def pause(self) -> None:
        """Stop all vCPUs; none executes guest code any more when this returns. Time goes on."""
        self._check_alive("and cannot be paused")
        self._processors.pause()

    def unpause(self) -> None:
        """Let the vCPUs run again."""
        if self.ending is None:
            self._processors.unpause()

    def snapshot(self) -> Snapshot:
        """Return the guest as it is now, to be forked into any number of guests. It goes on itself, or stays paused if it was.

        From then on it is one more fork: what it writes to its disks goes to temporary files. Raises HostError for what cannot be saved.
        """
        from xenpy.api.snapshot import Snapshot
        from xenpy.saved import save_guest

        self._check_alive("and cannot be saved")
        with self._processors.held():
            self._check_alive("and cannot be saved")
            saved = save_guest(self._core)
            return Snapshot(
                self.config, saved, self.console.written(), self.emergency.written(), shell_ready=self._shell.ready,
                timeout=self._progress.timeout_s,
            )  # fmt: skip

    def shutdown(self, how: str = "poweroff", timeout: float | None = None) -> Ending:
        """Ask the guest's kernel to end, wait until it has, and return how; `how` is poweroff, reboot, halt or suspend.

        Ref: xenstore-paths, control/shutdown
        """
        self._check_alive(f"and cannot be asked to {how}")
        self._core.request_shutdown(how)
        return self.wait(timeout)

    def wait(self, timeout: float | None = None) -> Ending:
        """Wait until the guest ends; return how. All its output is there then."""
        return self._progress.wait(lambda: self.ending, timeout, "end")

    def wait_for(self, condition: Callable[[], T | None], timeout: float | None = None, what: str = "change") -> T:
        """Return what `condition` returns as soon as it is true; called whenever something happens, and 20 times a second.

        `what` completes the sentence "no ... within 5 s".
        """
        return self._progress.wait(lambda: condition() or None, timeout, what, poll_s=_POLL_S)

    def destroy(self) -> None:
        """End the guest at once. What it wrote, its memory and registers are there until `close`."""
        self.domain.end(Ending(End.DESTROYED))
        self.domain.wait_closed(_CLOSE_S)
        self.wait(_CLOSE_S)

    def close(self) -> None:
        """End the guest if it lives and free all it holds but its output; idempotent."""
        self.release()
        if self._own_host:
            self.host.close()

    def release(self) -> None:
        """Do as `close` does, but leave the host alone, which may be the one that closes."""
        if not self.closed:
            if self._started:
                self.destroy()
            self.host.call(self._free)

    def _free(self) -> None:
        """Free the domain. In the loop's thread."""
        if self.closed:
            return
        self.closed = True
        self.host.guests.remove(self)
        self._core.close()
        if self.ending is None:
            self._progress.end(self.domain.ending or Ending(End.DESTROYED))

    def on_end(self) -> None:
        """Take what is left of the output and tell everybody. In the loop's thread, when the domain has ended."""
        self.domain.wait_closed(_CLOSE_S)
        with self.host.lock:
            self.console.feed(self._core.console.drain())
        assert self.domain.ending is not None
        self._progress.end(self.domain.ending)

    # -- talking to it ------------------------------------------------------------------------------------------------

    def run(self, command: str, timeout: float | None = None) -> CompletedProcess[str]:
        """Run a command in the shell on the console; return its `returncode` and `stdout`, stderr included.

        It waits for a shell to be there, which a guest that asks for a login must be given first.
        """
        return self._shell.run(command, self._progress.timeout_s if timeout is None else timeout)

    def bind_event(self, port: int | None = None) -> EventChannel:
        """Return an event channel to the guest: to a port that it offers to dom0, or to a new one, to be told to it."""
        self._check_alive("and has no event channels any more")
        return EventChannel(self.host.core, self.domain, self._progress, port)

    def set_memory(self, mib: int) -> None:
        """Ask the guest's balloon driver for a size, in MiB."""
        self._check_alive("and has no memory any more")
        self._core.set_memory_target(mib)

    def set_vcpus(self, count: int) -> None:
        """Ask the guest's kernel to use its first `count` vCPUs, of at most maxvcpus=. Raises ConfigError."""
        self._check_alive("and has no vCPUs any more")
        self._core.set_vcpus(count)

    def sysrq(self, key: str) -> None:
        """Give the guest's kernel a magic SysRq key, one letter or digit. Raises ConfigError."""
        self._check_alive("and hears no SysRq")
        self._core.send_sysrq(key)

    def screenshot(self) -> Image:
        """Return what the guest shows on its framebuffer; its `png` is a file. Raises ConfigError, HostError."""
        self._check_alive("and shows nothing any more")
        return self._core.screenshot()

    @property
    def vnc(self) -> tuple[str, int]:
        """Return the address and TCP port where VNC viewers of the framebuffer connect. Raises ConfigError if it has none."""
        self._check_alive("and shows nothing any more")
        return self._core.vnc_address()

    @property
    def keyboard(self) -> Vkbd:
        """Return the keyboard and pointer that came with the framebuffer. Raises ConfigError."""
        return self._core.keyboard()

    @property
    def devices(self) -> Devices:
        """Return the guest's split devices: to find one, to plug one in, to take one away."""
        return self._core.devices

    def _write(self, data: bytes) -> int:
        """Give the console input; return how much it took."""
        with self.host.lock:
            taken = data[: max(0, self._core.console.room)] if not self.closed else data
            if taken and not self.closed:
                self._core.console.send_input(taken)
        return len(taken)

    # -- looking into it ----------------------------------------------------------------------------------------------

    def registers(self, vcpu: int = 0) -> Registers:
        """Return a vCPU's registers, stopping the guest for a moment if it runs. After its end, the last ones."""
        self._check_open()
        return self._processors.registers(vcpu)

    def read_memory(self, size: int, *, gpa: int | None = None, gva: int | None = None, vcpu: int = 0) -> bytes:
        """Return `size` bytes at a guest-physical address, or at a virtual one of a vCPU.

        Raises XenError(EFAULT) where there is no memory.
        """
        self._check_open()
        return b"".join(self._access(gpa, gva, size, vcpu, self.domain.memory.read))

    def write_memory(self, data: bytes, *, gpa: int | None = None, gva: int | None = None, vcpu: int = 0) -> None:
        """Write at a guest-physical address, or at a virtual one of a vCPU. Raises XenError(EFAULT), having written all before."""
        self._check_open()
        rest = memoryview(data)

        def write(at: int, size: int) -> None:
            nonlocal rest
            self.domain.memory.write(at, rest[:size])
            rest = rest[size:]

        self._access(gpa, gva, len(data), vcpu, write)

    def _access(
        self, gpa: int | None, gva: int | None, size: int, vcpu: int, action: Callable[[int, int], T]
    ) -> list[T]:
        if (gpa is None) == (gva is None):
            raise ConfigError("memory is read and written at either gpa= or gva=")
        if gva is None:
            with self.host.lock:
                self._check_open()  # whoever closes it may have been quicker
                return [action(gpa or 0, size)]
        with self._processors.held(), self.host.lock:
            self._check_open()
            return [action(*piece) for piece in self._processors.pages(gva, size, vcpu)]

    def _check_open(self) -> None:
        if self.closed:
            raise self._progress.ended("and is closed")

    def _check_alive(self, remark: str) -> None:
        if self.ending is not None:
            raise self._progress.ended(remark)

    def gdb(self, port: int = 0) -> str:
        """Listen for GDB at a TCP port of this machine, 0 for a free one; return what its `target remote` takes.

        A guest not started yet waits for the debugger. Raises HostError if the port cannot be had.
        """
        self._check_alive("and cannot be debugged")
        return self.host.call(lambda: self._core.gdb(port))

    def report(self) -> list[tuple[str, str]]:
        """Return what to show of the guest when a test failed: titles and texts."""
        state = self.ending or ("paused" if self.domain.paused else "running")
        sections = [(f"console of {self.name} ({state})", self.console), ("its emergency console", self.emergency)]
        return [
            (title, text) for title, transcript in sections if (text := transcript.tail(_REPORT_LINES, _REPORT_BYTES))
        ]

    def _last_words(self) -> str:
        """Return the end of the output for an error message."""
        texts = [
            f"\n--- end of {what} ---\n{tail}"
            for what, transcript in (("console", self.console), ("emergency console", self.emergency))
            if (tail := transcript.tail())
        ]
        return "".join(texts) or "; it has written nothing"
