"""The expressions of `xenpy strace -e`."""

from __future__ import annotations

import pytest

from xenpy.errors import ConfigError
from xenpy.testing.trace.filters import Filter
from xenpy.testing.trace.record import Kind, Record


def record(
    kind: Kind = Kind.HYPERCALL,
    name: str = "memory_op.populate_physmap",
    *,
    error: str = "",
    vcpu: int | None = 0,
    path: str = "",
) -> Record:
    return Record(0, 1, vcpu, kind, name, {"path": path} if path else {}, error=error)


def passes(*expressions: str, **of: object) -> bool:
    return Filter(expressions).passes(record(**of))


def test_all_but_the_console_passes_by_default() -> None:
    for kind in set(Kind) - {Kind.REQUEST, Kind.DEVICE, Kind.CLOCK}:
        assert passes(kind=kind, name="x") is (kind is not Kind.CONSOLE)


def test_kinds_add_up() -> None:
    chosen = Filter(["event", "xenstore=read"])
    assert chosen.passes(record(Kind.EVENT, "virq"))
    assert chosen.passes(record(Kind.XENSTORE, "READ"))
    assert not chosen.passes(record(Kind.XENSTORE, "WRITE"))
    assert not chosen.passes(record())
    assert not chosen.wants_kind(Kind.GRANT)


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("hypercall=memory_op", {"memory_op.exchange", "memory_op.memory_map"}),
        ("hypercall=memory_op.exchange,sched_op", {"memory_op.exchange", "sched_op.poll"}),
        ("hypercall=!memory_op", {"sched_op.poll", "iret"}),
        ("hypercall=!memory_op.exchange,iret", {"memory_op.memory_map", "sched_op.poll"}),
        ("hypercall=*_op.p*", {"sched_op.poll"}),
    ],
)
def test_names_of_hypercalls_and_commands(expression: str, names: set[str]) -> None:
    every = ["memory_op.exchange", "memory_op.memory_map", "sched_op.poll", "iret"]
    chosen = Filter([expression])
    assert {name for name in every if chosen.passes(record(name=name))} == names
    assert {name for name in every if chosen.wants(Kind.HYPERCALL, name)} == names
    assert {name for name in every if chosen.wants(Kind.HYPERCALL, name)} == names, "and when asked again"


def test_paths() -> None:
    chosen = Filter(["xenstore=device/vif,/local/domain/0"])
    paths = {
        "device/vif/0/state": True,
        "/local/domain/1/device/vif": True,
        "device/vif2": False,
        "/local/domain/0/backend": True,
        "/local/domain/01": False,
    }
    assert {path: chosen.passes(record(Kind.XENSTORE, "READ", path=path)) for path in paths} == paths
    assert not chosen.passes(record(Kind.XENSTORE, "TRANSACTION_START"))


def test_status_and_vcpu_hold_for_all() -> None:
    assert passes("status=failed", error="EINVAL")
    assert not passes("status=failed")
    assert not passes("status=successful", error="EINVAL")
    assert not passes("status=failed", "xenstore", error="EINVAL")
    assert passes("status=failed", kind=Kind.FAULT, name="drop"), "a fault is neither"
    assert passes("vcpu=0,2", vcpu=2)
    assert not passes("vcpu=0,2", vcpu=1)
    assert passes("vcpu=0", kind=Kind.XENSTORE, name="READ", vcpu=None), "what no vCPU did is not of another one"


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("hypercal", "'hypercal' is none of hypercall, xenstore"),
        ("hypercall=", "nothing behind the equals sign"),
        ("hypercall=memroy_op", "no hypercall memroy_op; did you mean memory_op?"),
        ("hypercall=a,,b", "no hypercall a"),
        ("xenstore=reed", "no xenstore REED; did you mean READ"),
        ("xenstore=!device/vif", "not excluded"),
        ("event=,", "empty name"),
        ("status=bad", "one of failed, successful"),
        ("vcpu=x", "'x' is not the number of a vCPU"),
        ("vcpu=²", "is not the number of a vCPU"),
        ("", "is none of"),
    ],
)
def test_what_means_nothing_is_refused(expression: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Filter([expression])
    assert says in str(caught.value)
