"""How long to put up with a process that dies again and again."""

from __future__ import annotations

import time
from typing import Final

from xenpy.errors import HostError

_MAX_DEATHS: Final = 16
"""In a row, without anything done in between."""
_PATIENT_DEATHS: Final = 3
"""As many are followed by a new start at once."""
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 1.0
_STEADY_S: Final = 10.0
"""Who lives as long as this did not die of what it was started on."""


class Patience:
    """Counts the deaths of one process after the other; `what` is what died, for whoever reads of it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._in_vain = 0
        self._since = time.monotonic()

    def started(self) -> None:
        """Take note of a start."""
        self._since = time.monotonic()

    def died(self, *, useful: bool) -> float:
        """Take note of a death, `useful` if something had been done before; return the seconds to wait before the next start.

        Raises HostError if there should be none.
        """
        useful = useful or time.monotonic() - self._since > _STEADY_S
        self._in_vain = 0 if useful else self._in_vain + 1
        if self._in_vain > _MAX_DEATHS:
            raise HostError(f"{self._what} died {self._in_vain} times before it had done anything")
        if self._in_vain <= _PATIENT_DEATHS:
            return 0.0
        return min(_FIRST_PAUSE_S * (1 << (self._in_vain - _PATIENT_DEATHS)), _LONGEST_PAUSE_S)
