"""Commands that look into guests that run: cores, messages, traces, debuggers."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest
from toolstack_rig import TIMEOUT_S, Toolstack, until

from tests.gdb_client import Client
from xenpy.exitcodes import ExitCode

if TYPE_CHECKING:
    from pathlib import Path


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
