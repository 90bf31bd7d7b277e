"""What the commands print and understand: xl's columns, sizes, characters, messages, and the script called xl."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from xenpy.config import build, parse_text
from xenpy.errors import ConfigError
from xenpy.loop import Loop
from xenpy.toolstack import dmesg, formats, hostinfo, lifecycle
from xenpy.toolstack.document import document
from xenpy.toolstack.formats import Row
from xenpy.toolstack.installing import install
from xenpy.toolstack.protocol import CommandError
from xenpy.toolstack.registry import Registry
from xenpy.toolstack.viewer import escape_code

if TYPE_CHECKING:
    from pathlib import Path

VCPUS: list[dict[str, Any]] = [
    {"online": True, "state": "b", "cpu": 3, "ns": 8_440_000_000},
    {"online": False, "state": "b", "cpu": 0, "ns": 0},
]
ROW = Row(12, "guest", "-b----", 8.44, 93784.9, 262144, 524288, VCPUS)


def test_the_list() -> None:
    title, line = formats.list_table([ROW])
    assert title == "Name                                        ID   Mem VCPUs\tState\tTime(s)"
    assert line == "guest                                       12   256     1     -b----       8.4"


def test_the_list_of_vcpus() -> None:
    title, online, offline = formats.vcpu_table([ROW])
    assert title == "Name                                ID  VCPU   CPU State   Time(s) Affinity (Hard / Soft)"
    assert online == "guest                               12     0    3   -b-       8.4  all / all"
    assert offline == "guest                               12     1    -   --p       0.0  all / all"


def test_the_time_up() -> None:
    title, line = formats.uptime_table([ROW])
    assert title == "Name                                ID Uptime"
    assert line == "guest                               12 1 day,  2:03:04"
    (short,) = formats.uptime_table([Row(1, "x", up_s=61)], short=True)
    assert short.endswith(" up  0:01:01,  x (1)")


def test_devices() -> None:
    device = {
        "devid": 51712,
        "domid": 12,
        "state": 4,
        "evtch": 9,
        "ring": 8,
        "backend": "/b",
        "mac": None,
        "tx": 1,
        "rx": 2,
    }
    assert [line.split() for line in formats.block_table([device])] == [
        ["Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"],
        ["51712", "0", "12", "4", "9", "8", "/b"],
    ]
    line = list(formats.network_table([{**device, "devid": 0, "mac": "00:16:3e:01:02:03"}]))[1]
    assert line.split() == ["0", "0", "00:16:3e:01:02:03", "0", "4", "9", "1/2", "/b"]


def test_shares_of_the_processor() -> None:
    _, line = formats.top_table([ROW], {12: 6.44}, 4.0)
    assert line.split() == ["guest", "-b----", "8", "50.0", "262144", "26214400.0", "524288", "52428800.0", "1"]


def test_a_domain_that_says_nothing_has_a_line() -> None:
    assert list(formats.list_table([formats.row(3, "mute", None)]))[1].split() == [
        "mute",
        "3",
        "0",
        "0",
        "------",
        "0.0",
    ]


def test_this_host() -> None:
    row = formats.host_row()
    assert (row.domid, row.name, row.online) == (0, "Domain-0", os.cpu_count())
    fields = dict(hostinfo.fields())
    assert fields["nr_cpus"] == str(os.cpu_count())
    assert "hvm-3.0-x86_64" in fields["xen_caps"].split()
    assert int(fields["free_memory"]) <= int(fields["total_memory"])


@pytest.mark.parametrize(
    ("text", "kib"),
    [("64", 65536), ("64m", 65536), ("1G", 1 << 20), ("512k", 512), ("2048b", 2), ("1t", 1 << 30), ("0", 0)],
)
def test_sizes(text: str, kib: int) -> None:
    assert lifecycle.parse_kib(text) == kib


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5", "1x", "1mm", "\u0661", "9" * 40, " 1"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(CommandError, match="invalid memory size"):
        lifecycle.parse_kib(text)


def test_escape_characters() -> None:
    assert [escape_code(text) for text in ("^]", "^a", "q", "^")] == [0x1D, 1, ord("q"), ord("^")]
    for wrong in ("", "^é", "é", "abc"):
        with pytest.raises(ConfigError):
            escape_code(wrong)


def test_overcommitment() -> None:
    processors = os.cpu_count() or 1
    lifecycle.check_overcommitment(processors)
    with pytest.raises(CommandError, match=f"{processors} physical CPUs and want {processors + 1}"):
        lifecycle.check_overcommitment(processors + 1)


def test_the_document() -> None:
    text = (
        'name="x"\ntype="pvh"\nkernel="/k"\ndisk=["/d,raw,xvda,ro"]\nvif=["mac=00:16:3e:01:02:03,bridge=b"]\nmaxmem=64'
    )
    whole = document(build(parse_text(text, "x.cfg"), "x.cfg"))
    assert whole["c_info"]["name"] == "x"
    assert whole["b_info"]["max_memkb"] == 65536
    assert whole["disks"] == [{"pdev_path": "/d", "vdev": "xvda", "format": "raw", "readwrite": 0, "is_cdrom": 0}]
    assert whole["nics"] == [{"devid": 0, "mac": "00:16:3e:01:02:03", "bridge": "b"}]


def test_messages(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    entry = registry.register("x", "1")
    loop = Loop()
    try:
        messages = dmesg.Messages(loop, entry)
        messages.add("ours\nalso")
        messages.add_output(b"the guest's\r\nand in pie")
        messages.add_output(b"ces\n" + b"x" * 3000)
        messages.flush()
        text = dmesg.read_messages(tmp_path).decode()
        assert (
            text
            == f"(XEN) ours\n(XEN) also\n(d1) the guest's\n(d1) and in pieces\n(d1) {'x' * 1024}\n(d1) {'x' * 1024}\n"
        )
        assert dmesg.read_messages(tmp_path, clear=True)
        assert dmesg.read_messages(tmp_path) == b""
        for number in range(2000):
            messages.add_output(b"%04d %s\n" % (number, b"y" * 1000))
            if number % 50 == 49:
                messages.flush()
        text = dmesg.read_messages(tmp_path).decode()
        assert 200 << 10 < len(text) < 600 << 10
        assert text.startswith("(d1) ")
        assert text.rstrip("y\n").endswith("(d1) 1999 ")
        messages.add_output(b"z\n" * 100_000)
        messages.flush()
        assert "lines of domain 1 are lost" in dmesg.read_messages(tmp_path).decode()
        messages.add("later")
        deadline = loop.call_later(10, loop.stop)
        loop.call_later(0.3, loop.stop)
        loop.run()
        deadline.cancel()
        assert dmesg.read_messages(tmp_path).endswith(b"(XEN) later\n")
    finally:
        loop.close()
        entry.close()


def test_installing(tmp_path: Path) -> None:
    path = install(tmp_path / "new" / "bin")
    assert install(tmp_path / "new" / "bin") == path
    (tmp_path / "click.py").write_text("raise SystemExit('a module of the directory that xl is called in')")
    done = subprocess.run([path, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: xl ")
    path.write_text("somebody else's")
    with pytest.raises(ConfigError, match="not ours"):
        install(path.parent)
    with pytest.raises(ConfigError, match="cannot be written"):
        install(path / "below")


def test_times_are_local() -> None:
    (short,) = formats.uptime_table([ROW], short=True)
    assert short[1:6] in (time.strftime("%H:%M"), time.strftime("%H:%M", time.localtime(time.time() - 60)))
