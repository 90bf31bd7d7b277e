"""Running pytest itself inside the emulated host."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from xenpy.emulated.protocol import INSIDE, default_environment

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def is_inside() -> bool:
    """Tell whether this process runs in an emulated host."""
    return INSIDE in os.environ


def run(config: pytest.Config) -> int:
    """Run the same pytest command in an emulated host; return its exit code.

    The files that its options have it write are kept. Raises pytest.UsageError where there can be no emulated host.
    """
    import pytest

    from xenpy import XenpyError, emulated

    invocation = config.invocation_params
    env = default_environment()
    if "PYTEST_ADDOPTS" in os.environ:
        env["PYTEST_ADDOPTS"] = os.environ["PYTEST_ADDOPTS"]
    try:
        return emulated.run(
            [sys.executable, "-m", "pytest", *map(str, invocation.args)],
            env=env,
            cwd=invocation.dir,
            writable=_written(config),
        )
    except XenpyError as error:
        raise pytest.UsageError(f"--xen-host emulated: {error}") from error


def _written(config: pytest.Config) -> list[Path]:
    """Return the directories into which options send files, made if need be."""
    directories = []
    here = config.invocation_params.dir
    if (report := getattr(config.option, "xmlpath", None)) is not None:
        directories.append((here / report).parent)
    if config.option.xen_keep is not None:
        directories.append(here / config.option.xen_keep)
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
    return [directory.resolve() for directory in directories]
