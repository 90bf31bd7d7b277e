"""The refusal of an operation on a grant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import FrontendError

if TYPE_CHECKING:
    from xenpy.abi.grant_table import GNTST


class GrantError(FrontendError):
    """An operation on a grant failed with a GNTST_* status.

    A guest that asked for it reads the status; a backend that did loses the frontend that handed it such a grant.
    """

    def __init__(self, status: GNTST, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"GNTST_{self.status.name}: {self.reason}"
