"""Quotas and what each domain uses of them.

Ref: docs/misc/xenstore.txt (CONTROL quota); defaults as xenstored 4.17
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from xenpy.errors import ConfigError, Errno, XenError
from xenpy.pv.xenstore.tree import Limits

if TYPE_CHECKING:
    from collections.abc import Iterable

UNLIMITED = 1 << 62


@dataclass(slots=True)
class Quotas:
    """Limits per unprivileged domain, `path_max` for everybody; 0 switches a limit off.

    `node_size` and `memory` are in bytes, `path_max` in characters, `transaction_nodes` per transaction,
    `permissions` per node, `outstanding` in requests whose replies the domain has not fetched.
    """

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    outstanding: int = 20
    transaction_nodes: int = 1024
    memory: int = 2560 * 1024 + 1024
    node_size: int = 2048
    path_max: int = 2048
    permissions: int = 5

    @classmethod
    def parse(cls, settings: Iterable[tuple[str, int]]) -> Quotas:
        """Return quotas with some changed, by their names on the wire (`node-size`); raise ConfigError for others."""
        quotas = cls()
        names = quota_names(quotas)
        for name, value in settings:
            if name not in names:
                raise ConfigError(f"xenstore quota {name!r} is none of {', '.join(names)}")
            setattr(quotas, names[name], value)
        return quotas

    def limits(self) -> Limits:
        """Return what the tree's operations need to know."""
        return Limits(self.nodes or UNLIMITED, self.node_size or UNLIMITED, self.permissions or UNLIMITED)


@dataclass(slots=True)
class SoftQuotas:
    """Limits beyond which a domain earns one warning in the log; bytes."""

    memory: int = 2 * 1024 * 1024


QUOTA_HELP = {
    "nodes": "Nodes per domain",
    "watches": "Watches per domain",
    "transactions": "Transactions per domain",
    "outstanding": "Outstanding requests per domain",
    "transaction-nodes": "Max. number of accessed nodes per transaction",
    "memory": "Total Xenstore memory per domain (error level)",
    "node-size": "Max. size of a node",
    "path-max": "Max. length of a node path",
    "permissions": "Max. number of permissions per node",
}
SOFT_QUOTA_HELP = {"memory": "Total Xenstore memory per domain (warning level)"}


def quota_names(quotas: Quotas | SoftQuotas) -> dict[str, str]:
    """Return the wire's quota names with the attributes that hold them."""
    return {field.name.replace("_", "-"): field.name for field in fields(quotas)}


class Usage:
    """What one domain holds at present."""

    __slots__ = ("memory", "nodes", "warned", "watches")

    def __init__(self) -> None:
        self.nodes = 0
        self.watches = 0
        self.memory = 0
        self.warned = False


class Accounts:
    """Usage by domid."""

    def __init__(self) -> None:
        self._usage: dict[int, Usage] = {}

    def of(self, domid: int) -> Usage:
        """Return a domain's usage, from zero for one that is new."""
        usage = self._usage.get(domid)
        if usage is None:
            usage = self._usage[domid] = Usage()
        return usage

    def charge(self, domid: int, nodes: int, size: int) -> None:
        """Add nodes and bytes, either may be negative."""
        usage = self.of(domid)
        usage.nodes += nodes
        usage.memory += size

    def forget(self, domid: int) -> None:
        """Drop the record of a domain that is gone."""
        self._usage.pop(domid, None)


def exceeded(errno: Errno, limit: int, used: int, what: str) -> None:
    """Raise `errno` if one more would pass a limit; 0 is no limit."""
    if limit and used >= limit:
        raise XenError(errno, f"quota: {limit} {what}")
