"""Booting a kernel to see what of the ABI it uses: what `xenpy abi` does for each of its arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xenpy.errors import ConfigError
from xenpy.testing.trace.filters import Filter
from xenpy.testing.trace.tracer import Tracer
from xenpy.testing.trace.usage import Section, UsageSink

if TYPE_CHECKING:
    from xenpy.api.transcript import Pattern
    from xenpy.config import DomainConfig


class Survey(NamedTuple):
    """What a kernel used until it ended, wrote what was waited for, or had to stop; `how` says which."""

    name: str
    usage: UsageSink
    how: str


def survey(config: DomainConfig, name: str, *, timeout_s: float, until: str | None = None) -> Survey:
    """Run a guest until it ends, its console matches `until`, or time is up. Raises ConfigError, HostError."""
    from xenpy.api.errors import Timeout
    from xenpy.api.guest import Guest
    from xenpy.api.transcript import EOF

    patterns: list[Pattern] = [EOF] if until is None else [EOF, _compiled(until)]
    with Guest(config, paused=True) as guest:
        usage = UsageSink(guest.domid)
        for feature in _declared(config):
            usage.note(Section.NOTES, feature)
        with Tracer(guest.host.core, guest.domain, [usage], only=Filter(["hypercall", "xenstore"])):
            guest.unpause()
            try:
                found = guest.console.expect(patterns, timeout=timeout_s)
            except Timeout:
                how = f"stopped after {timeout_s:g} s"
            else:
                how = f"wrote {found.text!r}" if found.index else f"ended: {guest.ending}"
    return Survey(name, usage, how)


def _compiled(until: str) -> re.Pattern[str]:
    try:
        return re.compile(until, re.MULTILINE)
    except re.error as error:
        raise ConfigError(f"--until {until}: {error}") from None


def _declared(config: DomainConfig) -> list[str]:
    """Return the features that the kernel's ELF notes declare."""
    from xenpy.abi.elfnote import FEATURE_NAMES
    from xenpy.builder.kernel import load_kernel

    with load_kernel(config.kernel) as kernel:
        notes = kernel.notes
    words = (("required", notes.required_features), ("supported", notes.supported_features))
    return [
        f"feature {name} {word}" for word, bits in words for bit, name in enumerate(FEATURE_NAMES) if bits >> bit & 1
    ]


def column_name(path: Path, config: DomainConfig, taken: set[str]) -> str:
    """Return a heading for a kernel: the guest's name, else what tells it from those before."""
    for name in (config.name, Path(config.kernel).name, str(path)):
        if name not in taken:
            return name
    return f"{path} ({len(taken) + 1})"
