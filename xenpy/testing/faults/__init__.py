"""Injecting faults between a guest and its hypervisor, deterministically for a seed: `xenpy strace --fault`, and the same for Python."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from xenpy.testing.faults.injector import Fault, Injector
from xenpy.testing.faults.rules import Rule, parse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.api.guest import Guest

__all__ = ["Fault", "Injector", "Rule", "inject", "parse"]


@contextmanager
def inject(guest: Guest, *rules: str, seed: int = 0) -> Iterator[Injector]:
    """Have rules strike a guest for as long as the `with` block lasts; what it gives has the faults. Raises ConfigError."""
    with Injector(guest.core, parse(rules, seed)) as injector:
        yield injector
