"""Guests as objects, on this machine's KVM with the small test kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from api_rig import TIMEOUT, kernel, spinning, talking

import xenpy
from xenpy.devices.vbd.backend import VbdBackend
from xenpy.devices.vbd.overlay import Overlay

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.kvm, pytest.mark.guest]


@pytest.fixture
def talker() -> Iterator[xenpy.Guest]:
    with talking() as guest:
        yield guest


@pytest.fixture
def spinner() -> Iterator[xenpy.Guest]:
    with spinning() as guest:
        yield guest


def test_a_conversation(talker: xenpy.Guest) -> None:
    assert talker.console.read() == "ready\n"
    talker.console.sendline("hello")
    assert talker.console.expect(r"\[(.*)\]")[1] == "hello"
    long_line = "0123456789" * 500
    talker.console.sendline(long_line)
    talker.console.expect(rf"^\[{long_line}\]$")
    talker.console.sendline("bye")
    ending = talker.wait()
    assert ending == talker.ending
    assert ending.kind is xenpy.End.POWEROFF
    assert talker.console.text == f"ready\n[hello]\n[{long_line}]\n"


def test_a_guest_that_ends_ends_every_wait(talker: xenpy.Guest) -> None:
    talker.console.sendline("bye")
    with pytest.raises(
        xenpy.GuestEnded, match=r"(?s)guest ended \(power-off\) without output like 'more'.*ready"
    ) as caught:
        talker.console.expect("more")
    assert caught.value.ending.kind is xenpy.End.POWEROFF
    for action in (
        lambda: talker.xenstore.wait("data/never"),
        lambda: talker.console.sendline("more"),
        lambda: talker.wait_for(lambda: None),
        talker.shutdown,
        talker.pause,
        talker.bind_event,
        lambda: talker.set_memory(16),
        lambda: talker.set_vcpus(1),
        lambda: talker.sysrq("h"),
    ):
        with pytest.raises(xenpy.GuestEnded):
            action()
    assert talker.console.expect(xenpy.EOF).before == "ready\n"


def test_what_a_guest_is_told_through_xenstore() -> None:
    with xenpy.Guest.from_kernel(kernel("console"), memory=32, vcpus=1, maxvcpus=3, timeout=TIMEOUT) as guest:
        guest.set_vcpus(2)
        assert [guest.xenstore.read(f"cpu/{number}/availability") for number in range(3)] == [
            "online",
            "online",
            "offline",
        ]
        for count in (0, 4):
            with pytest.raises(xenpy.ConfigError, match=f"{count} vCPUs are not from 1 to maxvcpus=3"):
                guest.set_vcpus(count)
        guest.sysrq("h")
        assert guest.xenstore.read("control/sysrq") == "h"
        for key in ("", "hh", "/"):
            with pytest.raises(xenpy.ConfigError, match="is not a SysRq key"):
                guest.sysrq(key)
        assert guest.devices.find("vbd", 0) is None


def test_a_crash_is_told_with_its_reason() -> None:
    with xenpy.Guest.from_kernel(
        kernel("ending"), cmdline="triple_fault", on_reboot="destroy", timeout=TIMEOUT
    ) as guest:
        ending = guest.wait()
    assert ending.kind is xenpy.End.REBOOT
    assert "triple fault on vCPU 0" in ending.detail


def test_a_guest_out_of_time(spinner: xenpy.Guest) -> None:
    with pytest.raises(xenpy.Timeout, match=r"(?s)guest: no end within 0.1 s.*ending: spin"):
        spinner.wait(timeout=0.1)
    with pytest.raises(xenpy.Timeout, match="no end within"):
        spinner.shutdown(timeout=0.1)
    assert spinner.xenstore.read("control/shutdown") == "poweroff"
    spinner.destroy()
    assert spinner.wait().kind is xenpy.End.DESTROYED


def test_xenstore(talker: xenpy.Guest) -> None:
    store = talker.xenstore
    assert store.read("name") == "guest"
    assert store.read(f"/local/domain/{talker.domid}/domid") == str(talker.domid)
    assert "memory" in store.ls()
    store.write("data/a/b", 5, perms=["r0", f"r{talker.domid}"])
    assert dict(store.walk("data/a")) == {store.path("data/a"): "", store.path("data/a/b"): "5"}
    store.rm("data/a")
    assert not store.exists("data/a/b")
    assert store.get("data/a/b", "none") == "none"
    with pytest.raises(xenpy.XenError, match="ENOENT"):
        store.read("data/a/b")


def test_waiting_for_xenstore(talker: xenpy.Guest) -> None:
    store = talker.xenstore
    seen: list[str] = []
    watch = store.watch("data", seen.append)
    timer = threading.Timer(0.1, lambda: [store.write("data/state", value) for value in (1, 2, 3)])
    timer.start()
    assert store.wait("data/state", "3") == "3"
    timer.join()
    watch.cancel()
    assert store.wait("data/state") == "3"
    assert store.wait("data/state", lambda value: int(value) > 2) == "3"
    assert seen == [store.path("data")] + [store.path("data/state")] * 3
    with pytest.raises(xenpy.Timeout, match=r"no /local/domain/\d+/data/state = '4' within"):
        store.wait("data/state", "4", timeout=0.05)


def test_waiting_for_anything(talker: xenpy.Guest) -> None:
    talker.console.sendline("hello")
    assert talker.wait_for(lambda: talker.console.text.count("hello")) == 1
    with pytest.raises(xenpy.Timeout, match="no miracle within"):
        talker.wait_for(lambda: False, timeout=0.1, what="miracle")


def test_events(talker: xenpy.Guest) -> None:
    evtchn = talker.domain.evtchn
    with talker.host.lock:
        offered = evtchn.alloc_unbound(0)
    channel, other = talker.bind_event(offered), talker.bind_event()
    assert channel.port == offered
    with pytest.raises(xenpy.Timeout, match=f"no event on port {offered} within"):
        channel.wait(timeout=0.05)
    with talker.host.lock:
        evtchn.send(offered)
    channel.wait()
    assert (channel.events, other.events) == (1, 0)
    with talker.host.lock:
        assert not evtchn.is_pending(other.port)
    other.notify()
    with talker.host.lock:
        assert evtchn.is_pending(other.port)
    channel.close()
    channel.close()
    with pytest.raises(xenpy.XenError, match="EINVAL"):
        talker.bind_event(4000)


def test_guests_on_one_host_share_a_store() -> None:
    with xenpy.Host() as host:
        guests = [
            xenpy.Guest.from_kernel(kernel("console"), host=host, name=f"g{number}", timeout=TIMEOUT)
            for number in range(3)
        ]
        for guest in guests:
            guest.start()
        for guest in guests:
            guest.emergency.expect("listening")
            guest.console.sendline(guest.name)
        for guest in guests:
            assert guest.console.expect(r"\[(.*)\]")[1] == guest.name
        assert set(guests[0].xenstore.ls("/local/domain")) >= {"1", "2", "3"}
        guests[1].close()
        assert not guests[0].xenstore.exists("/local/domain/2/name")
        guests[2].console.sendline("still here")
        guests[2].console.expect("still here")
    assert [guest.wait().kind for guest in guests] == [xenpy.End.DESTROYED] * 3
    assert host.guests == []
    with pytest.raises(xenpy.HostError, match="closed"):
        xenpy.Guest.from_kernel(kernel("console"), host=host)


def test_from_cfg(tmp_path: Path) -> None:
    file = tmp_path / "guest.cfg"
    file.write_text(f'name = "filed"\ntype = "pvh"\nkernel = "{kernel("ending")}"\nmemory = 64\ncmdline = "crash"\n')
    with xenpy.Guest.from_cfg(file, memory=32, acpi=True, cmdline="poweroff", timeout=TIMEOUT) as guest:
        assert (guest.name, guest.config.memory_mib, guest.config.acpi) == ("filed", 32, True)
        assert guest.wait().kind is xenpy.End.POWEROFF


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"memory": "lots"}, "memory"),
        ({"no_such_key": 1}, "no_such_key"),
        ({"memory": 1.5}, "setting memory: 1.5"),
        ({"kernel": "/no/such/kernel"}, "/no/such/kernel"),
        ({"kernel": "/dev/null"}, "/dev/null"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], word: str) -> None:
    threads = threading.active_count()
    with pytest.raises(xenpy.ConfigError, match=word):
        xenpy.Guest.from_kernel(**{"kernel": kernel("ending"), "memory": 32, **settings})
    assert threading.active_count() == threads


@pytest.mark.parametrize("text", ['say "hi"', "back\\slash", "it's", "tab\tand é"])
def test_any_text_can_be_a_setting(text: str) -> None:
    with xenpy.Guest.from_kernel(kernel("ending"), memory=32, cmdline=text) as guest:
        assert guest.config.cmdline == text


def _files() -> list[str]:
    return sorted(str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())


def _interrupted(error: type[BaseException]) -> None:
    with xenpy.Guest.from_kernel(kernel("ending"), cmdline="spin") as guest:
        guest.emergency.expect("spin")
        raise error


def test_nothing_is_left_however_a_test_ends() -> None:
    with xenpy.Guest.from_kernel(kernel("ending"), cmdline="spin"):
        pass  # what is made once, at the first use, is no leak
    threads, files = threading.active_count(), _files()
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            _interrupted(error)
    xenpy.Guest.from_kernel(kernel("ending"), cmdline="spin").close()  # it was never started
    assert threading.active_count() == threads
    assert _files() == files


def test_a_bug_of_ours_ends_the_guest_not_the_wait(spinner: xenpy.Guest) -> None:
    spinner.host.core.loop.call_soon({}.popitem)
    ending = spinner.wait()
    assert ending.kind is xenpy.End.INTERNAL
    assert "KeyError" in ending.detail


_SCRIPT = """
import os, sys, xenpy
guest = xenpy.Guest.from_kernel(sys.argv[1], memory=32, cmdline="spin")
guest.start()
guest.emergency.expect("spin")
print("running", flush=True)
{}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError", 1),
        ("guest.wait(600)", -2),
        ("os.wait() if os.fork() else None", 0),
    ],
    ids=["end", "exit", "exception", "ctrl-c", "fork"],
)
def test_the_interpreter_exits_whatever_runs(end: str, code: int) -> None:
    argv = [sys.executable, "-c", _SCRIPT.format(end), kernel("ending")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"running\n"
            if code < 0:
                process.send_signal(-code)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code, errors
    if code == 0:
        assert errors == b""


def test_importing_it_is_cheap() -> None:
    script = "import sys; before = set(sys.modules); import xenpy; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split() == ["__future__", "xenpy"]


def test_every_public_name_is_there() -> None:
    assert set(xenpy.__all__) <= set(dir(xenpy))
    for name in xenpy.__all__:
        assert getattr(xenpy, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(xenpy, "no_such" + "_name")


def test_a_snapshot_leaves_the_image_alone(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(8192))
    settings = {"cmdline": "poweroff", "disk": [f"{image},raw,xvda,rw"], "timeout": TIMEOUT}
    with xenpy.Guest.from_kernel(kernel("ending"), snapshot=True, **settings) as guest:
        assert guest.wait().kind is xenpy.End.POWEROFF
        disk = guest.devices.find("vbd", 202 << 8)
        assert isinstance(disk, VbdBackend)
        disk.backing.write([memoryview(b"x" * 4096)], 0)
        assert isinstance(disk.backing, Overlay)
    assert image.read_bytes() == bytes(8192)
