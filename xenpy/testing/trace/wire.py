"""Records as they go from a domain's process to who traces it: JSON arrays, one a line; what is no record is an object."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from xenpy.testing.trace.record import Kind, Record, Symbol

if TYPE_CHECKING:
    from xenpy.testing.trace.record import Value

_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode
_KINDS: Final = {kind.value: kind for kind in Kind}
_SYMBOL: Final = "="
"""The one key of what stands for a Symbol; no field is called so."""


def encode(record: Record) -> bytes:
    """Return a record as a line."""
    args, out = _plain(record.args), _plain(record.out) if record.out else None
    fields = (
        record.time_ns, record.domid, record.vcpu_id, record.kind.value, record.name, args, _plain(record.result), out,
        record.error, record.reason, record.latency_ns, record.depth, record.in_guest,
    )  # fmt: skip
    return _ENCODE(fields).encode() + b"\n"


def decode(fields: list[Any]) -> Record:
    """Return the record that a line's array stands for."""
    time_ns, domid, vcpu_id, kind, name, args, result, out, *rest = fields
    args, out = _valued(args), _valued(out or {})
    return Record(time_ns, domid, vcpu_id, _KINDS[kind], name, args, _valued(result), out, *rest)


def _plain(value: Value) -> Any:
    if isinstance(value, Symbol):
        return {_SYMBOL: str(value)}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _valued(value: Any) -> Any:
    if isinstance(value, dict):
        if _SYMBOL in value:
            return Symbol(value[_SYMBOL])
        return {name: _valued(item) for name, item in value.items()}
    return [_valued(item) for item in value] if isinstance(value, list) else value
