"""Interfaces in a process of their own: what a process has and has not, what outlives it, and what a driver's misdeeds cost."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_vif_hostile import BAD_GREF, MISDEEDS, assert_closed
from vif_isolation_rig import StreamWire, TapWire, isolated_front, keeper, kill, pid
from vif_rig import BROADCAST, MAC, OURS, THEIRS, VifServices, ethernet
from xenbus_rig import PATIENCE, FrontRing

from xenpy.abi.netif import (
    NETIF_CTRL_REQUEST,
    NETIF_CTRL_SLOT_SIZE,
    NETIF_EXTRA,
    NETIF_RX_REQUEST,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    CtrlType,
    HashType,
)
from xenpy.abi.ring import SRING_REQ_PROD
from xenpy.abi.xenbus import XenbusState
from xenpy.config.vif import VifConfig, VifRate
from xenpy.devices.isolation.process import TEMPLATE
from xenpy.devices.vif.isolated import Isolated
from xenpy.devices.vif.opening import open_station
from xenpy.loop import Loop
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vif_rig import FrontQueue, NetFront, Received

    from xenpy.devices.vif.passt import Passt

GROUPS = [bytes([1, 0, 0x5E, 0, 0, number]) for number in (1, 2)]
IPV4_TCP = bytes.fromhex(
    "4500 0028 0000 0000 4006 0000 0a000001 0a000002 0001 0002 00000064 00000000 5010 ffff 0000 0000"
)


@pytest.fixture(scope="module", autouse=True)
def _template() -> Iterator[None]:
    TEMPLATE.hold()
    yield
    TEMPLATE.drop()


@pytest.fixture
def wire() -> StreamWire:
    return StreamWire()


def comes_out(front: NetFront, wire: StreamWire | TapWire, data: bytes, queue: int = 0) -> None:
    """Send a frame and wait until it is at the far end."""
    front.queues[queue].send(data)
    got: list[bytes] = []

    def came() -> bool:
        got.extend(wire.receive())
        return data in got

    front.services.until(came, "a frame at the far end")


def comes_in(front: NetFront, wire: StreamWire | TapWire, data: bytes, queue: int = 0) -> list[Received]:
    """Send a frame from the far end until the guest gets it; return what it got on the way, that one last."""
    got: list[Received] = []

    def came() -> bool:
        wire.send(data)
        time.sleep(0.002)
        new = front.queues[queue].receive()
        front.queues[queue].post(sum(-(-len(received.data) // PAGE_SIZE) for received in new))
        got.extend(new)
        return any(received.data == data for received in got)

    front.services.until(came, "a frame in the guest")
    return got


@pytest.mark.parametrize("kind", [StreamWire, TapWire])
@pytest.mark.parametrize(("queues", "split"), [(1, True), (1, False), (4, True)])
def test_frames_pass_before_and_after_a_death(kind: type[StreamWire | TapWire], queues: int, split: bool) -> None:
    wire = kind()
    with isolated_front(wire, queues=queues, split=split) as front:
        for queue in front.queues:
            queue.post(40)
        for life in range(3):
            large = ethernet(bytes([life]) * 9000)
            comes_out(front, wire, large, queues - 1)
            comes_in(front, wire, ethernet(bytes([life]) * 5000, dest=OURS, source=THEIRS))
            kill(front)
        assert keeper(front).deaths == 3


def test_its_process_has_nothing_but_what_it_needs() -> None:
    with isolated_front(TapWire()) as front:
        process = Path("/proc") / str(pid(front))
        front.services.until(lambda: keeper(front)._busy == 0, "a process at work")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        if os.geteuid() == 0:
            assert status["CapEff"] == "0" * 16
        found = {fd.name: str(fd.readlink()) for fd in (process / "fd").iterdir() if int(fd.name) > 2}
        files = list(found.values())
        known = ("socket:", "anon_inode:[event", "/memfd:xenpy-ram", "/memfd:xenpy-journal", "/memfd:xenpy-frames")
        assert [file for file in files if not file.startswith(known)] == []
        for number in (number for number, file in found.items() if "xenpy-frames" in file):
            flags = (process / "fdinfo" / number).read_text().split("flags:\t")[1].split()[0]
            assert int(flags, 8) & os.O_ACCMODE == os.O_RDONLY
        assert sum(file.startswith("socket:") for file in files) == 4  # control, grants of each line, the wire
        assert (process / "environ").read_bytes() == b""


def test_what_the_guest_has_asked_for_outlives_a_process(wire: StreamWire) -> None:
    with isolated_front(wire, queues=2) as front:
        services, queue = front.services, front.first
        for each in front.queues:
            each.post(60)
        queue.send(bytes(14), extras=[NETIF_EXTRA.pack(XEN_NETIF_EXTRA_TYPE_MCAST_ADD, 0, GROUPS[0])])
        comes_out(front, wire, ethernet(b"behind the wish"))
        front.write({"request-multicast-control": 1})
        services.pump()
        for _ in range(2):
            kill(front)
            got = [
                received.data
                for data in (ethernet(b"unwanted", dest=GROUPS[1]), ethernet(b"wanted", dest=GROUPS[0]))
                for received in (
                    comes_in(front, wire, data) if data[:6] != GROUPS[1] else [wire.send(data)] and queue.receive()
                )
            ]
            assert ethernet(b"wanted", dest=GROUPS[0]) in got
            assert ethernet(b"unwanted", dest=GROUPS[1]) not in got


def test_steering_by_the_control_ring_outlives_a_process(wire: StreamWire) -> None:
    services_page = {}

    def before(front: NetFront) -> None:
        gfn, page = front.services.page()
        services_page["ring"] = FrontRing([page], NETIF_CTRL_SLOT_SIZE)
        services_page["port"] = front.services.port()
        front.write({"ctrl-ring-ref": front.services.grant(gfn), "event-channel-ctrl": services_page["port"]})

    with isolated_front(wire, before=before, queues=2) as front:
        services, ring = front.services, services_page["ring"]
        for each in front.queues:
            each.post(100)
        gfn, data = services.page()
        gref = services.grant(gfn, readonly=True)
        data[:4] = (1).to_bytes(4, "little")
        for kind, *values in (
            (CtrlType.SET_HASH_ALGORITHM, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, 0, 0),
            (CtrlType.SET_HASH_FLAGS, 1 << HashType.IPV4_TCP, 0, 0),
            (CtrlType.SET_HASH_MAPPING_SIZE, 1, 0, 0),
            (CtrlType.SET_HASH_MAPPING, gref, 1, 0),
        ):
            ring.put(NETIF_CTRL_REQUEST.pack(7, kind, *values))
        ring.push()
        services.send(services_page["port"])
        services.until(lambda: len(ring.take(NETIF_CTRL_SLOT_SIZE)) == 4, "answers of the control ring")
        segment = ethernet(IPV4_TCP, 0x0800, dest=OURS, source=THEIRS)
        for _ in range(2):
            received = comes_in(front, wire, segment, queue=1)[-1]
            assert received.extras
            kill(front)
        assert not front.queues[0].receive()


def test_a_cut_cable_stays_cut_when_a_process_dies(wire: StreamWire) -> None:
    with isolated_front(wire) as front:
        front.first.post(60)
        comes_in(front, wire, ethernet(b"in"))
        front.vif.block()
        kill(front)
        comes = ethernet(b"later")
        pid(front)
        for _ in range(20):
            wire.send(comes)
            time.sleep(0.002)
            assert not [received for received in front.first.receive() if received.data == comes]
        front.vif.block(blocked=False)
        comes_in(front, wire, comes)


def test_a_rate_is_kept(wire: StreamWire) -> None:
    with isolated_front(wire, config=VifConfig(0, MAC, rate=VifRate(2000, 3_600_000_000))) as front:
        frames = [ethernet(bytes([number]) * 900) for number in range(4)]
        for data in frames:
            front.first.queue(data)
        front.first.push()
        got: list[bytes] = []
        front.services.until(lambda: got.extend(wire.receive()) or len(got) == 2, "what there is credit for")
        assert got == frames[:2]
        answers: list[bytes] = []
        front.services.until(lambda: answers.extend(front.first.tx.take(12)) or len(answers) == 2, "their answers")
        assert not wire.receive()


# -- misdeeds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("misdeed", "message"), MISDEEDS)
def test_a_broken_request_costs_the_device(
    misdeed: Callable[[FrontQueue], None], message: str, wire: StreamWire, capsys: pytest.CaptureFixture[str]
) -> None:
    with isolated_front(wire) as front:
        comes_out(front, wire, ethernet(b"good"))
        misdeed(front.first)
        front.first.tx.push()
        front.services.send(front.first.tx_port)
        front.await_state(XenbusState.Closing)
        front.services.until(lambda: front.services.bound == [], "that it lets go")
        assert_closed(front, message, capsys.readouterr().err)
        front.switch(XenbusState.Closed)
        front.switch(XenbusState.Initialising)
        assert front.backend_state is XenbusState.InitWait


def test_a_receive_buffer_that_is_not_granted_costs_the_device(
    wire: StreamWire, capsys: pytest.CaptureFixture[str]
) -> None:
    with isolated_front(wire) as front:
        front.first.rx.put(NETIF_RX_REQUEST.pack(0, BAD_GREF))
        front.first.rx.push()
        front.services.until(lambda: wire.send(ethernet(b"in")), "a wire")
        front.await_state(XenbusState.Closing)
        front.services.until(lambda: front.services.bound == [], "that it lets go")
        assert_closed(front, f"grant {BAD_GREF}", capsys.readouterr().err)


def test_requests_that_are_withdrawn_while_nobody_looks_cost_the_device(wire: StreamWire) -> None:
    with isolated_front(wire) as front:
        front.first.post(8)
        comes_in(front, wire, ethernet(b"in"))
        front.first.rx.words[SRING_REQ_PROD] = 1
        kill(front)
        front.await_state(XenbusState.Closing)
        assert "req_prod" in front.services.store.read(front.backend.params.error_path)


def test_endless_requests_hold_nobody_up(wire: StreamWire) -> None:
    with isolated_front(wire, config=VifConfig(0, MAC, rate=VifRate(1 << 40, 50_000))) as front:
        data = ethernet(b"again", dest=BROADCAST)
        for _ in range(40):
            while front.first.tx.room:
                front.first.queue(data)
                front.services._next_gfn, front.services._next_gref = 100, 200  # the same page over and over
            front.first.push()
            wire.receive()
            front.services.until(lambda: bool(front.first.tx.take(12)), "answers")
        assert front.backend_state is XenbusState.Connected


# -- passt ------------------------------------------------------------------------------------------------------------


class RealServices(VifServices):
    """A host with a loop that turns."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.loop.call_soon(callback)

    def pump(self) -> None:
        for _ in range(3):
            self.loop.call_soon(lambda: None)
            self.loop._run_once()

    def close(self) -> None:
        super().close()
        self.loop.close()


@pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
def test_passt_and_the_process_die_in_turn_and_the_guest_can_ask_again(capsys: pytest.CaptureFixture[str]) -> None:
    config = VifConfig(0, MAC)
    with isolated_front(services=RealServices(), config=config, make=open_station) as front:
        assert isinstance(front.vif.station, Isolated)
        passt: Passt = front.vif.station.outlet.passt
        front.first.post(200)
        who_has = BROADCAST + OURS + bytes.fromhex("0806 0001 0800 0604 0001") + OURS + bytes([10, 0, 2, 15])
        who_has += bytes(6) + bytes([10, 0, 2, 2])

        def answered() -> bool:
            front.first.send(who_has)
            front.first.tx.take(12)
            front.services._next_gfn -= 1
            front.services._next_gref -= 1
            time.sleep(0.005)
            if front.first.rx.room > 60:
                front.first.post(1)
            return any(received.data[12:14] == b"\x08\x06" for received in front.first.receive())

        front.services.until(answered, "the gateway")
        for _ in range(3):
            assert passt.process is not None
            deaths = passt.deaths
            os.kill(passt.process.pid, signal.SIGKILL)
            front.services.until(lambda deaths=deaths: passt.deaths > deaths, "news of passt's death")
            assert front.theirs("carrier") == "0"
            front.services.until(lambda: front.theirs("carrier") == "1", "the next passt")
            front.first.receive()
            front.services.until(answered, "the next passt's gateway")
            kill(front)
            front.first.receive()
            front.services.until(answered, "the gateway, asked by the next process")
        assert capsys.readouterr().err.count("passt ended") == 1


@pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")
def test_passt_and_the_process_end_with_the_vmm() -> None:
    script = (
        "import time, vif_isolation_rig as rig, test_vif_isolation as test\n"
        "with rig.isolated_front(services=test.RealServices(), make=test.open_station) as front:\n"
        "    print(rig.pid(front), front.vif.station.outlet.passt.process.pid, flush=True)\n"
        "    print(front.vif.station.outlet.passt._directory.name, flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True) as vmm:
        assert vmm.stdout is not None
        pidfds = [os.pidfd_open(int(number)) for number in vmm.stdout.readline().split()]
        directory = Path(vmm.stdout.readline().strip())
        assert directory.is_dir()
        vmm.kill()
        for pidfd in pidfds:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            assert poll.poll(PATIENCE * 1000)
            os.close(pidfd)
    deadline = time.monotonic() + PATIENCE
    while directory.exists():
        assert time.monotonic() < deadline, "its directory is left"
        time.sleep(0.01)


def test_pages_that_a_process_writes_to_are_guarded_until_the_guest_has_them(wire: StreamWire) -> None:
    """As a PV guest's must be, which could make page tables of them."""
    guarded: list[int] = []
    taken: list[int] = []

    def take(gfn: int) -> bool:
        guarded.append(gfn)
        taken.append(gfn)
        return True

    services = VifServices()
    services.gnttab.guard_writes(take, guarded.remove)
    with isolated_front(wire, services=services) as front:
        front.first.post(20)
        for life in range(2):
            data = ethernet(bytes([life]) * 9000, dest=OURS, source=THEIRS)
            taken.clear()
            comes_in(front, wire, data)
            assert len(taken) >= 3
            kill(front)
            front.services.until(lambda: len(guarded) == 2, "pages given back")  # but the rings
    assert guarded == []


def test_somebody_who_wants_to_see_grants_in_use_sees_them_from_then_on(wire: StreamWire) -> None:
    with isolated_front(wire) as front:
        table = front.services.gnttab
        comes_out(front, wire, ethernet(b"unseen"))
        before = front.services.mapped
        plain = table.make_use
        table.make_use = partial(plain)
        comes_out(front, wire, ethernet(b"seen"))
        assert front.services.mapped == before + 1
        del table.make_use
        comes_out(front, wire, ethernet(b"unseen again"))
        assert front.services.mapped == before + 1
