"""What marks the way of a boot: first signs of life, devices that connect, what Linux says of itself, the end."""

from __future__ import annotations

import re
from typing import Final

from xenpy.testing.trace.record import Kind, Record

_LINUX: Final = (
    (re.compile(r"Linux version (\S+)"), "Linux {}"),
    (re.compile(r"Freeing unused kernel image \(init"), "kernel initialised"),
    (re.compile(r"Run (/\S+) as init process"), "runs {}"),
    (re.compile(r"EXT4-fs \((\S+)\): mounted"), "{} mounted"),
    (re.compile(r"systemd\[1\]: Startup finished"), "startup finished"),
    (re.compile(r"^(\S+) login:"), "login prompt"),
    (re.compile(r"Kernel panic - not syncing: (.{0,40})"), "panic: {}"),
    (re.compile(r"reboot: (.{0,40})"), "{}"),
)
_DEVICE_STATE: Final = re.compile(r"device/(\w+/\d+)/state$")
_CONNECTED: Final = "4"
_MAX: Final = 40
_ONCE: Final = {
    Kind.HYPERCALL: "first hypercall",
    Kind.XENSTORE: "first xenstore message",
    Kind.CONSOLE: "first console line",
}


class Milestones:
    """Picks out of all records the few that a picture names; the same words are taken once."""

    def __init__(self) -> None:
        self._found: dict[str, int] = {}

    def take(self, record: Record) -> None:
        """Look at a record."""
        if record.kind in _ONCE:
            self._add(_ONCE[record.kind], record.time_ns)
        if record.kind is Kind.CONSOLE:
            text = str(record.args["text"])
            for pattern, label in _LINUX:
                if found := pattern.search(text):
                    self._add(label.format(*found.groups()), record.time_ns)
        elif record.kind is Kind.XENSTORE and record.name == "WRITE" and record.args.get("value") == _CONNECTED:
            if found := _DEVICE_STATE.search(str(record.args.get("path"))):
                self._add(f"{found[1]} connected", record.time_ns)
        elif record.name == "sched_op.shutdown":
            self._add(f"shutdown: {record.args.get('reason')}", record.time_ns)

    def _add(self, label: str, time_ns: int) -> None:
        if len(self._found) < _MAX:
            self._found.setdefault(label, time_ns)

    @property
    def marks(self) -> list[tuple[int, str]]:
        """Return times in ns and labels, in order."""
        return sorted((time_ns, label) for label, time_ns in self._found.items())
