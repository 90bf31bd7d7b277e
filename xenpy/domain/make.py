"""Choosing the kind of domain that a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.config.model import GuestType

if TYPE_CHECKING:
    from xenpy.config import DomainConfig
    from xenpy.domain.domain import Domain
    from xenpy.domain.services import Services


def make_domain(host: Services, domid: int, config: DomainConfig) -> Domain:
    """Build a domain, not yet running. Raises ConfigError, HostError."""
    if config.type is GuestType.PV:
        from xenpy.domain.pv.domain import PvDomain

        return PvDomain(host, domid, config)
    from xenpy.domain.pvh import PvhDomain

    return PvhDomain(host, domid, config)
