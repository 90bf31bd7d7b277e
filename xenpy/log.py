"""Messages to the person at the terminal: to stderr, one line each, and never in floods."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Final

_MAX_KEYS: Final = 200
"""After this many different messages about guests' doings, further ones are only counted."""

_seen: Counter[str] = Counter()
verbose = False


def note(message: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"xenpy: {message}\n")
    sys.stderr.flush()


def debug(message: str) -> None:
    """Write a line to stderr when verbose."""
    if verbose:
        note(message)


def once(key: str, message: str) -> None:
    """Write a line to stderr when verbose, the first time only that its key comes up."""
    if not verbose or (len(_seen) >= _MAX_KEYS and key not in _seen):
        return
    _seen[key] += 1
    if _seen[key] == 1:
        note(message)
