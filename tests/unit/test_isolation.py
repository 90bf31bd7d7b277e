"""Disks in a process of their own: all that a disk can do, and what its process has and has not."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import test_vbd
from isolation_rig import isolated, keeper, kill, pid
from test_vbd import DISK, OKAY, pattern
from vbd_rig import disk_of

from xenpy.abi.blkif import BLKIF_OP
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.isolation import patience
from xenpy.devices.isolation.channel import Channel, Kind
from xenpy.devices.isolation.child import Job
from xenpy.devices.isolation.memory import Ram
from xenpy.devices.isolation.process import TEMPLATE
from xenpy.devices.vbd import served
from xenpy.devices.vbd.image import open_disk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vbd_rig import BlkFrontend

NOBODY = 65534

globals().update({
    test.__name__: test for test in (  # what a disk does that is served by threads, with the fixture below
        test_vbd.test_what_the_backend_says, test_vbd.test_reading_and_writing, test_vbd.test_indirect_requests,
        test_vbd.test_grants_are_given_back, test_vbd.test_persistent_grants_are_mapped_once,
        test_vbd.test_discard_makes_a_hole, test_vbd.test_beyond_the_end, test_vbd.test_operations_unknown_to_us,
        test_vbd.test_one_bad_request_among_neighbours_fails_alone, test_vbd.test_connecting_again_and_again,
        test_vbd.test_a_file_that_shrank_under_us, test_vbd.test_growing,
    )
})  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _template() -> Iterator[None]:
    TEMPLATE.hold()
    yield
    TEMPLATE.drop()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(DISK)
    return path


@pytest.fixture
def frontend(image: Path) -> Iterator[BlkFrontend]:
    with isolated(disk_of(image)) as frontend:
        yield frontend


def test_a_process_that_dies_is_replaced(frontend: BlkFrontend, image: Path) -> None:
    queue = frontend.connect()
    assert pid(frontend) != os.getpid()
    for round_number in range(5):
        assert queue.write(round_number * 8, pattern(4096, round_number)) == OKAY
        kill(frontend)
    assert queue.read(0) == pattern(4096, 0)
    assert keeper(frontend).deaths == 5
    assert image.read_bytes()[4096:8192] == pattern(4096, 1)


def test_an_ephemeral_disk_keeps_what_was_written(image: Path) -> None:
    with isolated(disk_of(image), ephemeral=True) as frontend:
        queue = frontend.connect()
        assert queue.write(3, pattern(1024)) == OKAY
        kill(frontend)
        assert queue.read(0) == DISK[:1536] + pattern(1024) + DISK[2560:4096]
    assert image.read_bytes() == DISK


def test_several_queues_share_a_process(image: Path) -> None:
    with isolated(disk_of(image)) as frontend:
        frontend.connect(queues=4, order=1, persistent=True)
        for index, queue in enumerate(frontend.queues):
            assert queue.write(index * 8, pattern(4096, index)) == OKAY
        kill(frontend)
        for index, queue in enumerate(frontend.queues):
            assert queue.read(index * 8) == pattern(4096, index)


# -- what it has ------------------------------------------------------------------------------------------------------


def test_its_process_has_nothing_but_what_it_needs(frontend: BlkFrontend, image: Path) -> None:
    queue = frontend.connect()
    queue.read(0)
    process = Path("/proc") / str(pid(frontend))
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    if os.geteuid() == 0:
        assert {*status["Uid"].split(), *status["Gid"].split()} == {str(NOBODY)}
        assert (status["CapEff"], status["Groups"].strip()) == ("0" * 16, "")
    files = [str(fd.readlink()) for fd in (process / "fd").iterdir() if int(fd.name) > 2]
    socket, event, rest = "socket:", "anon_inode:[eventfd]", {"/memfd:xenpy-ram", "/memfd:xenpy-journal", str(image)}
    assert {file.removesuffix(" (deleted)") for file in files if not file.startswith((socket, event))} == rest
    assert [sum(file.startswith(kind) for file in files) for kind in (socket, event)] == [2, 2]
    assert (process / "environ").read_bytes() == b""


def test_what_the_vmm_has_mapped_too_cannot_be_cut_short(image: Path) -> None:
    with isolated(disk_of(image), ephemeral=True) as frontend:
        frontend.connect().read(0)
        fds = [fd for fd in (Path("/proc") / str(pid(frontend)) / "fd").iterdir() if "memfd:" in str(fd.readlink())]
        names = {str(fd.readlink()).split()[0] for fd in fds}
        assert names == {"/memfd:xenpy-ram", "/memfd:xenpy-journal", "/memfd:xenpy-overlay"}
        for fd in fds:
            with pytest.raises(PermissionError):
                os.truncate(fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(frontend.services.pool.fd, 0)


def test_it_ends_with_the_vmm(image: Path) -> None:
    script = (
        "import sys, time, isolation_rig as rig, vbd_rig\n"
        "with rig.isolated(vbd_rig.disk_of(sys.argv[1])) as frontend:\n"
        "    frontend.connect().read(0)\n"
        "    print(rig.pid(frontend), flush=True)\n"
        "    time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as vmm:
        assert vmm.stdout is not None
        served_by = int(vmm.stdout.readline())
        pidfd = os.pidfd_open(served_by)
        vmm.kill()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(20_000)
        os.close(pidfd)


def test_it_serves_with_whatever_priority_it_has(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    backing = open_disk(disk_of(image))
    parcel = backing.parcel()
    assert parcel is not None
    ours, theirs = Channel.pair()
    ours.close()
    ram_fd = os.memfd_create("ram")
    os.ftruncate(ram_fd, 4096)
    device = {"kind": parcel.kind, "fields": parcel.fields, "rings": []}
    served.main(Job(Ram(ram_fd), [], device, parcel.fds), theirs)
    os.close(ram_fd)
    theirs.close()
    backing.close()


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_grant_that_is_none_costs_the_device(frontend: BlkFrontend) -> None:
    queue = frontend.connect()
    buffer = queue.buffer()
    frontend.services.revoke(buffer.gref)
    queue.transfer(BLKIF_OP.READ, 0, [buffer])
    queue.kick()
    frontend.await_state(XenbusState.Closing)
    error = frontend.services.store.read(frontend.backend.params.error_path)
    assert f"grant {buffer.gref}" in error


def test_a_page_of_the_hypervisors_is_not_passed_on(frontend: BlkFrontend) -> None:
    services = frontend.services
    queue = frontend.connect()
    assert queue.read(0) == DISK[:4096]
    gfn = 0x10000
    services.memory.place(gfn, services.gnttab.frame(0))
    buffer = queue.buffer()
    services.regrant(buffer.gref, gfn)
    queue.transfer(BLKIF_OP.READ, 0, [buffer])
    queue.kick()
    frontend.await_state(XenbusState.Closing)
    assert "not the guest's RAM" in services.store.read(frontend.backend.params.error_path)


def test_a_ring_in_a_page_of_the_hypervisors_is_refused(frontend: BlkFrontend) -> None:
    services = frontend.services
    gfn = 0x10000
    services.memory.place(gfn, services.gnttab.frame(0))
    frontend.connect(nodes={"ring-ref": services.grant(gfn)})
    frontend.await_state(XenbusState.Closing)
    assert frontend.backend.connection is None


def test_requests_that_are_withdrawn_while_nobody_looks_cost_the_device(frontend: BlkFrontend) -> None:
    queue = frontend.connect()
    queue.read(0)
    os.kill(pid(frontend), signal.SIGSTOP)
    first, second = (queue.transfer(BLKIF_OP.READ, sector, [queue.buffer()]) for sector in (0, 64))
    queue.ring.words[0] = queue.ring.words[0] - 2 & 0xFFFFFFFF
    kill(frontend)
    frontend.await_state(XenbusState.Closing)
    assert not {first, second} & queue.answers.keys()


def test_the_template_may_die_too(frontend: BlkFrontend) -> None:
    queue = frontend.connect()
    assert queue.read(0) == DISK[:4096]
    assert TEMPLATE.pid is not None
    os.kill(TEMPLATE.pid, signal.SIGKILL)
    assert queue.read(8) == DISK[4096:8192]
    kill(frontend)
    assert queue.read(16) == DISK[8192 : 8192 + 4096]


def test_who_dies_again_and_again_for_nothing_is_given_up(
    frontend: BlkFrontend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_MAX_DEATHS", 2)
    frontend.connect()
    kept = keeper(frontend)

    def closed() -> bool:
        process = kept.process
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        return frontend.backend_state is XenbusState.Closing

    frontend.services.until(closed, "that it is given up")
    assert "its process died 3 times" in frontend.services.store.read(frontend.backend.params.error_path)


def test_what_a_process_has_said_is_heard_though_it_died_without_listening() -> None:
    ours, theirs = Channel.pair()
    ours.send(Kind.TELL, b"unheard")
    theirs.send(Kind.NOTE, b"first")
    theirs.send(Kind.NOTE, b"second")
    theirs.close()
    heard = [ours.receive() for _ in range(4)]
    assert [message and message.payload for message in heard] == [b"first", b"second", None, None]
    ours.close()
