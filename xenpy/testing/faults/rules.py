"""Rules: what goes wrong, when, and how. In text: EXPR:ACTION[:when=N|N+|N+STEP|N..M][:chance=P], EXPR:ACTION[:at=TIME]"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenpy.abi.grant_table import GNTST
from xenpy.errors import ConfigError, Errno
from xenpy.testing.trace.filters import Filter
from xenpy.testing.trace.record import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.testing.trace.record import Record

_MAX_DELAY_S: Final = 60.0
_MAX_AT_S: Final = 24 * 3600.0
_MAX_JUMP_S: Final = 100 * 365 * 24 * 3600.0
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_TIME: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s)", re.ASCII)
_WHEN: Final = re.compile(r"(?P<first>\d{1,9})(?:(?P<plus>\+)(?P<step>\d{1,9})?|\.\.(?P<last>\d{1,9}))?", re.ASCII)


class Action(Enum):
    """What goes wrong."""

    ERROR = "error"
    DELAY = "delay"
    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    KILL = "kill"
    CLOSE = "close"
    UNPLUG = "unplug"
    DOWN = "down"
    UP = "up"
    JUMP = "jump"


_POSSIBLE: Final = {
    Kind.HYPERCALL: (Action.ERROR, Action.DELAY, Action.DROP, Action.DUPLICATE),
    Kind.XENSTORE: (Action.ERROR, Action.DROP, Action.DUPLICATE),
    Kind.EVENT: (Action.DELAY, Action.DROP, Action.DUPLICATE, Action.REORDER),
    Kind.GRANT: (Action.ERROR,),
    Kind.REQUEST: (Action.ERROR, Action.DELAY, Action.DROP, Action.DUPLICATE, Action.REORDER),
    Kind.DEVICE: (Action.KILL, Action.CLOSE, Action.UNPLUG, Action.DOWN, Action.UP),
    Kind.CLOCK: (Action.JUMP,),
}
TIMED: Final = frozenset((Kind.DEVICE, Kind.CLOCK))
"""What is struck by the clock: nothing has to happen for it."""
_DEVICE: Final = re.compile(r"\w+/\d+", re.ASCII)
_UNSUPPORTED: Final = Errno.EOPNOTSUPP


@dataclass(slots=True)
class Rule:
    """One rule. It counts what it matches, from 1; `step` 0 means every one from `first` to `last`, which None leaves open.

    `error` is an Errno, or a GNTST for grants; `delay_s`, in seconds, is how long to wait, or how far to jump. `at_s` is when a rule of the
    kinds TIMED strikes, after it has been put in force. The dice are the rule's own, so that other rules do not matter.
    """

    text: str
    kind: Kind
    only: Filter
    action: Action
    error: int = 0
    delay_s: float = 0.0
    at_s: float = 0.0
    names: tuple[str, ...] = ()
    first: int = 1
    last: int | None = None
    step: int = 0
    chance: float = 1.0
    dice: random.Random = field(default_factory=random.Random)
    seen: int = 0

    def strikes(self, subject: Record) -> bool:
        """Tell whether the rule strikes now; to be asked once for everything that happens."""
        if subject.kind is not self.kind or not self.only.passes(subject):
            return False
        self.seen += 1
        number = self.seen
        if number < self.first or (self.last is not None and number > self.last):
            return False
        if self.step and (number - self.first) % self.step:
            return False
        return self.chance >= 1.0 or self.dice.random() < self.chance


def parse(texts: Iterable[str], seed: int = 0) -> list[Rule]:
    """Return the rules that texts describe; the same texts and seed throw the same dice. Raises ConfigError."""
    return [_parse(text, random.Random(f"{seed}/{number}")) for number, text in enumerate(texts)]


def _parse(text: str, dice: random.Random) -> Rule:
    expression, *parts = text.split(":")
    kind_name = expression.partition("=")[0]
    kinds = {kind.value: kind for kind in _POSSIBLE}
    if kind_name not in kinds:
        raise ConfigError(f"--fault {text}: {kind_name!r} is none of {', '.join(kinds)}")
    kind = kinds[kind_name]
    actions = [part for part in parts if part.partition("=")[0] in {action.value for action in Action}]
    if len(actions) != 1:
        raise ConfigError(f"--fault {text}: exactly one of {_names(kind)} is needed")
    name, _, value = actions[0].partition("=")
    action = Action(name)
    if action not in _POSSIBLE[kind]:
        raise ConfigError(f"--fault {text}: {kind.value} knows {_names(kind)}, not {name}")
    rule = Rule(text, kind, Filter([expression], kinds=kinds), action, dice=dice)
    rule.names = tuple(expression.partition("=")[2].split(","))
    if kind is Kind.DEVICE and not all(_DEVICE.fullmatch(name) for name in rule.names):
        raise ConfigError(f"--fault {text}: a device is named like vbd/51712 or vif/0")
    if kind is Kind.REQUEST and action is Action.ERROR and value in ("", _UNSUPPORTED.name):
        rule.error = _UNSUPPORTED if value else Errno.EIO
    elif action is Action.ERROR:
        rule.error = _error(text, kind, value)
    elif action is Action.DELAY:
        rule.delay_s = _time(text, value, _MAX_DELAY_S)
    elif action is Action.JUMP:
        back = value.startswith("-")
        rule.delay_s = _time(text, value.removeprefix("-"), _MAX_JUMP_S) * (-1 if back else 1)
    elif value:
        raise ConfigError(f"--fault {text}: {name} takes no value")
    for part in parts:
        if part is not actions[0]:
            _condition(rule, part)
    return rule


def _names(kind: Kind) -> str:
    return ", ".join(action.value for action in _POSSIBLE[kind])


def _error(text: str, kind: Kind, value: str) -> int:
    if kind is Kind.REQUEST:
        raise ConfigError(f"--fault {text}: a request fails with error or error={_UNSUPPORTED.name}, not {value}")
    members = GNTST.__members__ if kind is Kind.GRANT else Errno.__members__
    if value not in members or members[value] == GNTST.okay:
        example = "bad_gntref" if kind is Kind.GRANT else "ENOMEM"
        raise ConfigError(f"--fault {text}: {value!r} is not the name of an error such as {example}")
    return int(members[value])


def _time(text: str, value: str, most: float) -> float:
    found = _TIME.fullmatch(value)
    seconds = float(found[1]) * _UNITS[found[2]] if found else -1.0
    if not 0 < seconds <= most:
        raise ConfigError(f"--fault {text}: {value!r} is not a time such as 20ms, at most {most:g}s")
    return seconds


def _condition(rule: Rule, part: str) -> None:
    key, _, value = part.partition("=")
    if rule.kind in TIMED:
        if key != "at":
            raise ConfigError(f"--fault {rule.text}: {part!r} is not at=TIME")
        rule.at_s = _time(rule.text, value, _MAX_AT_S)
    elif key == "when" and (found := _WHEN.fullmatch(value)) and int(found["first"]):
        rule.first = int(found["first"])
        if found["plus"]:
            rule.step = int(found["step"] or 1)
        else:
            rule.last = int(found["last"] or rule.first)
        if rule.last is not None and rule.last < rule.first:
            raise ConfigError(f"--fault {rule.text}: {value} ends before it begins")
    elif key == "chance" and re.fullmatch(r"0?\.\d{1,9}|0|1", value, re.ASCII):
        rule.chance = float(value)
    else:
        raise ConfigError(f"--fault {rule.text}: {part!r} is neither when=N, N+, N+STEP or N..M nor chance=0.5")
