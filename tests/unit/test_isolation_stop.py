"""How a device's process ends when it is told to, or does not listen: the guest is owed nothing then, and nobody waits for long."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from isolation_rig import Services, isolated, keeper, kill, pid
from vbd_rig import disk_of
from xenbus_rig import DOMID, PATIENCE

from xenpy.abi.blkif import BLKIF_OP, BLKIF_RSP
from xenpy.abi.ring import SRING_RSP_EVENT, SRING_RSP_PROD
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.isolation import keeper as keeping
from xenpy.devices.isolation.channel import Channel, ChannelError, Kind
from xenpy.devices.isolation.grants import GrantServer
from xenpy.devices.isolation.memory import READ_ONLY
from xenpy.devices.isolation.process import TEMPLATE, Process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vbd_rig import BlkFrontend, Queue

SIZE = 64 << 10


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[BlkFrontend]:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    TEMPLATE.hold()
    with isolated(disk_of(image)) as frontend:
        yield frontend
    TEMPLATE.drop()


def in_use(frontend: BlkFrontend) -> Queue:
    """Connect the frontend and return its queue, on which it has got one event."""
    queue = frontend.connect()
    assert queue.read(0) == bytes(4096)
    frontend.services.until(lambda: frontend.services.events[queue.port] == 1, "event")
    return queue


def test_the_last_event_of_a_process_is_not_lost(frontend: BlkFrontend, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = in_use(frontend)
    (line,) = keeper(frontend)._lines
    ended = threading.Event()
    connection = frontend.backend.connection
    assert connection is not None

    def last(_theirs: Channel) -> Process:
        """Have a process notify and end before anybody looks, while it is told to stop."""
        with frontend.services.lock:
            connection.stop(ended.set)
        os.eventfd_write(line.notify, 1)
        return Process(0, None)

    monkeypatch.setattr(keeping.TEMPLATE, "fork", last)
    os.kill(pid(frontend), signal.SIGKILL)
    frontend.services.until(ended.is_set, "the end")
    frontend.backend.connection = None
    assert frontend.services.events[queue.port] == 2


def test_who_does_not_stop_is_killed(frontend: BlkFrontend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_STOP_S", 0.05)
    queue = in_use(frontend)
    os.kill(pid(frontend), signal.SIGSTOP)
    asked = queue.transfer(BLKIF_OP.READ, 0, [queue.buffer()])
    queue.kick()
    frontend.backend.park()
    frontend.backend.unpark()
    assert queue.wait(asked) == [BLKIF_RSP.OKAY]


def test_a_template_that_does_not_answer_is_replaced(frontend: BlkFrontend, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = in_use(frontend)
    stopped = TEMPLATE.pid
    assert stopped is not None
    waited: list[float] = []
    wait = Channel.wait

    def impatient(channel: Channel, seconds: float) -> bool:
        waited.append(seconds)
        return wait(channel, seconds if len(waited) > 1 else 0)

    monkeypatch.setattr(Channel, "wait", impatient)
    os.kill(stopped, signal.SIGSTOP)
    kill(frontend)
    assert queue.read(0) == bytes(4096)
    assert TEMPLATE.pid != stopped


def test_a_template_that_never_answers_costs_the_device(frontend: BlkFrontend, monkeypatch: pytest.MonkeyPatch) -> None:
    in_use(frontend)
    monkeypatch.setattr(Channel, "wait", lambda _channel, _seconds: False)
    kill(frontend)
    frontend.await_state(XenbusState.Closing)
    assert "is not answering" in frontend.services.store.read(frontend.backend.params.error_path)


def test_nobody_else_waits_for_a_template_that_does_not_answer(
    frontend: BlkFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use(frontend)
    waiting, go_on, held = (threading.Event() for _ in range(3))

    def wait(_channel: Channel, _seconds: float) -> bool:
        waiting.set()
        return go_on.wait(PATIENCE)

    def hold() -> None:
        TEMPLATE.hold()
        TEMPLATE.drop()
        held.set()

    monkeypatch.setattr(Channel, "wait", wait)
    kill(frontend)
    assert waiting.wait(PATIENCE)
    threading.Thread(target=hold, daemon=True).start()
    try:
        assert held.wait(PATIENCE)
    finally:
        go_on.set()


def test_who_asks_and_does_not_listen_holds_nobody_up() -> None:
    services = Services()
    with services.lock:
        line = keeping.Line(services, DOMID, services.port(), GrantServer(services, DOMID, 1), -1)
    theirs = line.open()

    def ask_on() -> None:
        while True:
            theirs.send(Kind.MAP, READ_ONLY)
            line.answer()

    with pytest.raises(ChannelError, match="does not listen"):
        ask_on()
    theirs.close()
    line.clear()
    with services.lock:
        line.close()
    services.close()


def test_who_is_killed_when_told_to_stop_leaves_no_event_owed(frontend: BlkFrontend) -> None:
    queue = in_use(frontend)
    served_by = pid(frontend)
    os.kill(served_by, signal.SIGSTOP)
    queue.ring.words[SRING_RSP_EVENT] = queue.ring.words[SRING_RSP_PROD]  # the guest has not heard of its last answer
    frontend.switch(XenbusState.Closed)
    os.kill(served_by, signal.SIGKILL)
    frontend.await_state(XenbusState.Closed)
    assert frontend.services.events[queue.port] == 2
