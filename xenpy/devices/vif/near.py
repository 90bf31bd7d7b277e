"""The pages of a guest of this process, looked up for as long as the host's lock is held, and mapped where that will not do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenpy.devices.grants import HostGrants
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.grants import Page
    from xenpy.devices.vif.services import VifServices


class NearPage(NamedTuple):
    """A page that was looked up."""

    gref: int
    view: memoryview

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
        self._to_gpa = 0 if self._looking is None else self._looking.gpa_of_offset(0)

    def map(self, grefs: Sequence[int], *, readonly: bool) -> Sequence[Page]:
        """Return pages. Raises FrontendError, with none of them mapped, if one was not granted."""
        if self._looking is None or not self._table.is_plain:
            return super().map(grefs, readonly=readonly)
        offsets = self._looking.offsets(grefs, readonly=readonly)
        if offsets is None:
            return super().map(grefs, readonly=readonly)
        view, base = self._memory.view, self._to_gpa
        return [NearPage(gref, view(base + offset, PAGE_SIZE)) for gref, offset in zip(grefs, offsets, strict=True)]
