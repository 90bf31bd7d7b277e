"""Which records are wanted: the `-e` expressions of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from xenpy.errors import ConfigError
from xenpy.hypercalls import dispatch
from xenpy.testing.trace.calls import OTHER_NAMES
from xenpy.testing.trace.messages import TYPE_NAMES
from xenpy.testing.trace.record import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xenpy.testing.trace.record import Record

_STATUSES: Final = ("failed", "successful")
_FAULTS_ONLY: Final = frozenset((Kind.REQUEST, Kind.DEVICE, Kind.CLOCK))
_TRACED: Final = {kind.value: kind for kind in Kind if kind not in _FAULTS_ONLY}
_SHOWN_BY_DEFAULT: Final = frozenset(_TRACED.values()) - {Kind.CONSOLE}
_NO_OUTCOME: Final = (Kind.CONSOLE, Kind.FAULT)
_GLOB: Final = frozenset("*?[")


@dataclass(slots=True)
class _Names:
    """The names that a kind is restricted to; none is all."""

    wanted: list[str] = field(default_factory=list)
    unwanted: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def match(self, name: str, purpose: str = "") -> bool:
        """Tell whether a name, its part before a full stop, or what it is for, is wanted."""
        if any(_matches(name, pattern) or pattern == purpose for pattern in self.unwanted):
            return False
        return not self.wanted or any(_matches(name, pattern) or pattern == purpose for pattern in self.wanted)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition(".")[0], pattern)


class Filter:
    """Lets records through: by default all but console lines, which go where the console goes.

    Each expression is KIND, KIND=NAME,... or KIND=!NAME,..., the kinds adding up, or one of status=failed, status=successful and
    vcpu=NUMBER,..., which hold for all kinds; `kinds` are those that there are. Raises ConfigError for one that means nothing.
    """

    def __init__(
        self, expressions: Iterable[str] = (), *, always: Iterable[Kind] = (), kinds: Mapping[str, Kind] = _TRACED
    ) -> None:
        self._words = kinds
        self._kinds: dict[Kind, _Names] = {}
        self._vcpus: set[int] = set()
        self._status = ""
        for expression in expressions:
            self._add(expression)
        if not self._kinds:
            self._kinds = {kind: _Names() for kind in _SHOWN_BY_DEFAULT}
        for kind in always:
            self._kinds.setdefault(kind, _Names())
        self._decided: dict[str, bool] = {}
        """Hypercall names that were looked at before; there are few."""

    # -- parsing ------------------------------------------------------------------------------------------------------

    def _add(self, expression: str) -> None:
        key, equals, values = expression.partition("=")
        if equals and not values:
            raise ConfigError(f"-e {expression}: there is nothing behind the equals sign")
        if key == "status":
            if values not in _STATUSES:
                raise ConfigError(f"-e {expression}: a status is one of {', '.join(_STATUSES)}")
            self._status = values
        elif key == "vcpu":
            self._add_vcpus(expression, values)
        elif key in self._words:
            kind = self._words[key]
            names = self._kinds.setdefault(kind, _Names())
            inverted = values.startswith("!")
            for value in values.removeprefix("!").split(",") if equals else ():
                self._add_name(expression, kind, names, value, inverted=inverted)
        else:
            kinds = ", ".join(self._words)
            raise ConfigError(f"-e {expression}: {key!r} is none of {kinds}, status, vcpu")

    def _add_vcpus(self, expression: str, values: str) -> None:
        for value in values.split(","):
            if not (value.isascii() and value.isdigit()):
                raise ConfigError(f"-e {expression}: {value!r} is not the number of a vCPU")
            self._vcpus.add(int(value))

    def _add_name(self, expression: str, kind: Kind, names: _Names, value: str, *, inverted: bool) -> None:
        if kind is Kind.XENSTORE:
            if "/" in value:
                if inverted:
                    raise ConfigError(f"-e {expression}: paths can be chosen, not excluded")
                names.paths.append(value)
                return
            value = value.upper()
        if not value:
            raise ConfigError(f"-e {expression}: there is an empty name")
        known = _known(kind)
        if known and not (_GLOB & set(value)) and value not in known:
            from difflib import get_close_matches

            close = get_close_matches(value, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"-e {expression}: there is no {kind.value} {value}{hint}")
        (names.unwanted if inverted else names.wanted).append(value)

    # -- deciding -----------------------------------------------------------------------------------------------------

    def wants_kind(self, kind: Kind) -> bool:
        """Tell whether any record of a kind may be wanted."""
        return kind in self._kinds

    def wants(self, kind: Kind, name: str) -> bool:
        """Tell whether a record of this name may be wanted: asked before anything is decoded."""
        if kind is not Kind.HYPERCALL:
            return self._match(kind, name)
        decided = self._decided.get(name)
        if decided is None:
            decided = self._match(kind, name)
            if len(self._decided) < 1024:
                self._decided[name] = decided
        return decided

    def _match(self, kind: Kind, name: str) -> bool:
        names = self._kinds.get(kind)
        return names is not None and names.match(name)

    def passes(self, record: Record) -> bool:
        """Tell whether a record is wanted."""
        if self._status and bool(record.error) != (self._status == "failed") and record.kind not in _NO_OUTCOME:
            return False
        if self._vcpus and record.vcpu_id is not None and record.vcpu_id not in self._vcpus:
            return False
        names = self._kinds.get(record.kind)
        if names is None or not names.match(record.name, str(record.args.get("for", ""))):
            return False
        return not names.paths or any(_is_at(record.args.get("path"), path) for path in names.paths)


def _is_at(path: object, wanted: str) -> bool:
    """Tell whether a path is at or below the wanted one, which may be relative to any node."""
    whole, part = f"/{path}/", f"/{wanted.strip('/')}/"
    return whole.replace("//", "/").startswith(part) if wanted.startswith("/") else part in whole


def _known(kind: Kind) -> set[str]:
    if kind is Kind.XENSTORE:
        return set(TYPE_NAMES)
    if kind is not Kind.HYPERCALL:
        return set()
    dispatch.load()
    known = {*dispatch.NAMES.values(), *OTHER_NAMES.values()}
    for function in dispatch.HYPERCALLS.values():
        if isinstance(function, dispatch.Hypercall):
            known |= {f"{function.name}.{op.name}" for op in function.ops.values()}
    return known
