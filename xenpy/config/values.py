"""Typed reading of settings: each method gives one key's value or an error that says what would be right."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from xenpy.config.grammar import Atom, ListValue
from xenpy.config.text import fail, parse_integer, quote

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from xenpy.config.grammar import Position, Settings

_T = TypeVar("_T")


class Reader:
    """The settings of one configuration, read by key; `warnings` collects what deserves a remark but no error."""

    def __init__(self, settings: Settings, warnings: list[str]) -> None:
        self._settings = settings
        self._warnings = warnings

    def warn(self, key: str, message: str) -> None:
        """Remark on a key that is set."""
        self._warnings.append(f"{self.position(key)}: key '{key}': {message}")

    def remark(self, message: str) -> None:
        """Remark on the configuration as a whole."""
        self._warnings.append(message)

    def __contains__(self, key: str) -> bool:
        return key in self._settings

    def position(self, key: str) -> Position:
        """Return where a key that is set stands."""
        return self._settings[key].position

    def atom(self, key: str) -> Atom | None:
        """Return the single value of `key`, or None when it is not set. Raises ConfigError for a list."""
        setting = self._settings.get(key)
        if setting is None:
            return None
        if isinstance(setting.value, Atom):
            return setting.value
        raise fail(setting.value.position, f"key '{key}' takes one value, not a list")

    def string(self, key: str) -> str | None:
        """Return the text of `key`, or None when it is not set."""
        atom = self.atom(key)
        return atom.text if atom else None

    def number(self, key: str, default: int, *, low: int, high: int) -> int:
        """Return the number of `key`, from `low` to `high`, in the base that its prefix says."""
        atom = self._number_atom(key)
        if atom is None:
            return default
        value = parse_integer(atom.text)
        if value is None or not low <= value <= high:
            raise fail(atom.position, f"key '{key}': {quote(atom.text)} is not a number from {low} to {high}")
        return value

    def flag(self, key: str) -> bool | None:
        """Return whether the number of `key` is not zero, or None when it is not set."""
        atom = self._number_atom(key)
        if atom is None:
            return None
        value = parse_integer(atom.text)
        if value is None:
            raise fail(atom.position, f"key '{key}': {quote(atom.text)} is neither 0 nor 1")
        return value != 0

    def _number_atom(self, key: str) -> Atom | None:
        """Return the value of a key whose texts must not be joined: `memory += 5` after 64 is not 645."""
        setting = self._settings.get(key)
        if setting and setting.append:
            raise fail(setting.position, f"key '{key}': += joins strings and lists, not numbers")
        return self.atom(key)

    def boolean(self, key: str, *, default: bool = False) -> bool:
        """Return `flag`, or `default` when `key` is not set."""
        value = self.flag(key)
        return default if value is None else value

    def choice(self, key: str, choices: Mapping[str, _T], default: _T) -> _T:
        """Return what the text of `key` stands for in `choices`."""
        atom = self.atom(key)
        if atom is None:
            return default
        if atom.text not in choices:
            raise fail(atom.position, f"key '{key}': {quote(atom.text)} is none of {', '.join(choices)}")
        return choices[atom.text]

    def items(self, key: str) -> Iterator[Atom]:
        """Yield the elements of the list `key`; a single value counts as a list of one. Refuses nested lists."""
        setting = self._settings.get(key)
        if setting is None:
            return
        if isinstance(setting.value, Atom):
            yield setting.value
            return
        for number, item in enumerate(setting.value.items):
            if isinstance(item, ListValue):
                raise fail(item.position, f"key '{key}': element {number} is a list; a string is expected")
            yield item
