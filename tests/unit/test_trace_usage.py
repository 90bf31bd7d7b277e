"""What of the ABI a kernel uses, and how kernels differ."""

from __future__ import annotations

from xenpy.testing.trace.record import Kind, Record, Symbol, Value
from xenpy.testing.trace.usage import Section, UsageSink, as_document, table


def call(name: str, *, error: str = "", **args: Value) -> Record:
    return Record(0, 5, 0, Kind.HYPERCALL, name, dict(args), error=error)


def message(name: str, path: str) -> Record:
    return Record(0, 5, None, Kind.XENSTORE, name, {"path": path})


def usage(*records: Record) -> UsageSink:
    sink = UsageSink(5)
    for record in records:
        sink.take(record)
    return sink


def test_hypercalls_are_counted_with_failures() -> None:
    items = usage(call("sched_op.poll"), call("sched_op.poll", error="EINVAL")).items[Section.HYPERCALLS]
    assert {name: str(item) for name, item in items.items()} == {"sched_op.poll": "2 (1 failed)"}


def test_commands_within_an_argument_are_told_apart() -> None:
    ops: list[Value] = [
        {"cmd": Symbol("PIN_L1_TABLE")},
        {"cmd": Symbol("PIN_L1_TABLE")},
        {"cmd": Symbol("SET_LDT")},
        Symbol("..."),
    ]
    assert set(usage(call("mmuext_op", op=ops)).items[Section.HYPERCALLS]) == {
        "mmuext_op.PIN_L1_TABLE", "mmuext_op.SET_LDT",
    }  # fmt: skip


def test_constants_are_features() -> None:
    sink = usage(
        call("vm_assist.enable", type=Symbol("runstate_update_flag")),
        call("memory_op.add_to_physmap", domid=Symbol("DOMID_SELF"), space=Symbol("shared_info"), gpfn=0x20),
    )
    assert set(sink.items[Section.FEATURES]) == {
        "vm_assist.enable type=runstate_update_flag", "memory_op.add_to_physmap space=shared_info",
    }  # fmt: skip


def test_xenstore_paths_do_not_depend_on_the_domid() -> None:
    sink = usage(
        message("READ", "device/vif/0/backend"), message("WATCH", "/local/domain/5/device/vif/0/backend"),
        message("READ", "/local/domain/0/backend/vif/5/0/state"), message("WRITE", "device/vif/0/queue-3/tx-ring-ref"),
        message("TRANSACTION_START", ""),
    )  # fmt: skip
    assert {path: item.access for path, item in sink.items[Section.XENSTORE].items()} == {
        "device/vif/0/backend": "nr", "backend/vif/DOMID/0/state": "r", "device/vif/0/queue-N/tx-ring-ref": "w",
    }  # fmt: skip


def test_a_guest_cannot_make_it_grow_for_ever() -> None:
    sink = usage(*(message("READ", f"x/{number}") for number in range(9000)))
    assert len(sink.items[Section.XENSTORE]) == 8192
    assert sink.dropped == 9000 - 8192


def test_differences() -> None:
    old = usage(call("iret"), call("iret"), call("set_gdt"), call("x.y", error="ENOSYS"), message("READ", "p"))
    new = usage(call("iret"), call("x.y"), message("WRITE", "p"))
    lines = table([("old", old), ("new", new)], all_rows=False)
    assert [row.split() for row in lines if row.startswith("  ")] == [
        ["old", "new"], ["set_gdt", "1", "-"], ["x.y", "1", "(1", "failed)", "1"], ["old", "new"], ["p", "r", "w"],
    ]  # fmt: skip
    assert not any("iret" in row for row in lines), "how often is not a difference"
    assert any("iret" in row for row in table([("old", old), ("new", new)], all_rows=True))


def test_no_differences() -> None:
    assert table([("a", usage(call("iret"))), ("b", usage(call("iret")))], all_rows=False) == []


def test_document() -> None:
    sink = usage(call("iret", error="EPERM"), message("READ", "p"))
    sink.note(Section.NOTES, "feature dom0")
    document = as_document([("k", sink)])["k"]
    assert document["hypercalls"] == {"iret": {"count": 1, "failed": 1, "access": ""}}
    assert document["xenstore"]["p"]["access"] == "r"
    assert "feature dom0" in document["ELF notes"]
