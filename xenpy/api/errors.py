"""What a wait for a guest may end with other than what was waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import XenpyError
from xenpy.exitcodes import ExitCode

if TYPE_CHECKING:
    from xenpy.domain.ending import Ending


class GuestEnded(XenpyError):
    """The guest has ended, so what was waited for will not come; the message says how, and ends with its last output.

    `ending` says the same to a program.
    """

    exit_code = ExitCode.CRASH

    def __init__(self, message: str, ending: Ending) -> None:
        super().__init__(message)
        self.ending = ending


class Timeout(XenpyError, TimeoutError):
    """What was waited for did not come in time; the message ends with the guest's last output."""

    exit_code = ExitCode.TIMEOUT
