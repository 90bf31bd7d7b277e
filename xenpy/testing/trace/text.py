"""Records as lines to read, in the manner of strace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.testing.trace.record import Kind, Symbol

if TYPE_CHECKING:
    from xenpy.testing.trace.output import Output
    from xenpy.testing.trace.record import Record, Value

_MAX_TEXT: Final = 64
"""Characters of a text that are shown."""
_BIG: Final = 1 << 20
"""Numbers from here on are addresses and bit patterns more often than counts."""
_DECIMAL: Final = ("_ns", "time", "timeout", "now")
_HEX: Final = frozenset(
    (
        "gfn", "mfn", "pfn", "gpfn", "gmfn", "idx", "buffer", "frame_list", "extent_start", "host_addr", "array_gfn",
        "control_gfn", "address", "base", "va", "val", "ptr", "p", "value", "idxs", "gpfns", "maddr", "rip", "arg",
    )
)  # fmt: skip


def value_text(value: Value, name: str = "") -> str:
    """Return a value as it is printed; `name` of its field tells numbers from addresses."""
    if isinstance(value, Symbol):
        return str(value)
    if isinstance(value, int):
        if value < 0 or name.endswith(_DECIMAL):
            return str(value)
        return hex(value) if name in _HEX or value >= _BIG else str(value)
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, list):
        return f"[{', '.join(value_text(item, name) for item in value)}]"
    return f"{{{fields_text(value)}}}"


def fields_text(fields: dict[str, Value]) -> str:
    """Return fields as name=value, ..."""
    return ", ".join(f"{name}={value_text(value, name)}" for name, value in fields.items())


def _quoted(text: str) -> str:
    shown = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT]
    escaped = "".join(_escape(char) for char in shown)
    return f'"{escaped}"' + ("..." if len(text) > _MAX_TEXT else "")


def _escape(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if char.isprintable() else repr(char)[1:-1]


def who(record: Record) -> str:
    """Return domain and vCPU the way Xen writes them: d1v0."""
    return f"d{record.domid}" + ("" if record.vcpu_id is None else f"v{record.vcpu_id}")


def line(record: Record) -> str:
    """Return a record as one line: when, who, what, what came of it, how long it took."""
    head = f"{record.time_ns / 1e9:12.6f} {who(record):5} {'  ' * record.depth}"
    body = _BODIES[record.kind](record)
    latency = f" <{record.latency_ns / 1000:.1f}us>" if record.latency_ns else " <in guest>" if record.in_guest else ""
    return f"{head}{body}{latency}"


def _refusal(record: Record) -> str:
    return f" {record.error}" + (f" ({record.reason})" if record.reason else "")


def _hypercall(record: Record) -> str:
    name, _, command = record.name.partition(".")
    inside = ", ".join(part for part in (command, fields_text(record.args)) if part)
    if record.error == "interrupted":
        return f"{name}({inside}) = ? interrupted: the domain ended"
    result = value_text(record.result)
    out = f" {{{fields_text(record.out)}}}" if record.out else ""
    return f"{name}({inside}) = {result}{_refusal(record) if record.error else ''}{out}"


def _xenstore(record: Record) -> str:
    said = ", ".join(
        value_text(value) if name == "path" else f"{name}={value_text(value)}" for name, value in record.args.items()
    )
    head = f"xenstore {record.name} {said}".rstrip()
    if record.error:
        return f"{head} ={_refusal(record)}"
    return head if record.name == "WATCH_EVENT" else f"{head} = {value_text(record.result)}"


def _event(record: Record) -> str:
    args = record.args
    source = (
        f"d{args['from']}p{args['from_port']} "
        if "from" in args
        else f"{value_text(args['virq'])} "
        if "virq" in args
        else ""
    )
    purpose = f" ({args['for']})" if "for" in args else ""
    return f"event {record.name} {source}-> d{args['to']}p{args['port']}{purpose}"


def _grant(record: Record) -> str:
    return f"grant {record.name} {fields_text(record.args)}" + (f" ={_refusal(record)}" if record.error else "")


def _console(record: Record) -> str:
    return f"console {value_text(record.args.get('text', ''))}"


def _fault(record: Record) -> str:
    return f"fault {record.name} {fields_text(record.args)}"


_BODIES: Final = {
    Kind.HYPERCALL: _hypercall,
    Kind.XENSTORE: _xenstore,
    Kind.EVENT: _event,
    Kind.GRANT: _grant,
    Kind.CONSOLE: _console,
    Kind.FAULT: _fault,
}


class TextSink:
    """Writes records as lines."""

    arguments = True

    def __init__(self, output: Output) -> None:
        self._output = output

    def take(self, record: Record) -> None:
        """Write a line."""
        self._output.write(line(record))

    def close(self) -> None:
        """Write what is left."""
        self._output.close()
