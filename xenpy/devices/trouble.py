"""What a test may have go wrong with a device's requests; whoever serves them asks about each, and does as told."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple


class Mishap(Enum):
    """What goes wrong."""

    ERROR = "error"
    """It is not done, and answered with a failure."""
    DELAY = "delay"
    """It is done later, and what is behind it with it."""
    DROP = "drop"
    """It is neither done nor answered."""
    DUPLICATE = "duplicate"
    """It is done twice."""
    REORDER = "reorder"
    """What waits behind it overtakes it."""


class Trouble(NamedTuple):
    """What goes wrong with one request."""

    mishap: Mishap
    delay_s: float = 0.0
    unsupported: bool = False
    """Whether the failure is that there is no such operation."""


Ask = Callable[[str], "Trouble | None"]
"""Tells of a request, by its name such as read, what goes wrong with it. From any thread, without the host's lock."""

SLICE_S: Final = 0.02
"""So long may who delays not look whether to stop."""
