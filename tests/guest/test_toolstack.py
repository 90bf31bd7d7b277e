"""The xl-shaped commands on guests that run: each command is a process of its own, as for a user."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from toolstack_rig import TIMEOUT_S, Toolstack, is_running, until

from tests.gdb_client import Client
from xenpy.exitcodes import ExitCode
from xenpy.toolstack import lifecycle

if TYPE_CHECKING:
    from collections.abc import Iterator

    import build

MANY = 20


@pytest.fixture
def tools(tmp_path: Path, builder: build.Builder) -> Iterator[Toolstack]:
    toolstack = Toolstack(tmp_path, builder.build("console"))
    yield toolstack
    toolstack.destroy_all()
    assert toolstack.entries() == []


@pytest.fixture
def ending(builder: build.Builder) -> str:
    """Return the setting that makes a guest one that ends as its command line says."""
    return f"kernel={builder.build('ending')}"


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


def test_a_screenshot_takes_a_screen(tools: Toolstack, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    for name, settings, reason in (
        ("blind", (), "has no framebuffer 0: give it one with vfb="),
        ("dark", ('vfb=["vnc=0"]',), "no driver is connected to framebuffer 0"),
    ):
        tools.create(name, settings=settings)
        with tools.popen("screenshot", name, str(picture), program="xenpy") as process:
            _, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode != 0
        assert reason in err.decode()
    assert not picture.exists()


def test_what_is_asked_of_the_kernel_is_there_for_it(tools: Toolstack) -> None:
    tools.create("x", settings=("maxmem=32", "maxvcpus=2"))
    for command in (
        ["mem-set", "x", "24m"],
        ["vcpu-set", "x", "2"],
        ["sysrq", "x", "s"],
        ["shutdown", "x"],
        ["reboot", "x"],
    ):
        tools.ok(*command)
    assert [line.split()[:3] for line in tools.ok("vcpu-list", "x").splitlines()[1:]] == [
        ["x", "1", "0"],
        ["x", "1", "1"],
    ]
    assert tools.ok("uptime", "x").splitlines()[1].split()[:2] == ["x", "1"]
    assert "x" in tools.ok("top", "-i", "2", "-d", "0.1")


def test_disks_come_and_go(tools: Toolstack, tmp_path: Path) -> None:
    image, other = tmp_path / "disk", tmp_path / "other"
    image.write_bytes(bytes(1 << 20))
    other.write_bytes(bytes(1 << 20))
    tools.create("x")
    tools.ok("block-attach", "x", f"{image},raw", "xvdb,rw")
    assert tools.ok("block-list", "x").splitlines()[1].split()[:4] == ["51728", "0", "1", "1"]
    (config,) = json.loads(tools.ok("list", "-l", "x"))
    assert config["config"]["disks"][0]["pdev_path"] == str(image)
    assert "exists already" in tools.xl("block-attach", "x", f"{other},raw,xvdb,rw").err
    os.truncate(image, 3 << 20)
    assert tools.ok("block-resize", "x", "xvdb") == f"{3 << 20}\n"
    assert tools.ok("block-resize", "x", "xvdb", "4") == f"{4 << 20}\n"
    assert "made larger only" in tools.xl("block-resize", "x", "xvdb", "1").err
    assert image.stat().st_size == 4 << 20
    tools.ok("block-detach", "x", "xvdb")
    assert len(tools.ok("block-list", "x").splitlines()) == 1
    assert "disks" not in json.loads(tools.ok("list", "-l", "x"))[0]["config"]


def test_a_medium_is_put_into_a_drive_and_taken_out(tools: Toolstack, tmp_path: Path) -> None:
    image, other = tmp_path / "disc", tmp_path / "other"
    image.write_bytes(bytes(1 << 20))
    other.write_bytes(bytes(1 << 20))
    tools.create("x")
    tools.ok("block-attach", "x", "vdev=xvdc", "devtype=cdrom", "access=r", "target=")
    tools.ok("block-attach", "x", f"{other},raw,xvdb,rw")

    def disks() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(tools.ok("list", "-l", "x"))[0]["config"]["disks"]
        return found

    assert disks()[0]["format"] == "empty"
    assert tools.ok("cd-insert", "x", "xvdc", str(image)) == ""
    assert (disks()[0]["pdev_path"], disks()[0]["format"]) == (str(image), "raw")
    assert tools.ok("cd-eject", "x", "51744") == ""
    assert disks()[0]["format"] == "empty"
    assert "is no CD drive" in tools.xl("cd-insert", "x", "xvdb", str(image)).err
    assert "is no CD drive" in tools.xl("cd-eject", "x", "xvdb").err
    assert "has no vbd xvdz" in tools.xl("cd-insert", "x", "xvdz", str(image)).err
    assert "there is no such file" in tools.xl("cd-insert", "x", "xvdc", "/no/such/disc").err
    assert "cd-eject takes out" in tools.xl("cd-insert", "x", "xvdc", "").err
    assert [disk["vdev"] for disk in disks()] == ["xvdc", "xvdb"]


def test_a_core_has_what_was_in_memory(tools: Toolstack, tmp_path: Path) -> None:
    from elftools.elf.elffile import ELFFile

    tools.create("x")
    with tools.viewer("x") as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.read(6) == b"ready\n"
        core = tmp_path / "core"
        tools.ok("dump-core", "x", str(core))
    with core.open("rb") as file, tools.kernel.open("rb") as kernel_file:
        elf, kernel = ELFFile(file), ELFFile(kernel_file)
        sections = {section.name: section for section in elf.iter_sections()}
        text = kernel.get_section_by_name(".text")
        pfns = memoryview(sections[".xen_pfn"].data()).cast("Q")
        page = list(pfns).index(text["sh_addr"] >> 12)
        at = (page << 12) + text["sh_addr"] % 4096
        assert sections[".xen_pages"].data()[at : at + text["sh_size"]] == text.data()
        header = memoryview(sections[".note.Xen"].data()[16 + 16 : 16 + 16 + 32]).cast("Q")
        assert list(header) == [0xF00FEBEE, 1, len(pfns), 4096]


def test_messages_of_guests_and_debug_keys(tools: Toolstack, ending: str) -> None:
    tools.xl("create", "-qF", *tools.settings("x", ending, "cmdline=poweroff"))
    tools.create("y")
    tools.ok("debug-keys", "qe?")
    text = tools.ok("dmesg", "-c")
    assert "(d1) ending: poweroff\n" in text
    assert "(XEN)     name=y type=pvh state=running" in text
    assert "Event channel information for domain 2" in text
    assert "no such key" in text
    assert tools.ok("dmesg") == ""


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
        "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64",
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


def talk_until_traced(tools: Toolstack, out: Path) -> None:
    """Have a guest do something again and again until a trace shows it."""
    until(lambda: out.exists() or tools.xl("list").code, "trace")
    while not out.read_bytes():
        with tools.viewer("x") as viewer:
            assert viewer.stdin is not None
            viewer.stdin.write(b"hello\n")
            viewer.stdin.flush()
            assert viewer.stdout is not None
            viewer.stdout.read(len("ready\n[hello]\n"))


def test_a_guest_that_runs_is_traced_and_let_go(tools: Toolstack, tmp_path: Path) -> None:
    tools.create("x")
    for turn in range(2):
        out = tmp_path / f"trace{turn}"
        with tools.popen("strace", "-p", "x", "--json", "-o", str(out), "-e", "event", program="xenpy") as tracer:
            talk_until_traced(tools, out)
            tracer.send_signal(signal.SIGINT)
            _, err = tracer.communicate(timeout=TIMEOUT_S)
        assert (tracer.returncode, err) == (0, b"")
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert {record["kind"] for record in records} == {"event"}
        assert tools.listed()["x"][3] in ("-b----", "r-----")


def test_a_trace_ends_with_its_guest_and_killed_tracers_do_no_harm(tools: Toolstack, tmp_path: Path) -> None:
    tools.create("x")
    outs = [tmp_path / f"trace{number}" for number in range(3)]
    tracers = [tools.popen("strace", "-p", "x", "-o", str(out), program="xenpy") for out in outs]
    for out in outs:
        talk_until_traced(tools, out)
    tracers[0].kill()  # the first to come is the first to go
    tracers[0].communicate()
    tools.xl("console", "x", stdin=b"bye\n")
    for tracer, out in zip(tracers[1:], outs[1:], strict=True):
        _, err = tracer.communicate(timeout=TIMEOUT_S)
        assert (tracer.returncode, err) == (0, b"xenpy: x: power-off\n")
        assert "sched_op(shutdown, reason=poweroff)" in out.read_text().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["-p", "ghost"], 1),
        (["-p", "x", "/dev/null"], 2),
        ([], 2),
        (["-p", "x", "--type", "pv"], 2),
        (["-p", "x", "-e", "y"], 2),
    ],
)
def test_what_cannot_be_traced(tools: Toolstack, arguments: list[str], code: int) -> None:
    with tools.popen("strace", *arguments, program="xenpy") as refused:
        _, err = refused.communicate(timeout=TIMEOUT_S)
    assert refused.returncode == code, err
    assert b"Traceback" not in err


def test_a_debugger_starts_a_domain_and_comes_to_one_that_runs(tools: Toolstack) -> None:
    done = tools.xl("create", "-q", "--gdb", "0", *tools.settings("one"))
    assert done.code == 0, done.err
    address = done.err.partition("target remote ")[2].strip()
    with Client(address) as gdb:
        assert gdb.ask("?") == "T05thread:1;"
        assert gdb.ask("D") == "OK"
    with tools.popen("gdb", "one", program="xenpy") as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out.decode().strip()) == (0, address), err
    with Client(address) as gdb:
        assert gdb.ask("?") == "T02thread:1;"
        gdb.send("k")
    until(lambda: "one" not in tools.listed(), "end of the domain")


def test_a_run_that_waits_for_a_debugger(tools: Toolstack) -> None:
    with tools.popen("run", "--gdb", "0", *tools.settings("one"), program="xenpy") as process:
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        with Client(line.partition("target remote ")[2].strip()) as gdb:
            assert gdb.ask("?") == "T05thread:1;"
            gdb.send("k")
        assert process.wait(timeout=TIMEOUT_S) == ExitCode.INTERRUPTED
