"""The forms that a trace takes: lines, JSON, a table, a Chrome trace, a picture."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from xenpy.errors import ConfigError
from xenpy.testing.trace import wire
from xenpy.testing.trace.density import Density
from xenpy.testing.trace.json_lines import JsonSink
from xenpy.testing.trace.milestones import Milestones
from xenpy.testing.trace.output import Output
from xenpy.testing.trace.perfetto import PerfettoSink
from xenpy.testing.trace.record import Kind, Record, Symbol
from xenpy.testing.trace.summary import SummarySink
from xenpy.testing.trace.text import TextSink, line, value_text
from xenpy.testing.trace.timeline import TimelineSink

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</svg>&<script>"\x00\x1b\ud800'


def call(name: str, at_us: int = 0, latency_us: int = 10, *, vcpu: int = 0, error: str = "", depth: int = 0) -> Record:
    return Record(
        at_us * 1000, 1, vcpu, Kind.HYPERCALL, name, {"port": 5, "gfn": 0x20}, -22 if error else 0, error=error,
        latency_ns=latency_us * 1000, depth=depth,
    )  # fmt: skip


def console(text: str, at_us: int = 0) -> Record:
    return Record(at_us * 1000, 1, None, Kind.CONSOLE, "line", {"text": text})


# -- lines ----------------------------------------------------------------------------------------------------------------


def test_a_line() -> None:
    assert line(call("event_channel_op.send", 1_500_000)) == (
        "    1.500000 d1v0  event_channel_op(send, port=5, gfn=0x20) = 0 <10.0us>"
    )
    assert "   multicall" not in line(call("x", depth=0))
    assert line(call("x", depth=1)).startswith("    0.000000 d1v0    x(")


@pytest.mark.parametrize(
    ("value", "name", "text"),
    [
        (5, "", "5"),
        (-3, "gfn", "-3"),
        (5, "gfn", "0x5"),
        (1 << 40, "port", "0x10000000000"),
        (1 << 40, "timeout_abs_ns", str(1 << 40)),
        (Symbol("DOMID_SELF"), "domid", "DOMID_SELF"),
        ('a"\\\n\x1b', "path", '"a\\"\\\\\\n\\x1b"'),
        ("x" * 100, "value", '"' + "x" * 64 + '"...'),
        ([1, Symbol("...")], "gfn", "[0x1, ...]"),
        ({"a": 1, "b": ["c"]}, "", '{a=1, b=["c"]}'),
    ],
)
def test_values(value: object, name: str, text: str) -> None:
    assert value_text(value, name) == text


def test_lines_go_to_a_file_and_what_cannot_be_written_is_escaped(tmp_path: Path) -> None:
    sink = TextSink(Output(tmp_path / "out"))
    sink.take(console("\ud800"))
    sink.take(call("iret"))
    sink.close()
    assert len((tmp_path / "out").read_text().splitlines()) == 2


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        Output(tmp_path / "no" / "file")


def test_json_lines(tmp_path: Path) -> None:
    sink = JsonSink(Output(tmp_path / "out"))
    sink.take(call("sched_op.poll", 3, error="EINVAL"))
    sink.take(console(HOSTILE))
    sink.close()
    first, second = map(json.loads, (tmp_path / "out").read_text().splitlines())
    assert first == {
        "time_us": 3.0, "domid": 1, "vcpu": 0, "kind": "hypercall", "name": "sched_op.poll",
        "args": {"port": 5, "gfn": 32}, "result": -22, "error": "EINVAL", "latency_us": 10.0,
    }  # fmt: skip
    assert second["args"] == {"text": HOSTILE}
    assert "vcpu" not in second


# -- the table ------------------------------------------------------------------------------------------------------------


def test_summary_counts_times_and_sorts(tmp_path: Path) -> None:
    sink = SummarySink(Output(tmp_path / "out"))
    for record in (call("a", latency_us=10), call("b", latency_us=60), call("a", latency_us=30, error="EINVAL")):
        sink.take(record)
    sink.close()
    table = [row.split() for row in (tmp_path / "out").read_text().splitlines()]
    assert table[2] == ["60.00", "0.000060", "60.0", "60", "1", "b"]
    assert table[3] == ["40.00", "0.000040", "20.0", "30", "2", "1", "a"]
    assert table[-1] == ["100.00", "0.000100", "3", "1", "total"]


def test_summary_of_nothing_and_of_too_much(tmp_path: Path) -> None:
    sink = SummarySink(Output(tmp_path / "out"))
    assert sink.table()[-1].split() == ["100.00", "0.000000", "0", "total"]
    for number in range(5000):
        sink.take(call(f"hypercall_{number}"))
    assert len(sink.table()) < 4110
    assert any(row.endswith("(others)") for row in sink.table())
    sink.close()


# -- the Chrome trace -----------------------------------------------------------------------------------------------------


def test_perfetto(tmp_path: Path) -> None:
    sink = PerfettoSink(tmp_path / "out")
    for record in (call("iret", 5, vcpu=1), console(HOSTILE, 6), Record(7000, 1, 0, Kind.EVENT, "virq", {"port": 1})):
        sink.take(record)
    sink.close()
    events = json.loads((tmp_path / "out").read_text())["traceEvents"]
    shown = [event for event in events if event["ph"] != "M"]
    assert [(event["ph"], event["name"], event["ts"], event["tid"]) for event in shown] == [
        ("X", "iret", 5.0, 1), ("i", HOSTILE, 6.0, 1003), ("i", "virq", 7.0, 1001),
    ]  # fmt: skip
    assert shown[0]["dur"] == 10.0
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {1: "vCPU 1", 1003: "console", 1001: "event"}


def test_perfetto_of_nothing(tmp_path: Path) -> None:
    PerfettoSink(tmp_path / "out").close()
    assert json.loads((tmp_path / "out").read_text())["traceEvents"] == []


# -- the picture ----------------------------------------------------------------------------------------------------------


def picture(path: Path, *records: Record, title: str = "t") -> ET.Element:
    sink = TimelineSink(path, title)
    for record in records:
        sink.take(record)
    sink.close()
    return ET.fromstring(path.read_text())


def test_timeline_has_a_lane_for_each_and_marks(tmp_path: Path) -> None:
    records = [call("sched_op.block", index * 100, vcpu=index % 2) for index in range(100)]
    records += [console("Linux version 6.1.0-x (y)", 4000), call("sched_op.shutdown", 10_000)]
    root = picture(tmp_path / "out.svg", *records)
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert {"hypercalls, vCPU 0", "hypercalls, vCPU 1", "console", "sched_op"} <= set(texts)
    assert "Linux 6.1.0-x 0.004 s" in texts
    assert any(text.startswith("shutdown") for text in texts)
    assert any("51 in all" in text for text in texts)


def test_timeline_survives_what_guests_write(tmp_path: Path) -> None:
    root = picture(tmp_path / "out.svg", console(f"reboot: {HOSTILE}"), call(HOSTILE), title=HOSTILE)
    assert not list(root.iter(f"{SVG}script"))


def test_timeline_of_nothing(tmp_path: Path) -> None:
    assert picture(tmp_path / "out.svg").tag == f"{SVG}svg"


def test_labels_do_not_lie_on_each_other(tmp_path: Path) -> None:
    records = [
        Record(index, 1, None, Kind.XENSTORE, "WRITE", {"path": f"device/vif/{index}/state", "value": "4"})
        for index in range(20)
    ]
    root = picture(tmp_path / "out.svg", *records, call("iret", 1_000_000))
    places = sorted(
        float(element.get("x", "0")) for element in root.iter(f"{SVG}text") if "connected" in (element.text or "")
    )
    assert len(places) == 20
    assert all(after - before >= 12 for before, after in pairwise(places))


def test_density_stays_small_and_loses_nothing() -> None:
    density = Density()
    for second in range(0, 100_000, 7):
        density.add("lane", "group", second * 1_000_000_000)
    columns = density.columns("lane", 100, density.end_ns)
    assert sum(column.get("group", 0) for column in columns) == len(range(0, 100_000, 7))
    assert max(column["group"] for column in columns) < 2 * min(column["group"] for column in columns)


def test_milestones_are_few() -> None:
    milestones = Milestones()
    for number in range(1000):
        milestones.take(console(f"reboot: {number}", number))
    assert len(milestones.marks) == 40
    assert milestones.marks[0] == (0, "0") or milestones.marks[0][0] == 0


@pytest.mark.skipif(not shutil.which("rsvg-convert"), reason="rsvg-convert is not installed")
def test_a_timeline_as_png(tmp_path: Path) -> None:
    sink = TimelineSink(tmp_path / "out.png", HOSTILE)
    sink.take(call("iret"))
    sink.close()
    data = (tmp_path / "out.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 1280


def test_a_png_needs_its_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="librsvg2-bin"):
        TimelineSink(tmp_path / "out.png")


# -- over a connection ------------------------------------------------------------------------------------------------------


def test_records_go_over_a_connection_unchanged() -> None:
    one = call("event_channel_op.send", 5, 7, error="EINVAL", depth=1)
    one.args = {"a": Symbol("X"), "b": [1, Symbol("..."), {"c": "text", "d": Symbol("Y")}], "e": HOSTILE}
    one.out, one.result, one.reason, one.in_guest = {"port": 3}, ["a", Symbol("b")], "why", True
    for record in (one, console(HOSTILE)):
        line_ = wire.encode(record)
        assert line_.count(b"\n") == 1
        again = wire.decode(json.loads(line_))
        assert again == record
        assert line(again) == line(record)
