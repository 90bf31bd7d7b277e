"""The comma-separated `name=value` strings of device keys, such as vif= and vfb=."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.config.text import fail, nearest, parse_integer, quote

if TYPE_CHECKING:
    from collections.abc import Collection

    from xenpy.config.grammar import Atom, Position
    from xenpy.errors import ConfigError


MAX_SPEC = 8192  # characters: two paths of PATH_MAX; string work below is quadratic in it


class Spec:
    """A device string, taken apart; `key` is the configuration key it belongs to.

    Blanks around names and values are dropped. Raises ConfigError for a name that is in neither `names` nor `flags`,
    for one that is given twice unless it may be `repeated`, and for a name without a value.
    """

    def __init__(
        self, key: str, atom: Atom, names: Collection[str], flags: Collection[str] = (), repeated: Collection[str] = ()
    ) -> None:
        self._key = key
        self._text = atom.text
        self.position: Position = atom.position
        self.flags: set[str] = set()
        self._values: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}
        if len(atom.text) > MAX_SPEC:
            raise self.fail(f"it is longer than {MAX_SPEC} characters")
        for part in filter(None, (part.strip() for part in atom.text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals and name in flags:
                self.flags.add(name)
                continue
            if name not in names:
                what = f"unknown parameter {quote(name)}{nearest(name, [*names, *flags])}"
                raise self.fail(f"{name} takes no value" if name in flags else what)
            if not equals:
                raise self.fail(f"{name} needs a value: {name}=...")
            if name in repeated:
                self._lists.setdefault(name, []).append(value)
                continue
            if name in self._values:
                raise self.fail(f"{name} is given twice")
            self._values[name] = value

    def fail(self, message: str) -> ConfigError:
        """Return the error `message` about this device, to be raised by the caller."""
        return fail(self.position, f"{self._key} {quote(self._text)}: {message}")

    def get(self, name: str) -> str | None:
        """Return the value of `name`, or None when it is absent or empty."""
        return self._values.get(name) or None

    def every(self, name: str) -> list[str]:
        """Return the values of a `name` that may be repeated."""
        return self._lists.get(name, [])

    def require(self, name: str) -> str:
        """Return the value of `name`, which must be there."""
        value = self.get(name)
        if value is None:
            raise self.fail(f"{name}= is missing")
        return value

    def number(self, name: str, default: int, *, low: int = 0, high: int) -> int:
        """Return the number `name`, from `low` to `high`."""
        text = self._values.get(name)
        if text is None:
            return default
        value = parse_integer(text)
        if value is None or not low <= value <= high:
            raise self.fail(f"{name}={text} is not a number from {low} to {high}")
        return value

    def boolean(self, name: str, *, default: bool = False) -> bool:
        """Return whether the number `name` is not zero."""
        text = self._values.get(name)
        if text is None:
            return default
        value = parse_integer(text)
        if value is None:
            raise self.fail(f"{name}={text} is neither 0 nor 1")
        return value != 0

    def refuse_backend(self) -> None:
        """Refuse a backend= that names another domain than 0, where xenpy's backends are."""
        if not is_own_backend(self.get("backend") or ""):
            raise self.fail(f"backend={self.get('backend')} is refused: {OTHER_BACKEND}")


OTHER_BACKEND = "backends are part of xenpy, no guest can provide them"


def is_own_backend(name: str) -> bool:
    """Tell whether a backend= names the domain whose part xenpy's own backends play."""
    return name in ("", "0", "dom0", "Domain-0")
