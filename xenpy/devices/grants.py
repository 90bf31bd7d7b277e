"""How a queue comes by the pages that its guest granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from xenpy.errors import FrontendError
from xenpy.pv.gnttab import GrantError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from xenpy.devices.xenbus import Services


class Page(Protocol):
    """A granted page that is mapped."""

    @property
    def gref(self) -> int:
        """Return the grant reference."""

    @property
    def view(self) -> memoryview:
        """Return the page, live: 4096 bytes."""

    def close(self) -> None:
        """Let go of the view."""


class Grants(Protocol):
    """Maps the pages of one guest's grants, for one queue; `map` and `unmap` are called under `lock`."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Return what guards them."""

    def map(self, grefs: Sequence[int], *, readonly: bool) -> Sequence[Page]:
        """Map pages. Raises FrontendError, with none of them mapped, if one was not granted."""

    def unmap(self, pages: Sequence[Page]) -> None:
        """Let the guest have pages back; their views must not be used any more."""


class HostGrants:
    """The grants of a guest of this process."""

    def __init__(self, services: Services, domid: int) -> None:
        self._services = services
        self._domid = domid
        self.lock = services.lock

    def map(self, grefs: Sequence[int], *, readonly: bool) -> Sequence[Page]:
        """Map pages. Raises FrontendError, with none of them mapped, if one was not granted."""
        pages: list[Page] = []
        for gref in grefs:
            try:
                pages.append(self._services.map_page(self._domid, gref, readonly=readonly))
            except GrantError as error:
                self.unmap(pages)
                raise FrontendError(f"grant {gref}: {error}") from None
        return pages

    def unmap(self, pages: Sequence[Page]) -> None:
        """Let the guest have pages back; their views must not be used any more."""
        for page in pages:
            page.close()
