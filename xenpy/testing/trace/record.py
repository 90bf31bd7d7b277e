"""One thing that a guest did, or that was done to it, decoded; and who takes such records."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from xenpy import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Value: TypeAlias = "int | str | list[Value] | dict[str, Value]"
"""An argument: a number, a text, a `Symbol`, or what is made of them."""


class Symbol(str):
    """A constant by its name in Xen's headers, without the prefix that all of its kind share."""

    __slots__ = ()


class Kind(Enum):
    """What a record is of; the values are the words of the command line and of JSON."""

    HYPERCALL = "hypercall"
    XENSTORE = "xenstore"
    EVENT = "event"
    GRANT = "grant"
    CONSOLE = "console"
    FAULT = "fault"
    REQUEST = "request"
    """Of a device's ring; faults strike them, traces do not show them, for processes of their own may carry them out."""
    DEVICE = "device"
    """A whole device, for faults."""
    CLOCK = "clock"
    """The guest's time, for faults."""


@dataclass(slots=True)
class Record:
    """What happened. Times are in ns, `time_ns` since the trace began.

    `result` is a hypercall's return value or a message's answer, `out` what was copied out, `error` the name of the errno or status of
    a refusal and `reason` ours for it. `vcpu_id` is None for what no vCPU did; `depth` is 1 within a multicall, whose own record comes
    after those of its calls. `in_guest` tells that a hypercall was carried out within the guest: how long it took is not known.
    """

    time_ns: int
    domid: int
    vcpu_id: int | None
    kind: Kind
    name: str
    args: dict[str, Value] = field(default_factory=dict)
    result: Value = 0
    out: dict[str, Value] = field(default_factory=dict)
    error: str = ""
    reason: str = ""
    latency_ns: int = 0
    depth: int = 0
    in_guest: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the record as JSON has it: times in us, and nothing that is empty."""
        document: dict[str, Any] = {"time_us": self.time_ns / 1000, "domid": self.domid}
        if self.vcpu_id is not None:
            document["vcpu"] = self.vcpu_id
        document |= {"kind": self.kind.value, "name": self.name, "args": self.args, "result": self.result}
        optional = {
            "out": self.out,
            "error": self.error,
            "reason": self.reason,
            "depth": self.depth,
            "in_guest": self.in_guest,
        }
        document |= {key: value for key, value in optional.items() if value}
        if not self.in_guest:
            document["latency_us"] = self.latency_ns / 1000
        return document


class Sink(Protocol):
    """Takes records. Called under the host's lock, from any thread; an OSError ends what it gets, not the guest."""

    @property
    def arguments(self) -> bool:
        """Tell whether it looks at `args` and `out`; decoding them is most of what a trace costs."""

    def take(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Write what is left. Raises OSError."""


@runtime_checkable
class Defers(Protocol):
    """A sink that may never look at what it takes."""

    def defer(self, make: Callable[[], list[Record]]) -> None:
        """Take what makes some records, in place of these."""


def close(sinks: Iterable[Sink]) -> None:
    """Have sinks write what is left, and say which cannot."""
    for sink in sinks:
        try:
            sink.close()
        except OSError as error:
            with suppress(OSError):  # stderr may be what cannot be written
                log.note(f"the trace is not complete: {error.strerror or error}")
