"""The commands of the toolstack under the name xl."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Final

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_MARK: Final = "# made by xenpy install-xl"
_MODULE: Final = "xenpy.cli.xl"


def install(directory: Path) -> Path:
    """Write an executable `xl` into a directory and return its path. Raises ConfigError."""
    path = directory / "xl"
    # -P: a script that calls xl may be anywhere, and what lies there is no module of ours
    script = f'#!/bin/sh\n{_MARK}\nexec {shlex.quote(sys.executable)} -P -m {_MODULE} "$@"\n'
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if path.exists() and _MARK not in path.read_text(errors="replace"):
            raise ConfigError(f"{path}: there is an xl already that is not ours")
        path.write_text(script)
        path.chmod(0o755)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    return path
