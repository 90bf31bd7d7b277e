"""What of Xen's ABI a kernel uses, and how two kernels differ: `xenpy abi`."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenpy.pv.xenstore.paths import domain_path
from xenpy.testing.trace.record import Kind, Record, Symbol
from xenpy.testing.trace.symbols import DOMID_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_ITEMS: Final = 8192
"""Different things that are remembered of a guest, which may make up any number of paths."""
_NO_FEATURES: Final = DOMID_FIELDS | {"status", "cmd", "op", "req", "traps", "submap", "state"}
"""Fields whose constants say nothing beyond the command's own name, or that depend on the moment."""
_ACCESSES: Final = {
    "READ": "r", "WRITE": "w", "DIRECTORY": "l", "DIRECTORY_PART": "l", "MKDIR": "m", "RM": "d", "WATCH": "n", "UNWATCH": "n",
    "GET_PERMS": "p", "SET_PERMS": "P",
}  # fmt: skip
ACCESS_HELP: Final = "r read, w written, l listed, n watched, m made, d removed, p permissions read, P permissions set"
_QUEUE: Final = re.compile(r"/queue-\d+/")


class Section(Enum):
    """Parts of a report, in order."""

    NOTES = "ELF notes"
    HYPERCALLS = "hypercalls"
    FEATURES = "features"
    XENSTORE = "xenstore"


@dataclass(slots=True)
class Item:
    """How a kernel used something: how often, how often in vain, and how (xenstore accesses)."""

    count: int = 0
    failed: int = 0
    access: str = ""

    def __str__(self) -> str:
        if self.access:
            return self.access
        return f"{self.count}" + (f" ({self.failed} failed)" if self.failed else "") if self.count else "yes"


class UsageSink:
    """A sink that collects what of the ABI is used."""

    arguments = True

    def __init__(self, domid: int) -> None:
        self.items: defaultdict[Section, dict[str, Item]] = defaultdict(dict)
        self.dropped = 0
        self._home = f"{domain_path(domid)}/"
        self._backend = re.compile(rf"^/local/domain/0/backend/(\w+)/{domid}/")

    def take(self, record: Record) -> None:
        """Look at a record."""
        if record.kind is Kind.HYPERCALL:
            # Commands that an argument's elements name are counted one by one, of those that the trace shows.
            for name in _commands(record):
                self._count(Section.HYPERCALLS, name, failed=bool(record.error))
            for field, symbol in _features(record):
                self._count(Section.FEATURES, f"{record.name} {field}={symbol}", failed=bool(record.error))
        elif record.kind is Kind.XENSTORE and record.name in _ACCESSES:
            item = self._item(Section.XENSTORE, self._path(str(record.args.get("path", ""))))
            letter = _ACCESSES[record.name]
            if item is not None and letter not in item.access:
                item.access = "".join(sorted(item.access + letter))

    def close(self) -> None:
        """Do nothing: what was collected stays."""

    def note(self, section: Section, name: str) -> None:
        """Add something that is used once and for all."""
        self._item(section, name)

    def _count(self, section: Section, name: str, *, failed: bool) -> None:
        item = self._item(section, name)
        if item is not None:
            item.count += 1
            item.failed += failed

    def _item(self, section: Section, name: str) -> Item | None:
        items = self.items[section]
        if name not in items and len(items) >= _MAX_ITEMS:
            self.dropped += 1
            return None
        return items.setdefault(name, Item())

    def _path(self, path: str) -> str:
        """Return a path without what differs from run to run: relative to the domain's own node, without the domid."""
        path = path.removeprefix(self._home).removeprefix("/local/domain/DOMID/")
        path = self._backend.sub(r"backend/\1/DOMID/", path)
        return _QUEUE.sub("/queue-N/", path)


def _commands(record: Record) -> list[str]:
    elements = record.args.get("op") or record.args.get("req")
    if not isinstance(elements, list):
        return [record.name]
    names = {str(element["cmd"]) for element in elements if isinstance(element, dict) and "cmd" in element}
    return [f"{record.name}.{name}" for name in sorted(names)] or [record.name]


def _features(record: Record) -> list[tuple[str, Symbol]]:
    fields = {**record.args, **record.out}
    return [
        (name, value)
        for name, value in fields.items()
        if isinstance(value, Symbol) and name not in _NO_FEATURES and value
    ]


def table(usages: Sequence[tuple[str, UsageSink]], *, all_rows: bool) -> list[str]:
    """Return the lines of a table with a column for each kernel; without `all_rows` those alone that not every kernel has alike."""
    lines: list[str] = []
    for section in Section:
        rows = _rows([usage.items[section] for _, usage in usages], all_rows=all_rows)
        if not rows:
            continue
        title = section.value + (f" ({ACCESS_HELP})" if section is Section.XENSTORE else "")
        header = ["", *(name for name, _ in usages)]
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines += [title, _aligned(header, widths), *(_aligned(row, widths) for row in rows), ""]
    return lines


def _rows(columns: Sequence[dict[str, Item]], *, all_rows: bool) -> list[list[str]]:
    names = sorted({name for items in columns for name in items})
    rows = []
    for name in names:
        used = [items.get(name) for items in columns]
        # How often something happens differs from run to run: whether it does, and how, is the ABI.
        ways = {
            None if item is None else (item.access, bool(item.count) and item.failed == item.count) for item in used
        }
        if all_rows or len(ways) > 1:
            rows.append([f"  {name}", *("-" if item is None else str(item) for item in used)])
    return rows


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def as_document(usages: Sequence[tuple[str, UsageSink]]) -> dict[str, dict[str, dict[str, dict[str, int | str]]]]:
    """Return kernel -> section -> name -> how, for JSON."""
    return {
        name: {
            section.value: {
                key: {"count": item.count, "failed": item.failed, "access": item.access}
                for key, item in sorted(usage.items[section].items())
            }
            for section in Section
        }
        for name, usage in usages
    }
