"""Choosing the kind of domain that a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.config.model import GuestType

if TYPE_CHECKING:
    from xenpy.config import DomainConfig
    from xenpy.domain.domain import Domain
    from xenpy.domain.saved import DomainState, Resume
    from xenpy.domain.services import Services


def save_domain(domain: Domain) -> DomainState:
    """Return a domain as plain data, but for its RAM: its vCPUs stand still, nobody uses its grants. Under the host's lock.

    Raises HostError for what cannot be saved.
    """
    from xenpy.domain.pv.domain import PvDomain

    if isinstance(domain, PvDomain):
        from xenpy.domain.pv.restored import save_pv

        return save_pv(domain)
    from xenpy.domain.pvh_restored import save_pvh

    return save_pvh(domain)


def restore_domain(host: Services, domid: int, config: DomainConfig, resume: Resume) -> Domain:
    """Build a domain of a saved one, not yet running. Raises ConfigError, HostError."""
    if config.type is GuestType.PV:
        from xenpy.domain.pv.restored import RestoredPvDomain

        return RestoredPvDomain(host, domid, config, resume)
    from xenpy.domain.pvh_restored import RestoredPvhDomain

    return RestoredPvhDomain(host, domid, config, resume)


def make_domain(host: Services, domid: int, config: DomainConfig) -> Domain:
    """Build a domain, not yet running. Raises ConfigError, HostError."""
    if config.type is GuestType.PV:
        from xenpy.domain.pv.domain import PvDomain

        return PvDomain(host, domid, config)
    from xenpy.domain.pvh import PvhDomain

    return PvhDomain(host, domid, config)
