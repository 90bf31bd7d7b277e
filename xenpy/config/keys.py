"""The keys of xl.cfg: what xenpy does with each, and the check that a configuration asks for nothing it cannot have.

xl ignores a key it does not know, and one that is meant for another kind of guest. A test bed cannot afford that: both
are errors here, unless `lenient` is asked for. A refused key is accepted as long as it asks for nothing (0, an empty
list).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from xenpy.config.grammar import Atom, ListValue, Settings, Value
from xenpy.config.model import GuestType, Ignored
from xenpy.config.text import fail, nearest, parse_integer

if TYPE_CHECKING:
    from collections.abc import Mapping

_NOTHING = frozenset(("", "none", "disabled", "default"))


class Kind(StrEnum):
    """The values a key takes."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "boolean"
    LIST = "list"
    EITHER = "string or list"


class Status(StrEnum):
    """What becomes of a key."""

    ACTED = "acted on"
    IGNORED = "accepted, no effect"
    REFUSED = "refused"
    FOREIGN = "refused, for other guests"  # xl ignores it for PV and PVH


class Key(NamedTuple):
    """One row of the table; `note` is its documentation, and the reason when it is not acted on."""

    name: str
    kind: Kind
    types: tuple[GuestType, ...]
    status: Status
    note: str


def table() -> Mapping[str, Key]:
    """Return every key of xl.cfg and of xenpy by name, in the order of the documentation."""
    from xenpy.config.keytable import KEYS

    return KEYS


def known_keys() -> tuple[str, ...]:
    """Return the names of all keys that are not an error to write, whether acted on, ignored or refused."""
    return tuple(table())


def asks_nothing(value: Value) -> bool:
    """Tell whether a value leaves a feature off: 0, an empty list or string, "none", "disabled" or "default"."""
    if isinstance(value, ListValue):
        return not value.items
    return value.text in _NOTHING or parse_integer(value.text) == 0


def check(settings: Settings, guest_type: GuestType, warnings: list[str], *, lenient: bool = False) -> list[Ignored]:
    """Refuse the first setting that xenpy cannot honour for this type of guest; return those that have no effect.

    With `lenient`, what xl would ignore is a warning. Raises ConfigError naming the key, its place and the reason.
    """
    ignored = []
    keys = table()
    for name, setting in settings.items():
        key = keys.get(name)
        if key is None:
            problem = f"unknown key '{name}'{nearest(name, keys)}"
        elif key.status is Status.FOREIGN:
            problem = f"key '{name}' is not for {guest_type.upper()} guests: {key.note}"
        elif guest_type not in key.types:
            problem = f"key '{name}' is for {_plural(key.types)} guests only: {key.note}"
        else:
            _check_kind(key, setting.value)
            if key.status is Status.REFUSED and not asks_nothing(setting.value):
                raise fail(setting.position, f"key '{name}' is refused: {key.note}")
            if key.status is Status.IGNORED:
                ignored.append(Ignored(name, setting.position, key.note))
            continue
        if key and asks_nothing(setting.value):
            continue
        if not lenient:
            raise fail(setting.position, problem)
        warnings.append(f"{setting.position}: ignored, as xl does: {problem}")
    return ignored


def _plural(types: tuple[GuestType, ...]) -> str:
    return " and ".join(kind.upper() for kind in types)


def _check_kind(key: Key, value: Value) -> None:
    if isinstance(value, ListValue) and key.kind not in (Kind.LIST, Kind.EITHER):
        raise fail(value.position, f"key '{key.name}' takes one {key.kind}, not a list")
    if isinstance(value, Atom) and key.kind is Kind.LIST:
        raise fail(value.position, f"key '{key.name}' takes a list: write [ ... ] around it")
