"""The pages of a guest of this process, looked up for as long as the host's lock is held, and mapped where that will not do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenpy.devices.grants import HostGrants
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.grants import Page
    from xenpy.devices.vif.services import VifServices


class NearPage(NamedTuple):
    """A page that was looked up."""

    gref: int
    view: memoryview
    guarded: int
    """Its gfn if it was guarded, else -1."""

    def close(self) -> None:
        """Do nothing: nobody was told."""


class NearGrants(HostGrants):
    """The grants of one guest. Everything is called under the host's lock, which its hypercalls wait for."""

    def __init__(self, services: VifServices, domid: int) -> None:
        super().__init__(services, domid)
        granter = services.domain(domid)
        self._table = granter.gnttab
        self._memory = granter.memory
        self._looking = self._table.looking()

    def map(self, grefs: Sequence[int], *, readonly: bool) -> Sequence[Page]:
        """Return pages. Raises FrontendError, with none of them mapped, if one was not granted."""
        if self._looking is None or not self._table.is_plain:
            return super().map(grefs, readonly=readonly)
        gfns = self._looking.gfns(grefs, readonly=readonly)
        if gfns is None or not (readonly or self._table.guard(gfns)):
            return super().map(grefs, readonly=readonly)
        view = self._memory.view
        return [
            NearPage(gref, view(gfn << PAGE_SHIFT, PAGE_SIZE), -1 if readonly else gfn)
            for gref, gfn in zip(grefs, gfns, strict=True)
        ]

    def unmap(self, pages: Sequence[Page]) -> None:
        """Let the guest have pages back; their views must not be used any more."""
        super().unmap([page for page in pages if not isinstance(page, NearPage)])
        self._table.unguard([page.guarded for page in pages if isinstance(page, NearPage) and page.guarded >= 0])
