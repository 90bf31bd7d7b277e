#!/usr/bin/env python3
"""Write the parts of the documentation that come from the code: README's support tables and docs/config.md's key table.

`--check` changes nothing and exits 1 if a part is stale.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from xenpy.config import docs as config_docs
from xenpy.config.keys import table
from xenpy.exitcodes import ExitCode
from xenpy.hypercalls import dispatch, privileged

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- {0}: begin, written by tools/docs.py -->", "<!-- {0}: end -->"


def hypercalls() -> str:
    """Return the table of hypercalls and their commands."""
    dispatch.load()
    rows = ["| nr | hypercall | commands handled |", "|--|--|--|"]
    for number, function in sorted(dispatch.HYPERCALLS.items()):
        commands = "refused, as to any domU" if function.__module__ == privileged.__name__ else ""
        if isinstance(function, dispatch.Hypercall):
            commands = ", ".join(op.name for _, op in sorted(function.ops.items()))
        rows.append(f"| {number} | {dispatch.NAMES[number]} | {commands or '(no commands)'} |")
    return "\n".join(rows)


def keys() -> str:
    """Return one line that counts xl.cfg keys by what is done with them."""
    counts = Counter(key.status.value for key in table().values())
    total = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    return f"{sum(counts.values())} xl.cfg keys are known: {total}. Each is listed in [docs/config.md](docs/config.md)."


def exit_codes() -> str:
    """Return the table of exit codes, with the words of the code that defines them."""
    source = (ROOT / "xenpy" / "exitcodes.py").read_text()
    rows = ["| code | name | meaning |", "|--|--|--|"]
    for code in ExitCode:
        text = source.split(f"{code.name} = {code.value}\n", 1)[1].split('"""', 2)[1]
        rows.append(f"| {code.value} | {code.name} | {text} |")
    return "\n".join(rows)


PARTS = {
    "README.md": {"hypercalls": hypercalls, "keys": keys},
    "docs/cli.md": {"exit codes": exit_codes},
}


def rewritten(text: str, name: str, part: str) -> str:
    """Return a document with one generated part replaced."""
    begin, end = BEGIN.format(name), END.format(name)
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        sys.exit(f"no place for {name!r}: it lacks the comments {begin} and {end}")
    return f"{head}{begin}\n{part}\n{end}{tail}"


def main() -> int:
    """Write or check every generated part."""
    check = "--check" in sys.argv[1:]
    stale = []
    for file, parts in PARTS.items():
        path = ROOT / file
        before = after = path.read_text()
        for name, make in parts.items():
            after = rewritten(after, name, make())
        if after != before:
            stale.append(file)
            if not check:
                path.write_text(after)
    config = ROOT / "docs" / "config.md"
    before = config.read_text()
    if (after := config_docs.render(before)) != before:
        stale.append("docs/config.md")
        if not check:
            config.write_text(after)
    for file in stale:
        print(f"{'stale' if check else 'wrote'}: {file}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
