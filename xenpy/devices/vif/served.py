"""An interface in a process of its own: its rings and its link, as the VMM has described them, in one thread with a loop."""

from __future__ import annotations

import json
import os
import socket
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from xenpy.abi.netif import NETIF_RX_SLOT_SIZE, NETIF_TX_SLOT_SIZE
from xenpy.config.vif import VifRate
from xenpy.devices.isolation.channel import Kind
from xenpy.devices.isolation.looking import RemoteLooking
from xenpy.devices.journal import Journal
from xenpy.devices.journaled import JournaledRing
from xenpy.devices.vif.connection import Connection, Groups, Queue
from xenpy.devices.vif.flow import Steering
from xenpy.devices.vif.frame import Offloads
from xenpy.devices.vif.isolated import ASKS, RX_ENTRIES, RX_JOURNAL, TX_ENTRIES
from xenpy.devices.vif.port import Port
from xenpy.devices.vif.queue import RxRing, TxRing
from xenpy.devices.vif.stream import StreamLink
from xenpy.devices.vif.tap import TapLink
from xenpy.loop import READ, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.devices.isolation.channel import Channel
    from xenpy.devices.isolation.child import Job, Line
    from xenpy.devices.vif.link import Link


def main(job: Job, control: Channel) -> None:
    """Move frames until told to stop, or until the VMM is gone."""
    _Served(job, control).run()


class _Served:
    """The interface; it is the owner of a `Port`."""

    def __init__(self, job: Job, control: Channel) -> None:
        self.lock = threading.RLock()
        self._control = control
        self._lines = job.lines
        self._loop = Loop()
        device = job.device
        fds = list(job.fds)
        if device["table"] is not None:
            looking = RemoteLooking(fds.pop(0), device["table"], job.lines[0].state[ASKS:])
            for line in job.lines:
                line.grants.looking = looking
        link: Link
        if device["kind"] == "tap":
            link = TapLink.adopt(self._loop, fds[0])
        else:
            link = self._stream = StreamLink(self._loop, lambda: self._note({"lost": True}))
            for fd in fds:
                self._stream.use(socket.socket(fileno=fd))
        rate = device["rate"]
        self._port = Port(self, self._loop, link, VifRate(*rate) if rate else None)
        self._steering = Steering(len(device["queues"]), _no_page)
        self._steering.adopt(device["steering"])
        groups = Groups({bytes.fromhex(address) for address in device["groups"]})
        groups.on_change = lambda: self._note({"groups": [address.hex() for address in groups.addresses]})
        queues = [self._queue(job, queue) for queue in device["queues"]]
        self._connection = Connection(queues, Offloads(**device["offloads"]), self._steering, groups)
        self._port.connection = self._connection
        self._follow(device["wishes"])

    def _queue(self, job: Job, queue: Mapping[str, int]) -> Queue:
        tx_line, rx_line = job.lines[queue["tx_line"]], job.lines[queue["rx_line"]]
        notify_tx, notify_rx = _notifier(tx_line), _notifier(rx_line)
        tx_page, rx_page = job.ram.page(queue["tx"]), job.ram.page(queue["rx"])
        tx_journal = Journal(tx_line.state[:RX_JOURNAL], TX_ENTRIES, NETIF_TX_SLOT_SIZE)
        rx_journal = Journal(rx_line.state[RX_JOURNAL:], RX_ENTRIES, NETIF_RX_SLOT_SIZE)
        tx = TxRing(JournaledRing([tx_page], NETIF_TX_SLOT_SIZE, tx_journal), tx_line.grants)
        rx = RxRing(JournaledRing([rx_page], NETIF_RX_SLOT_SIZE, rx_journal), rx_line.grants)
        if tx_journal.owes_event(tx_page):
            notify_tx()
        if rx_journal.owes_event(rx_page):
            notify_rx()
        return Queue(tx, rx, notify_tx, notify_rx)

    def run(self) -> None:
        """Serve."""
        for line in self._lines:
            self._loop.watch(line.wake, READ, partial(self._on_wake, line))
        self._loop.watch(self._control.fileno(), READ, self._listen)
        self._port.serve()
        for _ in self._lines:
            self._control.send(Kind.IDLE)
        self._loop.run()

    def _on_wake(self, line: Line) -> None:
        os.eventfd_read(line.wake)
        self._port.schedule()

    # -- the VMM ------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        message = self._control.receive()
        if message is None or message.kind is not Kind.TELL:
            self._loop.stop()
            return
        change = json.loads(message.payload)
        if "wishes" in change:
            self._follow(change["wishes"])
        if "steering" in change:
            self._steering.adopt(change["steering"])
        if "stream" in change:
            self._stream.use(socket.socket(fileno=message.fds[0]))

    def _follow(self, wishes: Mapping[str, Any]) -> None:
        self._port.is_open = wishes["open"]
        self._connection.filtering = wishes["filtering"]

    def _note(self, note: Mapping[str, Any]) -> None:
        self._control.send(Kind.NOTE, json.dumps(note).encode())

    # -- what the port asks for ---------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Make a call later, in the loop's thread."""
        self._loop.call_soon(callback)

    def give_up(self, error: Exception) -> None:
        """End with what the frontend has done wrong."""
        raise error

    def link_changed(self, *, up: bool) -> None:
        """Do nothing: the VMM knows what is behind the interface."""


def _notifier(line: Line) -> Callable[[], None]:
    return lambda: os.eventfd_write(line.notify, 1)


def _no_page(_gref: int, _size: int) -> bytes:
    """Return nothing: the VMM reads what the control ring names."""
    return b""
