"""A trace for ui.perfetto.dev and chrome://tracing. Ref: Trace Event Format (Google, 2016), "X", "i" and "M" events"""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any, Final

from xenpy.testing.trace.output import open_file
from xenpy.testing.trace.record import Kind

if TYPE_CHECKING:
    import os

    from xenpy.testing.trace.record import Record

_TRACKS: Final = {Kind.XENSTORE: 1000, Kind.EVENT: 1001, Kind.GRANT: 1002, Kind.CONSOLE: 1003, Kind.FAULT: 1004}
"""Thread ids behind those of the vCPUs, whose tracks hold their hypercalls."""


class PerfettoSink:
    """Writes a Chrome trace: a process for each domain, a thread for each vCPU and each other kind. Raises ConfigError."""

    arguments = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: IO[str] = open_file(path)
        self._encode = json.JSONEncoder(separators=(",", ":")).encode
        self._named: set[tuple[int, int]] = set()
        self._separator = '{"displayTimeUnit":"ns","traceEvents":[\n'

    def take(self, record: Record) -> None:
        """Write an event."""
        track = record.vcpu_id or 0 if record.kind is Kind.HYPERCALL else _TRACKS[record.kind]
        self._name(record, track)
        name = str(record.args["text"]) if record.kind is Kind.CONSOLE else record.name
        details = dict(record.args)
        if record.kind in (Kind.HYPERCALL, Kind.XENSTORE):
            details["result"] = record.result
        details |= {key: value for key, value in (("error", record.error), ("reason", record.reason)) if value}
        event: dict[str, Any] = {
            "name": name, "cat": record.kind.value, "pid": record.domid, "tid": track, "ts": record.time_ns / 1000,
            "args": details | ({"out": record.out} if record.out else {}),
        }  # fmt: skip
        if record.kind in (Kind.CONSOLE, Kind.FAULT) or not record.latency_ns:
            self._write(event | {"ph": "i", "s": "t"})
        else:
            self._write(event | {"ph": "X", "dur": record.latency_ns / 1000})

    def _name(self, record: Record, track: int) -> None:
        """Name a track when it is first used."""
        domid = record.domid
        if (domid, track) in self._named:
            return
        self._named.add((domid, track))
        title = f"vCPU {track}" if record.kind is Kind.HYPERCALL else record.kind.value
        for what, name in (("process_name", f"domain {domid}"), ("thread_name", title)):
            self._write({"name": what, "ph": "M", "pid": domid, "tid": track, "args": {"name": name}})
        self._write({"name": "thread_sort_index", "ph": "M", "pid": domid, "tid": track, "args": {"sort_index": track}})

    def _write(self, event: dict[str, Any]) -> None:
        self._file.write(self._separator + self._encode(event))
        self._separator = ",\n"

    def close(self) -> None:
        """End the document."""
        if self._separator.startswith("{"):
            self._file.write(self._separator)
        self._file.write("\n]}\n")
        self._file.close()
