"""Reading a configuration file and the settings that follow it on the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.config.building import build
from xenpy.config.grammar import MAX_TEXT, parse_override, parse_text
from xenpy.config.text import fail
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.config.model import DomainConfig


def load(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    type_override: str | None = None,
    lenient: bool = False,
    check_files: bool = True,
) -> DomainConfig:
    """Read a guest's configuration from `path`, which may be /dev/null, and apply `key=value` overrides after it.

    `type_override` stands for type=. With `lenient`, keys that xl ignores are warnings instead of errors. `check_files`
    makes a kernel or ramdisk that cannot be read an error with its place in the file. Raises ConfigError.
    """
    filename = os.fspath(path)
    settings = parse_text(read_text(filename), filename)
    settings = settings.extended(
        setting for number, argument in enumerate(overrides, 1) for setting in parse_override(argument, number)
    )
    config = build(settings, filename, type_override=type_override, lenient=lenient)
    if check_files:
        _check_files(config)
    return config


def read_text(filename: str) -> str:
    """Return a configuration file's text: UTF-8, at most 1 MiB. Raises ConfigError naming the file and the line."""
    try:
        with Path(filename).open("rb") as file:
            data = file.read(MAX_TEXT + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{filename}: cannot read the configuration: {_reason(error)}") from None
    if len(data) > MAX_TEXT:
        raise ConfigError(f"{filename}: larger than {MAX_TEXT} bytes; this is no configuration file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{filename}:{line}: byte {data[error.start]:#04x} is not valid UTF-8") from None


def _check_files(config: DomainConfig) -> None:
    for key, path in (("kernel", config.kernel), ("ramdisk", config.ramdisk)):
        if path is None:
            continue
        position = config.settings[key].position
        try:
            if path.is_dir():
                raise fail(position, f"key '{key}': {path} is a directory")
            with path.open("rb"):
                pass
        except (OSError, ValueError) as error:
            raise fail(position, f"key '{key}': cannot read {path}: {_reason(error)}") from None


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
