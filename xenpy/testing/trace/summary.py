"""How often and for how long: the table of `xenpy strace -c`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xenpy.testing.trace.output import Output
    from xenpy.testing.trace.record import Record

_MAX_ROWS: Final = 4096
"""A guest can make up hypercall numbers; those beyond so many names are counted together."""
_OTHERS: Final = "(others)"


class _Row:
    __slots__ = ("calls", "errors", "longest_ns", "timed", "total_ns")

    def __init__(self) -> None:
        self.calls = self.errors = self.timed = self.total_ns = self.longest_ns = 0

    def add(self, record: Record) -> None:
        self.calls += 1
        self.timed += not record.in_guest
        self.total_ns += record.latency_ns
        self.longest_ns = max(self.longest_ns, record.latency_ns)
        self.errors += bool(record.error)


class SummarySink:
    """Counts records by name and writes a table at the end. What a multicall contains counts twice: as itself and as part of that.

    Times are those of calls that left the guest.
    """

    arguments = False

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rows: dict[str, _Row] = {}

    def take(self, record: Record) -> None:
        """Count a record."""
        name = record.name if record.kind.value == "hypercall" else f"{record.kind.value} {record.name}"
        row = self._rows.get(name)
        if row is None:
            row = self._rows.setdefault(name if len(self._rows) < _MAX_ROWS else _OTHERS, _Row())
        row.add(record)

    def table(self) -> list[str]:
        """Return the lines of the table, what took longest first."""
        head = ("% time", "seconds", "us/call", "longest us", "calls", "in guest", "errors", "what")
        widths = (6, 11, 9, 10, 9, 9, 9)
        rule = " ".join("-" * width for width in widths) + f" {'-' * 36}"
        rows = sorted(self._rows.items(), key=lambda item: (-item[1].total_ns, item[0]))
        everything = sum(row.total_ns for _, row in rows)
        lines = [_columns(widths, head), rule]
        for name, row in rows:
            share = 100 * row.total_ns / everything if everything else 0.0
            each = f"{row.total_ns / row.timed / 1000:.1f}" if row.timed else "-"
            cells = (
                f"{share:.2f}", f"{row.total_ns / 1e9:.6f}", each, f"{row.longest_ns / 1000:.0f}", str(row.calls),
                str(row.calls - row.timed or ""), str(row.errors or ""), name,
            )  # fmt: skip
            lines.append(_columns(widths, cells))
        calls, timed, errors = (sum(getattr(row, field) for _, row in rows) for field in ("calls", "timed", "errors"))
        total = (
            "100.00",
            f"{everything / 1e9:.6f}",
            "",
            "",
            str(calls),
            str(calls - timed or ""),
            str(errors or ""),
            "total",
        )
        return [*lines, rule, _columns(widths, total)]

    def close(self) -> None:
        """Write the table."""
        for line in self.table():
            self._output.write(line)
        self._output.close()


def _columns(widths: tuple[int, ...], cells: tuple[str, ...]) -> str:
    return " ".join(f"{cell:>{width}}" for width, cell in zip(widths, cells, strict=False)) + f" {cells[-1]}"
