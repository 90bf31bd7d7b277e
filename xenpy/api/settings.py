"""Keyword arguments as settings of a configuration."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.config import DomainConfig

Setting = str | int | os.PathLike[str] | list[str] | tuple[str, ...]
"""The value of an xl.cfg key; True and False are 1 and 0."""


def load_with(path: str | os.PathLike[str], settings: Mapping[str, Setting]) -> DomainConfig:
    """Return the configuration in a file with `settings` in place of its own. Raises ConfigError."""
    from xenpy.config import load

    arguments = [f"{key}={_value(key, value)}" for key, value in settings.items()]
    try:
        return load(os.fspath(path), arguments)
    except ConfigError as error:
        raise ConfigError(_named(str(error), list(settings.items()))) from None


def _named(message: str, settings: list[tuple[str, Setting]]) -> str:
    """Return a message in which a position on a command line, which there is none of, is the setting itself."""
    import re

    from xenpy.config.grammar import COMMAND_LINE

    def name(match: re.Match[str]) -> str:
        key, value = settings[int(match[1]) - 1]
        return f"{key}={(os.fspath(value) if isinstance(value, os.PathLike) else value)!r}"

    return re.sub(rf"{re.escape(COMMAND_LINE)}:(\d+)(?::\d+)?", name, message)


def _value(key: str, value: Setting) -> str:
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(quoted(key, item) for item in value)}]"
    return quoted(key, value)


def quoted(key: str, value: str | os.PathLike[str]) -> str:
    """Return a string in the grammar's quotes. Ref: xlcfg grammar, strings end with their line"""
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"setting {key}: {value!r} is neither text, a number nor a list of texts")
    text = os.fspath(value)
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(char, escape)
    return f'"{text}"'
