"""The 9pfs device: its handshake and its rings, with a guest that keeps to the protocol and one that does not."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from p9_rig import ROOT, Client, P9Driver
from xenbus_rig import DOMID, FakeServices, fake_services

from xenpy.abi.p9 import HEADER, T
from xenpy.abi.xen_9pfs import IN_CONS, OUT_CONS, OUT_PROD, RING_ORDER
from xenpy.abi.xenbus import XenbusState
from xenpy.config.devices import P9Config
from xenpy.devices.p9 import create
from xenpy.devices.registry import DeviceOptions
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def services() -> Iterator[FakeServices]:
    with fake_services() as services:
        yield services


@contextmanager
def driver_of(services: FakeServices, folder: Path, *, order: int = 2, rings: int = 2) -> Iterator[P9Driver]:
    backend = create(services, DOMID, P9Config("share", str(folder)), DeviceOptions())
    driver = P9Driver(services, backend, order=order, rings=rings)
    backend.start()
    services.pump()
    try:
        yield driver
    finally:
        backend.close()


def assert_let_go(services: FakeServices, driver: P9Driver) -> None:
    services.until(lambda: not any(services.in_use(ring.gref) for ring in driver.rings), "rings given back")
    assert not services.bound


def test_handshake_and_two_rings(services: FakeServices, tmp_path: Path) -> None:
    with driver_of(services, tmp_path) as driver:
        assert driver.theirs("versions") == "1"
        assert driver.theirs("tag") == services.store.read(f"{driver.path}/tag") == "share"
        driver.connect()
        first, second = driver.rings
        client = Client(first.call)
        assert client.msize == first.half == 2 * PAGE_SIZE
        client.walk(ROOT, 1)
        client.create(1, b"f")
        client._call = second.call
        client.write(1, 0, b"one session")
        assert (tmp_path / "f").read_bytes() == b"one session"
        driver.switch(XenbusState.Closing)
        driver.switch(XenbusState.Closed)
        driver.await_state(XenbusState.Closed)
        assert_let_go(services, driver)
        driver.switch(XenbusState.Initialising)
        driver.connect()
        with pytest.raises(OSError, match="request"):  # the session went with the connection
            client.getattr(1)
    assert_let_go(services, driver)


@pytest.mark.parametrize("start", [0, 0xFFFF_FFF0])
def test_messages_around_the_end_of_the_ring(services: FakeServices, tmp_path: Path, start: int) -> None:
    with driver_of(services, tmp_path, order=1, rings=1) as driver:
        ring = driver.rings[0]
        for index in range(2):
            ring.words[index] = ring.words[OUT_CONS + index] = start
        driver.connect()
        client = Client(ring.call)
        client.walk(ROOT, 1)
        client.create(1, b"f")
        data = os.urandom(40_000)
        for place in range(0, len(data), 3001):
            client.write(1, place, data[place : place + 3001])
        assert (tmp_path / "f").read_bytes() == data
        assert b"".join(client.read(1, place, 3500) for place in range(0, len(data), 3500)) == data


def test_replies_wait_for_room(services: FakeServices, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(os.urandom(3000))
    with driver_of(services, tmp_path, order=1, rings=1) as driver:
        driver.connect()
        ring = driver.rings[0]
        client = Client(ring.call)
        client.reach(1, b"f")
        client.open(1)
        request = HEADER.pack(23, T.READ, 5) + (1).to_bytes(4, "little") + bytes(8) + (3000).to_bytes(4, "little")
        for _ in range(4):
            ring.send(request)
        services.until(lambda: ring.words[OUT_CONS] + 2 * len(request) == ring.words[OUT_PROD], "two requests taken")
        assert ring.waiting == 3011
        for _ in range(4):
            assert ring.receive()[11:] == (tmp_path / "f").read_bytes()


def test_a_request_that_comes_in_pieces(services: FakeServices, tmp_path: Path) -> None:
    with driver_of(services, tmp_path, rings=1) as driver:
        driver.connect()
        ring = driver.rings[0]
        message = HEADER.pack(21, T.VERSION, 0xFFFF) + (8192).to_bytes(4, "little") + b"\x08\x009P2000.L"
        ring.place(0, message)
        for size in range(1, len(message) + 1):
            assert not ring.waiting
            ring.words[OUT_PROD] = size
            services.send(ring.port)
        assert ring.receive()[4] == T.VERSION + 1


def wild_producer(driver: P9Driver) -> None:
    driver.rings[0].words[OUT_PROD] = driver.rings[0].half + 1


def size_of_nothing(driver: P9Driver) -> None:
    driver.rings[0].place(0, bytes(7))
    driver.rings[0].words[OUT_PROD] = 7


def size_beyond_the_ring(driver: P9Driver) -> None:
    driver.rings[0].place(0, HEADER.pack(driver.rings[0].half + 1, 0, 0))
    driver.rings[0].words[OUT_PROD] = 7


def wild_consumer(driver: P9Driver) -> None:
    driver.rings[0].words[IN_CONS] = 1
    driver.rings[0].place(0, HEADER.pack(9, T.FLUSH, 0) + bytes(2))
    driver.rings[0].words[OUT_PROD] = 9


@pytest.mark.parametrize("breach", [wild_producer, size_of_nothing, size_beyond_the_ring, wild_consumer])
def test_breaches_cost_the_device(services: FakeServices, tmp_path: Path, breach: Callable[[P9Driver], None]) -> None:
    with driver_of(services, tmp_path) as driver:
        driver.connect()
        breach(driver)
        services.send(driver.rings[0].port)
        driver.await_state(XenbusState.Closing)
        assert_let_go(services, driver)
        driver.switch(XenbusState.Closed)
        for ring in driver.rings:
            for index in (0, 1, OUT_CONS, OUT_PROD):
                ring.words[index] = 0
        driver.switch(XenbusState.Initialising)
        driver.connect()
        Client(driver.rings[1].call)


def no_such_order(driver: P9Driver) -> None:
    driver.rings[1].words[RING_ORDER] = 9


def too_many_rings(driver: P9Driver) -> None:
    driver.rings *= 3


def no_such_gref(driver: P9Driver) -> None:
    driver.rings[1].gref = 5000


@pytest.mark.parametrize("breach", [no_such_order, too_many_rings, no_such_gref])
def test_rings_that_cannot_be_had(services: FakeServices, tmp_path: Path, breach: Callable[[P9Driver], None]) -> None:
    with driver_of(services, tmp_path) as driver:
        first = driver.rings[0].gref
        breach(driver)
        driver.announce()
        driver.await_state(XenbusState.Closing)
        assert not services.in_use(first)
        assert not services.bound
