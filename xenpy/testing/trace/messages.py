"""Xenstore messages by name. Ref: docs/misc/xenstore.txt"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.xs_wire import MsgType
from xenpy.pv.xenstore.wire import split_strings

if TYPE_CHECKING:
    from xenpy.pv.xenstore.wire import Message
    from xenpy.testing.trace.record import Value

_TYPES: Final = {int(kind): kind.name.removeprefix("XS_") for kind in MsgType}
TYPE_NAMES: Final = frozenset(_TYPES.values())
_SECOND: Final = {MsgType.XS_WRITE: "value", MsgType.XS_WATCH: "token", MsgType.XS_UNWATCH: "token"}
_LISTS: Final = frozenset((MsgType.XS_DIRECTORY, MsgType.XS_DIRECTORY_PART, MsgType.XS_GET_PERMS))
_NO_PATH: Final = frozenset((MsgType.XS_TRANSACTION_START, MsgType.XS_RESET_WATCHES))
_NUMBERED: Final = {
    MsgType.XS_TRANSACTION_END: "commit", MsgType.XS_GET_DOMAIN_PATH: "domid", MsgType.XS_IS_DOMAIN_INTRODUCED: "domid",
    MsgType.XS_RELEASE: "domid", MsgType.XS_RESUME: "domid", MsgType.XS_CONTROL: "command",
}  # fmt: skip


def text(data: bytes) -> str:
    """Return a path or value as text; what is not UTF-8 shows as backslash escapes."""
    return data.decode("utf-8", "backslashreplace")


def type_name(kind: int) -> str:
    """Return the name of a message type without XS_."""
    return _TYPES.get(kind, f"type {kind}")


def request(message: Message) -> dict[str, Value]:
    """Return what a request says."""
    found: dict[str, Value] = {}
    kind, payload = message.type, message.payload
    if kind == MsgType.XS_WRITE:  # a value may contain NUL
        path, _, value = payload.partition(b"\0")
        found |= {"path": text(path), "value": text(value)}
    elif kind in _NUMBERED:
        found[_NUMBERED[MsgType(kind)]] = " ".join(map(text, split_strings(payload)))
    elif kind not in _NO_PATH:
        first, *rest = split_strings(payload) or [b""]
        found["path"] = text(first)
        if kind in _SECOND and rest:
            found[_SECOND[MsgType(kind)]] = text(rest[0])
        elif rest:
            found["rest"] = [text(part) for part in rest]
    if message.tx_id:
        found["tx"] = message.tx_id
    return found


def answer(kind: int, payload: bytes) -> Value:
    """Return what an answer of success says."""
    if kind in _LISTS:
        return [text(part) for part in split_strings(payload)]
    return text(payload.removesuffix(b"\0"))
