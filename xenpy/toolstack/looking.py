"""What is to be seen of domains from outside: rows of tables, configurations, numbers and names."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from xenpy.toolstack import formats
from xenpy.toolstack.client import ask_all, find
from xenpy.toolstack.protocol import CommandError
from xenpy.toolstack.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenpy.toolstack.formats import Row
    from xenpy.toolstack.registry import Record

HOST: Final = ("0", "Domain-0")
_FIRST_LOOK_S: Final = 0.5


def rows(identifiers: Sequence[str]) -> list[Row]:
    """Return the rows of some domains, or of all with this host first. Raises CommandError."""
    registry = Registry()
    records, host = _chosen(registry, identifiers)
    found = [formats.host_row()] if host else []
    found += [formats.row(record.domid, record.name, state) for record, state in ask_all(registry, records, "state")]
    return found


def _chosen(registry: Registry, identifiers: Sequence[str]) -> tuple[list[Record], bool]:
    """Return the domains that are meant, and whether this host is one."""
    if not identifiers:
        return registry.records(), True
    return [find(registry, each) for each in identifiers if each not in HOST], bool(set(HOST).intersection(identifiers))


def documents(identifiers: Sequence[str]) -> list[dict[str, Any]]:
    """Return what `xl list -l` prints of some domains, or of all. Raises CommandError."""
    registry = Registry()
    records, _ = _chosen(registry, identifiers)
    return [
        {"domid": record.domid, "config": config}
        for record, config in ask_all(registry, records, "config")
        if config is not None
    ]


def tops(delay_s: float) -> Iterator[Iterator[str]]:
    """Yield the tables of `xl top`, one every so many seconds; the first after half a second at most, for there to be something in it."""
    before, at = {row.domid: row.cpu_s for row in rows(())}, time.monotonic()
    time.sleep(min(delay_s, _FIRST_LOOK_S))
    while True:
        now = rows(())
        since, at = time.monotonic() - at, time.monotonic()
        yield formats.top_table(now, before, since)
        before = {row.domid: row.cpu_s for row in now}
        time.sleep(delay_s)


def send_debug_keys(keys: str) -> None:
    """Have every domain write what debug keys ask for to the messages."""
    registry = Registry()
    for _ in ask_all(registry, registry.records(), "debug_keys", keys=keys):
        pass


def domid(name: str) -> int:
    """Return the number of a domain. Raises CommandError in xl's words."""
    if name == HOST[1]:
        return 0
    for record in Registry().records():
        if record.name == name:
            return record.domid
    raise CommandError(f"Can't get domid of domain name '{name}', maybe this domain does not exist.")


def domname(text: str) -> str:
    """Return the name of a domain. Raises CommandError in xl's words."""
    if not (text.isascii() and text.isdigit()):
        raise CommandError("Invalid domain id.")
    if text == HOST[0]:
        return HOST[1]
    for record in Registry().records():
        if record.domid == int(text):
            return record.name
    raise CommandError(f"Can't get domain name of domain id '{text}', maybe this domain does not exist.")
