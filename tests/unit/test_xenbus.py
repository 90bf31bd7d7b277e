"""The xenbus handshake of every backend, with a device that only keeps account of what it is asked."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xenbus_rig import DOMID, FakeDriver, FakeServices, fake_services

from xenpy import log
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.frontend import FrontendNodes
from xenpy.devices.xenbus import Backend, Nodes
from xenpy.errors import FrontendError
from xenpy.pv.xenstore.control import find_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

S = XenbusState


class Device(Backend):
    """Connects to whatever says `good`, in a way that takes time to end if `slow`."""

    kind = "toy"

    def __init__(self, services: FakeServices, devid: int = 3, *, slow: bool = False) -> None:
        super().__init__(services, DOMID, devid)
        self.did: list[str] = []
        self.slow = slow
        self.pending: Callable[[], None] | None = None

    def backend_nodes(self) -> Nodes:
        return {"colour": "red"}

    def frontend_nodes(self) -> Nodes:
        return {"handle": 3}

    def offer(self) -> Nodes:
        return {"feature-x": 1}

    def connect(self) -> Nodes:
        if self.frontend.text("word", "good") != "good":
            raise FrontendError("that is not the word")
        self.did.append("connect")
        return {"size": 7}

    def disconnect(self, done: Callable[[], None]) -> None:
        assert self.pending is None
        self.did.append("disconnect")
        if self.slow:
            self.pending = done
        else:
            done()

    def finish(self) -> None:
        assert self.pending is not None
        done, self.pending = self.pending, None
        done()

    def release(self) -> None:
        self.did.append("release")


@pytest.fixture
def services() -> Iterator[FakeServices]:
    with fake_services() as services:
        yield services


@pytest.fixture
def device(services: FakeServices) -> Device:
    device = Device(services)
    device.start()
    services.pump()
    return device


@pytest.fixture
def driver(services: FakeServices, device: Device) -> FakeDriver:
    return FakeDriver(services, device)


def test_the_tree_of_a_new_device(services: FakeServices, device: Device) -> None:
    backend, frontend = f"/local/domain/0/backend/toy/{DOMID}/3", f"/local/domain/{DOMID}/device/toy/3"
    assert dict(services.store.walk(backend)) == {
        backend: "",
        f"{backend}/frontend": frontend,
        f"{backend}/frontend-id": str(DOMID),
        f"{backend}/online": "1",
        f"{backend}/colour": "red",
        f"{backend}/feature-x": "1",
        f"{backend}/state": "2",
    }
    assert dict(services.store.walk(frontend)) == {
        frontend: "",
        f"{frontend}/backend": backend,
        f"{frontend}/backend-id": "0",
        f"{frontend}/handle": "3",
        f"{frontend}/state": "1",
    }
    assert [str(perm) for perm in services.store.get_perms(backend)] == ["n0", f"r{DOMID}"]
    assert [str(perm) for perm in services.store.get_perms(f"{frontend}/state")] == [f"n{DOMID}", "r0"]
    assert not find_problems(services.store)


def test_connecting_and_closing(driver: FakeDriver, device: Device) -> None:
    driver.switch(S.Initialised)
    assert (driver.backend_state, driver.theirs("size")) == (S.Connected, "7")
    driver.switch(S.Connected)
    assert device.did == ["connect"]
    driver.switch(S.Closing)
    assert (driver.backend_state, device.did) == (S.Closing, ["connect"])  # it may have requests under way
    driver.switch(S.Closed)
    assert (driver.backend_state, device.did) == (S.Closed, ["connect", "disconnect"])


def test_a_frontend_that_goes_straight_to_connected(driver: FakeDriver) -> None:
    driver.switch(S.Connected)
    assert driver.backend_state is S.Connected


def test_connecting_again_after_closing(driver: FakeDriver, device: Device) -> None:
    for _ in range(3):
        driver.switch(S.Initialised)
        driver.switch(S.Closed)
        driver.switch(S.Initialising)
        assert driver.backend_state is S.InitWait
    assert device.did == ["connect", "disconnect"] * 3


@pytest.mark.parametrize("slow", [False, True])
def test_a_frontend_that_starts_over_without_a_word(services: FakeServices, slow: bool) -> None:
    device = Device(services, slow=slow)
    device.start()
    driver = FakeDriver(services, device)
    driver.switch(S.Connected)
    driver.switch(S.Initialising)
    if slow:
        driver.switch(S.Initialised)  # too early: what was is still in use
        assert device.did == ["connect", "disconnect"]
        device.finish()
        services.pump()
        assert device.did == ["connect", "disconnect", "connect"]
    else:
        assert driver.backend_state is S.InitWait


def test_states_that_change_faster_than_we_look(services: FakeServices, driver: FakeDriver, device: Device) -> None:
    driver.switch(S.Connected)
    for state in (S.Closing, S.Closed, S.Initialising, S.Initialised):
        driver.write({"state": state.value})
    services.pump()
    # All that can be seen is a frontend that says what it said before; a real one waits for our answers.
    assert driver.backend_state is S.Connected
    assert device.did == ["connect"]


def test_unplugging_with_a_driver(services: FakeServices, driver: FakeDriver, device: Device) -> None:
    gone = []
    device.on_gone = gone.append
    driver.switch(S.Connected)
    device.unplug()
    services.pump()
    assert (driver.backend_state, driver.theirs("online"), device.did) == (S.Closing, "0", ["connect"])
    driver.switch(S.Closing)
    driver.switch(S.Closed)
    services.until(lambda: gone == [device], "device gone")
    assert device.did == ["connect", "disconnect", "release"]
    for path in (device.params.backend_path, device.params.frontend_path, device.params.toolstack_path):
        assert not services.store.exists(path)


@pytest.mark.parametrize("state", [S.Initialising, S.Closed])
def test_unplugging_without_a_driver(services: FakeServices, driver: FakeDriver, device: Device, state: S) -> None:
    driver.switch(state)
    device.unplug()
    services.until(lambda: device.did == ["release"], "device gone")
    device.close()  # is done when the other is
    assert not services.store.exists(device.params.frontend_path)


def test_a_frontend_that_will_not_come_back_to_an_unplugged_device(
    services: FakeServices, driver: FakeDriver, device: Device
) -> None:
    driver.switch(S.Connected)
    device.unplug()
    driver.switch(S.Initialising)
    services.until(lambda: device.did == ["connect", "disconnect", "release"], "device gone")


def test_a_frontend_whose_directory_is_gone(services: FakeServices, driver: FakeDriver, device: Device) -> None:
    driver.switch(S.Connected)
    services.store.rm(device.params.frontend_path)
    services.pump()
    assert (driver.backend_state, device.did) == (S.Closed, ["connect", "disconnect"])


def test_a_breach_of_protocol_costs_the_device(
    services: FakeServices, driver: FakeDriver, device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.write({"word": "bad"})
    driver.switch(S.Initialised)
    assert driver.backend_state is S.Closing
    assert services.store.read(device.params.error_path) == "that is not the word"
    assert capsys.readouterr().err == f"xenpy: domain {DOMID}: toy 3 is closed: that is not the word\n"
    driver.switch(S.Closed)
    assert driver.backend_state is S.Closed
    driver.switch(S.Initialising)
    driver.write({"word": "good"})
    driver.switch(S.Initialised)
    assert driver.backend_state is S.Connected


def test_a_breach_while_connected(services: FakeServices, driver: FakeDriver, device: Device) -> None:
    driver.switch(S.Connected)
    threads = [threading.Thread(target=device.fail, args=(FrontendError("nonsense"),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    services.pump()
    assert (driver.backend_state, device.did) == (S.Closing, ["connect", "disconnect"])


def test_breaches_without_end_are_said_once_and_ended(
    driver: FakeDriver, device: Device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "verbose", False)
    driver.write({"word": "bad"})
    for _ in range(100):
        for state in (S.Initialised, S.Closed, S.Initialising):
            driver.switch(state)
    assert driver.backend_state is S.Closed
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_nothing_to_reconfigure_is_a_breach(driver: FakeDriver) -> None:
    driver.switch(S.Connected)
    driver.switch(S.Reconfigured)
    assert driver.backend_state is S.Closing


def test_close_waits_for_what_is_in_use(services: FakeServices) -> None:
    device = Device(services, slow=True)
    device.start()
    FakeDriver(services, device).switch(S.Connected)
    closing = threading.Thread(target=device.close)
    closing.start()
    services.until(lambda: device.pending is not None, "disconnection")
    assert "release" not in device.did
    device.finish()
    closing.join(60)
    assert device.did == ["connect", "disconnect", "release"]
    device.close()  # once more is nothing


def test_close_while_disconnecting(services: FakeServices) -> None:
    device = Device(services, slow=True)
    device.start()
    driver = FakeDriver(services, device)
    driver.switch(S.Connected)
    driver.switch(S.Closed)
    closing = threading.Thread(target=device.close)
    closing.start()
    device.finish()
    closing.join(60)
    services.pump()
    assert device.did == ["connect", "disconnect", "release"]


@settings(max_examples=60)
@given(
    steps=st.lists(
        st.one_of(
            st.sampled_from([state.value for state in S]),
            st.sampled_from(["", "x", "99", "-1", "4 ", "\udcff", "٤"]),
            st.sampled_from(["finish", "fail", "good", "bad", "gone", "back", "unplug"]),
        ),
        max_size=25,
    )
)
def test_no_sequence_of_states_confuses_us(steps: list[int | str]) -> None:
    with fake_services() as services:
        device = Device(services, slow=True)
        device.start()
        driver = FakeDriver(services, device)
        for step in steps:
            match step:
                case "finish":
                    if device.pending:
                        device.finish()
                case "fail":
                    device.fail(FrontendError("breach"))
                case "good" | "bad":
                    driver.write({"word": step})
                case "gone":
                    services.store.rm(device.params.frontend_path)
                case "back":
                    driver.write({"state": 1})
                case "unplug":
                    device.unplug()
                case _:
                    driver.write({"state": str(step)})
            services.pump()
        if device.pending:
            device.finish()
        services.pump()
        device.slow = False
        device.close()
        events = [event for event in device.did if event != "release"]
        assert events == ["connect", "disconnect"] * (len(events) // 2)
        assert device.did.count("release") == 1


@pytest.mark.parametrize("text", ["", "x", "-1", "1e3", "0x10", "9" * 400, "4294967296", "\u0661", "1\0"])
def test_numbers_that_a_frontend_cannot_mean(services: FakeServices, text: str) -> None:
    services.store.write("/f/n", text)
    with pytest.raises(FrontendError, match="not a number"):
        FrontendNodes(services.store, "/f").gref("n")


def test_nodes_of_a_frontend(services: FakeServices) -> None:
    services.store.write("/f/queue-1/n", "12")
    services.store.write("/f/yes", "1")
    nodes = FrontendNodes(services.store, "/f")
    assert nodes.below("queue-1").port("n") == 12
    assert nodes.flag("yes")
    assert not nodes.flag("absent")
    assert nodes.number("absent", 4, high=5) == 4
    with pytest.raises(FrontendError, match="there is no absent"):
        nodes.gref("absent")
    assert nodes.state() is S.Unknown
