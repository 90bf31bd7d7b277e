"""`xenpy strace`, `xenpy abi` and `trace` on test kernels."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

import xenpy
from xenpy.exitcodes import ExitCode
from xenpy.testing.trace import trace

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import CompletedProcess

    from harness import Mode, Runs

_WHAT = (
    r"\w+\(.*\) = -?(0x)?[0-9a-f]+.*",
    r"xenstore (type )?\w+( .*)?",
    r"event \w+ .*-> d\d+p\d+.*",
    r"grant \w+ ref=.*",
)
_LINE = re.compile(rf" *\d+\.\d{{6}} d\d+(v\d+)? +({'|'.join(_WHAT)}) ?(<\d+\.\dus>)?")


def xenpy_command(command: str, kernel: Path, mode: Mode, *options: str) -> CompletedProcess[str]:
    settings = [f'kernel="{kernel}"', 'name="traced"', 'type="pvh"', "memory=32", *filter(None, [mode.config])]
    argv = [sys.executable, "-m", "xenpy", command, "/dev/null", *settings, *options]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)


def test_every_line_has_the_same_shape(runs: Runs, mode: Mode, tmp_path: Path) -> None:
    out = tmp_path / "trace"
    done = xenpy_command("strace", runs.elf("xenstore", mode), mode, "-o", str(out))
    assert done.returncode == 0, done.stderr
    lines = out.read_text().splitlines()
    assert [line for line in lines if not _LINE.fullmatch(line)] == []
    text = "\n".join(lines)
    assert re.search(r"hvm_op\(get_param, domid=DOMID_SELF, index=STORE_PFN, value=0x0\) = 0 \{value=0x\w+\}", text)
    assert re.search(r'xenstore READ "domid" = "1"', text)
    assert re.search(r"event interdomain d1p\d+ -> d0p\d+ \(store\)", text)
    assert "sched_op(shutdown, reason=poweroff)" in lines[-1]


def test_filters_and_json_on_stderr(runs: Runs, mode: Mode) -> None:
    done = xenpy_command(
        "strace", runs.elf("gnttab", mode), mode, "--json", "-e", "hypercall=grant_table_op", "-e", "status=failed"
    )
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert records
    assert {record["name"].partition(".")[0] for record in records} == {"grant_table_op"}
    assert all(record["error"] for record in records)
    assert "general_error" in {record["error"] for record in records}


def test_summary_and_pictures(runs: Runs, mode: Mode, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("table", "trace.json", "timeline.svg")]
    options = ["-c", "-o", str(files[0]), "--perfetto", str(files[1]), "--timeline", str(files[2])]
    done = xenpy_command("strace", runs.elf("evtchn", mode), mode, *options)
    assert done.returncode == 0, done.stderr
    table = files[0].read_text()
    assert re.search(r"\d +event_channel_op\.send$", table, re.MULTILINE)
    events = json.loads(files[1].read_text())["traceEvents"]
    sends = sum(event["name"] == "event_channel_op.send" for event in events)
    assert re.search(rf" {sends} +\d* +event_channel_op\.send$", table, re.MULTILINE), "both saw the same calls"
    assert ET.fromstring(files[2].read_text()).tag.endswith("svg")


def test_abi_of_two_kernels(runs: Runs, mode: Mode, tmp_path: Path) -> None:
    configs = []
    for kernel in ("gnttab", "gnttab_v2"):
        config = tmp_path / f"{kernel}.cfg"
        config.write_text(f'name="{kernel}"\ntype="pvh"\nkernel="{runs.elf(kernel, mode)}"\nmemory=32\n{mode.config}\n')
        configs.append(str(config))
    argv = [sys.executable, "-m", "xenpy", "abi", *configs, "--timeout", "30"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  grant_table_op\.set_version +- +\d+", done.stdout, re.MULTILINE)
    assert "sched_op.shutdown" not in done.stdout, "both end the same way"


def test_api(runs: Runs, mode: Mode) -> None:
    settings = {"memory": 32, **({"xenpy_kvm_xen": int(mode.kvm_xen)} if mode.kvm_xen is not None else {})}
    with (
        xenpy.Guest.from_kernel(runs.elf("sched", mode), paused=True, **settings) as guest,
        trace(guest, "hypercall=sched_op") as recorder,
    ):
        guest.unpause()
        guest.wait(timeout=60)
    shutdown = recorder.named("sched_op.shutdown")
    assert shutdown[-1].args == {"reason": "poweroff"}
    assert "EFAULT" in {record.error for record in shutdown}, "the kernel tries a structure that is not there"
    assert recorder.text.count("sched_op(") == len(recorder.records)


def test_a_bad_expression_ends_before_the_guest_begins(runs: Runs, mode: Mode) -> None:
    done = xenpy_command("strace", runs.elf("evtchn", mode), mode, "-e", "hypercall=nothing_op")
    assert done.returncode == 2
    assert "there is no hypercall nothing_op" in done.stderr
    assert "Traceback" not in done.stderr


def test_reboots_go_into_one_trace(runs: Runs, mode: Mode) -> None:
    settings = ['cmdline="reboot"', 'on_reboot="restart"']
    done = xenpy_command(
        "strace", runs.elf("ending", mode), mode, *settings, "--json", "-e", "hypercall=sched_op.shutdown"
    )
    records = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert done.returncode == ExitCode.REBOOT_LOOP
    assert [record["args"]["reason"] for record in records] == ["reboot"] * len(records)
    domids = [record["domid"] for record in records]
    assert domids == sorted(set(domids)), "each a new domain, and none heard twice"
    assert len(domids) > 2
    times = [record["time_us"] for record in records]
    assert times == sorted(times)


def test_a_reader_that_goes_away_does_not_end_the_guest(runs: Runs, mode: Mode) -> None:
    settings = [
        f'kernel="{runs.elf("console", mode)}"',
        'name="t"',
        'type="pvh"',
        "memory=32",
        *filter(None, [mode.config]),
    ]
    argv = [sys.executable, "-m", "xenpy", "strace", "/dev/null", *settings]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        out, _ = process.communicate(b"hello\nbye\n", timeout=30)
    assert out == b"ready\n[hello]\n"


@pytest.mark.parametrize("options", [["-c", "--json"], ["-o", "/no/such/directory/file"], ["--timeout", "nan"]])
def test_bad_options(runs: Runs, mode: Mode, options: list[str]) -> None:
    done = xenpy_command("strace", runs.elf("evtchn", mode), mode, *options)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kernel", ["xenstore", "evtchn", "gnttab", "misc"])
@pytest.mark.parametrize("seed", range(3))
def test_no_storm_of_faults_breaks_more_than_the_guest(runs: Runs, mode: Mode, kernel: str, seed: int) -> None:
    rules = [
        *(
            f"hypercall:{action}:chance=.05"
            for action in ("error=EAGAIN", "error=EFAULT", "drop", "duplicate", "delay=1ms")
        ),
        *(f"event:{action}:chance=.1" for action in ("drop", "duplicate", "reorder", "delay=2ms")),
        *(f"xenstore:{action}:chance=.1" for action in ("error=ENOENT", "drop", "duplicate")),
    ]
    options = [word for rule in rules for word in ("--fault", rule)]
    done = xenpy_command(
        "strace", runs.elf(kernel, mode), mode, *options, "--fault-seed", str(seed), "--timeout", "3", "-e", "fault"
    )
    assert done.returncode in (ExitCode.POWEROFF, ExitCode.CRASH, ExitCode.TIMEOUT, ExitCode.REBOOT), done.stderr[
        -2000:
    ]
    assert "Traceback" not in done.stderr
    assert " fault " in done.stderr
