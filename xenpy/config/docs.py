"""The key table of docs/config.md, made from the keys themselves.

`python -m xenpy.config.docs docs/config.md` rewrites the table between its two marks in a document.
"""

from __future__ import annotations

import sys
from pathlib import Path

from xenpy.config.keys import Status, table

BEGIN = "<!-- keys: written by python -m xenpy.config.docs -->"
END = "<!-- end of keys -->"

_TITLES = {
    Status.ACTED: "Acted on",
    Status.IGNORED: "Accepted, without effect",
    Status.REFUSED: "Refused, unless they ask for nothing",
    Status.FOREIGN: "For other kinds of guest: refused, unless they ask for nothing",
}


def support_table() -> str:
    """Return the keys as Markdown tables, one for each thing that can become of a key."""
    lines: list[str] = []
    for status, title in _TITLES.items():
        last = "Meaning" if status is Status.ACTED else "Reason"
        lines += [f"### {title}", "", f"| Key | Value | Guests | {last} |", "|--|--|--|--|"]
        for key in table().values():
            if key.status is status:
                guests = ", ".join(kind.upper() for kind in key.types) or "-"
                lines.append(f"| `{key.name}` | {key.kind} | {guests} | {key.note} |")
        lines.append("")
    return "\n".join(lines)


def render(document: str) -> str:
    """Return `document` with the table between its marks made anew. Raises ValueError when the marks are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {BEGIN} or {END}")
    return f"{before}{begin}\n\n{support_table()}\n{end}{after}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        document = Path(name)
        document.write_text(render(document.read_text(encoding="utf-8")), encoding="utf-8")
