"""Keeps a device's process running: answers it, passes its events on, and starts the next one when it dies."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

from xenpy import log
from xenpy.devices.isolation.channel import Channel, ChannelError, Kind
from xenpy.devices.isolation.patience import Patience
from xenpy.devices.isolation.process import TEMPLATE
from xenpy.errors import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xenpy.devices.isolation.grants import GrantServer, IsolationServices
    from xenpy.devices.isolation.process import Process
    from xenpy.devices.journal import Journal


_STOP_S: Final = 30.0
"""How long a process may take to end; whoever waits for that holds up a guest, and what it leaves undone is in the journals."""


class Line:
    """One queue of a device, on our side; made under the host's lock. Its port is the one by which the guest knows it."""

    def __init__(self, services: IsolationServices, domid: int, port: int, grants: GrantServer, state: int) -> None:
        self.grants = grants
        self.state = state
        """A memfd that each process gets in turn."""
        self.rings: list[tuple[Journal, Sequence[memoryview]]] = []
        """The journals in `state`, each with the pages of its ring."""
        self.channel: Channel | None = None
        self._services = services
        with ExitStack() as undo:
            # Neither blocks: what a process does to the counters must not hold us up, least of all under the lock.
            self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self.wake)
            self.notify = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            undo.callback(os.close, self.notify)
            self._port = services.bind(domid, port, self._on_event)
            undo.callback(services.unbind, self._port)
            services.wire(self._port, self.wake, self.notify)
            undo.callback(grants.close)
            self._resources = undo.pop_all()

    def _on_event(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(self.wake, 1)

    def open(self) -> Channel:
        """Make a connection for a new process and return its end."""
        self.channel, theirs = Channel.pair()
        return theirs

    def pass_event(self) -> None:
        """Send the guest the event that the process asked for."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.notify)
            self._services.notify(self._port)

    def answer(self) -> bool:
        """Answer the process; tell whether there was anything to answer. Raises ChannelError."""
        assert self.channel is not None
        message = self.channel.receive()
        if message is None:
            return False
        message.close()
        with self._services.lock:
            kind, payload = self.grants.answer(message)
        try:
            self.channel.send(kind, payload, wait=False)
        except BlockingIOError:
            raise ChannelError("it asks and does not listen") from None
        except OSError:  # it has died
            pass
        return True

    def clear(self) -> None:
        """Take back what a process had that is no more."""
        if self.channel is not None:
            self.channel.close()
        with self._services.lock:
            self.grants.close()

    def settle(self) -> None:
        """Leave the rings to whoever comes next and knows no journal; when no process serves them any more.

        That one is not told what the guest is owed, and rings do not ask again for an event that was due before.
        """
        for journal, pages in self.rings:
            journal.restore(pages)
            if journal.owes_event(pages[0]):
                self._services.notify(self._port)

    def close(self) -> None:
        """Free everything; under the host's lock."""
        self._resources.close()


class Keeper:
    """Has the queues of one device served by a process, from `start` until `stop`.

    `service` is what serves. `device` returns what each process is told, and adds descriptors that go along and are closed then; it must
    not want the host's lock. `progress` tells by any change that something was done. `fail` hears of a frontend that broke the protocol, or
    that we give up, `note` what a process has to say. The device holds the template meanwhile.
    """

    def __init__(
        self,
        services: IsolationServices,
        domid: int,
        name: str,
        lines: Sequence[Line],
        *,
        service: str,
        device: Callable[[list[int]], Mapping[str, Any]],
        progress: Callable[[], object],
        fail: Callable[[Exception], None],
        note: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._services = services
        self._domid = domid
        self._name = name
        self._lines = lines
        self._service = service
        self._device = device
        self._note = note
        self._telling = threading.Lock()
        self._control: Channel | None = None  # while there is a process that knows what it serves
        self._progress = progress
        self._fail = fail
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stop = threading.Event()
        self._on_end: Callable[[], None] | None = None
        self._busy = 0  # queues that the process has not yet got to the end of
        self.process: Process | None = None
        """The process that serves, if one does at the moment."""
        self.deaths = 0

    def start(self) -> None:
        """Begin to serve."""
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def stop(self, on_end: Callable[[], None]) -> None:
        """Have the process end after what is under way, or else be killed; when nothing is mapped, call `on_end`, under the lock."""
        self._on_end = on_end
        self._stop.set()
        os.eventfd_write(self._wake, 1)

    def _run(self) -> None:
        try:
            self._keep()
        except Exception as error:
            self._fail(error)
            self._stop.wait()
        with self._services.lock:
            os.close(self._wake)
            for line in self._lines:
                line.settle()
            if self._on_end is not None:
                self._on_end()

    def _keep(self) -> None:
        """Have one process after the other serve, until one ends because we say so. Raises FrontendError."""
        patience = Patience("its process")
        while not self._stop.is_set():
            before = self._progress()
            self._busy = len(self._lines)
            patience.started()
            self._serve()
            if self._stop.is_set():
                return
            self.deaths += 1
            report = log.note if self.deaths == 1 else log.debug
            report(f"domain {self._domid}: {self._name}: its process died; another one takes over")
            # With nothing left to do, it did not die of what it was given.
            self._stop.wait(patience.died(useful=not self._busy or self._progress() != before))

    def _serve(self) -> None:
        """Have a process serve, and return when it is gone. Raises FrontendError."""
        control, theirs = Channel.pair()
        try:
            process = self.process = TEMPLATE.fork(theirs)
        except BaseException:
            control.close()
            raise
        finally:
            theirs.close()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send_setup(control)
                self._attend(control)
        finally:
            with self._telling:
                self._control = None
            # Until the last of its threads has left the kernel, a write of its own may still be on the way to the disk.
            process.kill()
            process.wait()
            self.process = None
            control.close()
            for line in self._lines:
                line.pass_event()  # its last, which its end may have overtaken
                line.clear()

    def _send_setup(self, control: Channel) -> None:
        theirs = [line.open() for line in self._lines]
        own: list[int] = []
        try:
            fds = [self._services.domain(self._domid).memory.ram_fd]
            for line, channel in zip(self._lines, theirs, strict=True):
                fds += [channel.fileno(), line.wake, line.notify, line.state]
            with self._telling:
                device = self._device(own)
                setup = {"service": self._service, "lines": len(self._lines), "device": device}
                control.send(Kind.SETUP, json.dumps(setup).encode(), [*fds, *own])
                self._control = control
        finally:
            for channel in theirs:
                channel.close()
            for fd in own:
                os.close(fd)

    def tell(self, change: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Tell the process, if there is one that would not hear it from `device`, what has changed. From any thread."""
        with self._telling:
            if self._control is not None:
                try:
                    self._control.send(Kind.TELL, json.dumps(change).encode(), fds, wait=False)
                except BlockingIOError:  # nobody shall wait for a process that does not listen
                    if self.process is not None:
                        self.process.kill()
                except OSError:  # it has died; the next one is told everything
                    return

    def _attend(self, control: Channel) -> None:
        """Do what a process asks for until it is gone, or has been told to go for too long. Raises FrontendError, ChannelError."""
        poll = select.poll()
        actions: dict[int, Callable[[], bool | None]] = {}
        for line in self._lines:
            assert line.channel is not None
            actions |= {line.notify: line.pass_event, line.channel.fileno(): line.answer}
        for fd in (self._wake, control.fileno(), *actions):
            poll.register(fd, select.POLLIN)
        left_s: float | None = None
        deadline = 0.0
        while left_s is None or left_s > 0:
            for fd, _ in poll.poll(left_s and left_s * 1000):
                if fd == control.fileno():
                    if not self._listen(control):
                        return
                elif fd == self._wake:
                    os.eventfd_read(self._wake)
                    deadline = time.monotonic() + _STOP_S
                    with suppress(BlockingIOError):  # it does not listen
                        control.send(Kind.STOP, wait=False)
                elif actions[fd]() is False:
                    poll.unregister(fd)
            if deadline:
                left_s = deadline - time.monotonic()

    def _listen(self, control: Channel) -> bool:
        """Hear what the process says of itself; return whether it is still there. Raises FrontendError, ChannelError."""
        message = control.receive()
        if message is None:
            return False
        message.close()
        match message.kind:
            case Kind.IDLE:
                self._busy -= 1
            case Kind.NOTE if self._note is not None:
                self._note(json.loads(message.payload))
            case Kind.FAILED:
                raise FrontendError(message.payload.decode("utf-8", "replace"))
            case kind:
                raise ChannelError(kind.name)
        return True
