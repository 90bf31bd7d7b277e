"""What a measurement yields, and how it is printed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One figure: xenpy's, and what it is compared with in the same run; `goal` bounds the ratio, or the figure where there is none."""

    group: str
    name: str
    unit: str
    value: float
    reference: float | None = None
    against: str = ""
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        """Return xenpy's figure in units of the reference."""
        return self.value / self.reference if self.reference else None

    @property
    def met(self) -> bool | None:
        """Tell whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        return (self.value if self.ratio is None else self.ratio) <= self.goal


def as_json(rows: Sequence[Row], failures: dict[str, str]) -> str:
    """Return everything as one JSON object."""
    listed = [{**asdict(row), "ratio": row.ratio, "met": row.met} for row in rows]
    return json.dumps({"rows": listed, "failures": failures}, indent=2)


def as_table(rows: Sequence[Row]) -> str:
    """Return a table for reading."""
    lines = [("", "", "xenpy", "reference", "ratio", "goal", "")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        reference = "" if row.reference is None else f"{row.reference:.1f} {row.unit} ({row.against})"
        goal = "" if row.goal is None else f"<= {row.goal:g}{'' if row.reference else ' ' + row.unit}"
        verdict = {True: "met", False: "missed", None: ""}[row.met]
        lines.append((row.group, row.name, f"{row.value:.1f} {row.unit}", reference, ratio, goal, verdict))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
