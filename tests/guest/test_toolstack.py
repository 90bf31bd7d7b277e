"""The xl-shaped commands on guests that run: each command is a process of its own, as for a user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toolstack_rig import TIMEOUT_S, Toolstack, is_running, until

from xenpy.exitcodes import ExitCode
from xenpy.toolstack import lifecycle

MANY = 20


def test_many_guests_side_by_side(tools: Toolstack) -> None:
    names = [f"guest{number}" for number in range(MANY)]
    makers = [tools.popen("create", *tools.settings(name)) for name in names]
    for maker in makers:
        _, err = maker.communicate(timeout=TIMEOUT_S)
        assert (maker.returncode, err) == (0, b"")
    listed = tools.listed()
    assert sorted(listed) == sorted(names)
    assert sorted(int(columns[0]) for columns in listed.values()) == list(range(1, MANY + 1))
    pids = [tools.record(name)["pid"] for name in names]
    for name in names:
        tools.ok("pause", name)
    assert {columns[3] for columns in tools.listed().values()} == {"--p---"}
    for name in names:
        tools.ok("destroy", name)
    assert tools.listed() == {}
    assert tools.entries() == []
    until(lambda: not any(map(is_running, pids)), "end of the guests' processes")


def test_one_of_many_gets_a_name(tools: Toolstack) -> None:
    makers = [tools.popen("create", "-q", *tools.settings("one")) for _ in range(5)]
    results = [(*maker.communicate(timeout=TIMEOUT_S), maker.returncode) for maker in makers]
    assert sorted(code for _, _, code in results) == [0, 1, 1, 1, 1]
    assert all(b'Domain with name "one" already exists.' in err for _, err, code in results if code)
    assert list(tools.listed()) == ["one"]


@pytest.mark.parametrize(
    ("way", "code"),
    [
        ("poweroff", ExitCode.POWEROFF),
        ("crash", ExitCode.CRASH),
        ("watchdog", ExitCode.WATCHDOG),
        ("suspend", ExitCode.SUSPEND),
        ("reboot", ExitCode.REBOOT_LOOP),
    ],
)
def test_the_foreground_exits_with_the_documented_code(tools: Toolstack, ending: str, way: str, code: ExitCode) -> None:
    assert tools.xl("create", "-qF", *tools.settings("x", ending, f"cmdline={way}")).code == code


def test_a_guest_that_starts_anew_gets_a_new_domid(tools: Toolstack, ending: str) -> None:
    tools.xl("create", "-qF", *tools.settings("x", ending, "cmdline=reboot"))
    tools.create("next")
    assert int(tools.ok("domid", "next")) > 2


def test_a_guest_that_is_preserved(tools: Toolstack, ending: str) -> None:
    tools.create("x", settings=(ending, "cmdline=crash", "on_crash=preserve"))
    until(lambda: tools.listed()["x"][3] == "---sc-", "crash")
    done = tools.xl("pause", "x")
    assert done.code == 1
    assert "has ended (crash)" in done.err
    tools.ok("destroy", "x")


def test_a_killed_domain_leaves_nothing(tools: Toolstack) -> None:
    tools.create("x")
    with tools.viewer("x") as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.read(6) == b"ready\n"
        os.kill(tools.record("x")["pid"], signal.SIGKILL)
        assert viewer.wait(TIMEOUT_S) == 0
    assert len(tools.entries()) == 1
    assert tools.listed() == {}
    assert tools.entries() == []
    tools.create("x")
    assert tools.listed()["x"][0] == "2"


def test_killed_commands_do_the_domain_no_harm(tools: Toolstack) -> None:
    for _ in range(5):
        maker = tools.popen("create", "-q", *tools.settings("x"))
        until(tools.entries, "registration")
        maker.kill()
        maker.communicate()
        until(lambda: "x" in tools.listed(), "domain whose command was killed")
        with tools.viewer("x") as viewer:
            assert viewer.stdout is not None
            assert viewer.stdout.read(6) == b"ready\n"
        tools.ok("pause", "x")
        tools.ok("destroy", "x")


def test_a_process_that_does_not_listen_is_killed(tools: Toolstack, monkeypatch: pytest.MonkeyPatch) -> None:
    tools.create("x")
    pid = tools.record("x")["pid"]
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tools.directory))
    monkeypatch.setattr(lifecycle, "_GRACE_S", 0.1)
    lifecycle.destroy("x")
    assert not is_running(pid)
    assert tools.listed() == {}


def test_a_foreground_run_can_be_commanded(tools: Toolstack) -> None:
    with tools.popen("run", *tools.settings("x"), program="xenpy") as process:
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        assert tools.listed()["x"][1] == "16"
        tools.ok("rename", "x", "y")
        assert list(tools.listed()) == ["y"]
        assert tools.ok("domname", "1") == "y\n"
        tools.ok("destroy", "y")
        _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == ExitCode.INTERRUPTED
        assert b"y: destroyed" in err


def test_waiting_for_the_end(tools: Toolstack) -> None:
    tools.create("x")
    with tools.popen("shutdown", "-w", "x") as waiting:
        assert waiting.stderr is not None
        assert waiting.stderr.readline() == b"Shutting down domain 1\n"
        assert waiting.stderr.readline() == b"Waiting for 1 domain\n"
        tools.xl("console", "x", stdin=b"bye\n")
        assert waiting.stderr.read() == b"Domain 1 has been shut down, reason code 0\n"
        assert waiting.wait(TIMEOUT_S) == 0
    tools.create("y")
    with tools.popen("shutdown", "-aw") as waiting:
        assert waiting.stderr is not None
        waiting.stderr.readline()
        waiting.stderr.readline()
        os.kill(tools.record("y")["pid"], signal.SIGKILL)
        assert waiting.stderr.read() == b"Domain 2 has been destroyed.\n"


def test_what_cannot_be_created_leaves_nothing(tools: Toolstack, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\x7fELF" + bytes(100))
    done = tools.xl("create", "-q", *tools.settings("x", f"kernel={kernel}"))
    assert done.code == ExitCode.CONFIG
    assert str(kernel) in done.err
    assert tools.entries() == []
    assert tools.xl("create", "-q", "/no/such/file").code == ExitCode.CONFIG


@pytest.mark.parametrize(
    "command",
    [
        ["pause", "ghost"], ["destroy", "7"], ["console", "ghost"], ["vcpu-list", "ghost"], ["list", "99999999999"],
        ["domid", "ghost"], ["domname", "7"], ["mem-set", "ghost", "7"], ["block-list", "ghost"],
    ],
)  # fmt: skip
def test_a_domain_that_does_not_exist(tools: Toolstack, command: list[str]) -> None:
    done = tools.xl(*command)
    assert (done.code, done.out) == (1, "")
    expected = "maybe this domain does not exist" if command[0].startswith("dom") else "(rc=-6)"
    assert expected in done.err


@pytest.mark.parametrize(
    "command",
    [
        ["mem-set", "x", "17"], ["mem-set", "x", "many"], ["mem-set", "x", "0"], ["vcpu-set", "x", "9"],
        ["vcpu-set", "-i", "x", "9"], ["sysrq", "x", "ab"], ["rename", "x", "a/b"], ["rename", "x", "y"],
        ["block-attach", "x", "/no/such/disk,raw,xvda,rw"], ["block-attach", "x", "nonsense"],
        ["block-detach", "x", "xvdz"], ["block-resize", "x", "xvdz"], ["network-detach", "x", "0"], ["network-attach", "x", "mac=nonsense"],
        ["dump-core", "x", "/no/such/directory/core"],
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(tools: Toolstack, command: list[str]) -> None:
    tools.create("x")
    tools.create("y")
    done = tools.xl(*command)
    assert done.code in (ExitCode.FAILURE, ExitCode.CONFIG)
    assert done.err.startswith("xl: ")
    assert sorted(tools.listed()) == ["x", "y"]


def test_a_script_for_xl(tools: Toolstack, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "xenpy", "install-xl", tmp_path / "bin"], check=True, capture_output=True)
    (tmp_path / "g.cfg").write_text(f'name = "cfg"\ntype = "pvh"\nkernel = "{tools.kernel}"\nmemory = 16\n')
    script = f"""
        set -e
        xl create -p g.cfg
        xl console cfg < input > output &
        sleep 0.5
        xl unpause cfg
        wait
        xl info xen_caps
        echo bye | xl create -F -c /dev/null name="x" kernel="{tools.kernel}" type="pvh" memory=32 cmdline="a b"
        echo "ended $?"
        xl destroy cfg || echo "is gone"
    """
    (tmp_path / "input").write_bytes(b"hello\nbye\n")
    environment = {**tools.environment, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.splitlines() == [
        "Parsing config from g.cfg",
        "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ",
        "Parsing config from /dev/null",
        "ready",
        "ended 0",
        "is gone",
    ]
    assert done.stderr == "xl: cfg is an invalid domain identifier (rc=-6)\n"
    assert (tmp_path / "output").read_bytes() == b"ready\n[hello]\n"


@pytest.mark.skipif(not shutil.which("qemu-nbd") or not shutil.which("qemu-img"), reason="no qemu-utils")
def test_helpers_of_a_killed_domain_end(tools: Toolstack, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"], check=True)
    tools.create("x", settings=(f"disk=['{image},qcow2,xvda,rw']",))
    pid = tools.record("x")["pid"]
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert children
    os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_running, children)), "end of what served the disk")
    assert tools.listed() == {}
