"""`xenpy abi`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from xenpy import log

if TYPE_CHECKING:
    from xenpy.testing.trace.usage import UsageSink

_SETTING: Final = re.compile(r"\w+\s*=")


@click.command()
@click.argument("arguments", metavar="CONFIG... [KEY=VALUE]...", nargs=-1, required=True)
@click.option("--all", "all_rows", is_flag=True, help="Show what all kernels have in common, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")
@click.option(
    "--until", metavar="REGEX", help="Stop a guest when its console shows this; by default it has to end by itself."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=120.0,
    show_default=True,
    help="Stop a guest after this time.",
)
@click.option(
    "--type",
    "guest_type",
    type=click.Choice(["pv", "pvh"]),
    help="Run the guests as this type, whatever the files say.",
)
def abi(
    arguments: tuple[str, ...],
    all_rows: bool,
    as_json: bool,
    until: str | None,
    timeout_s: float,
    guest_type: str | None,
) -> None:
    """Boot each CONFIG's guest and tell what of Xen's ABI its kernel used: hypercalls, features, xenstore paths.

    Of several guests the differences are shown. KEY=VALUE settings override those of all files.
    """
    from xenpy import config
    from xenpy.testing.trace.survey import column_name, survey
    from xenpy.testing.trace.usage import as_document, table

    if not math.isfinite(timeout_s):
        raise click.BadParameter(f"{timeout_s} is not a number of seconds", param_hint="--timeout")
    overrides = tuple(argument for argument in arguments if _SETTING.match(argument))
    paths = [Path(argument) for argument in arguments if argument not in overrides]
    if not paths:
        raise click.UsageError("a CONFIG is missing")
    domains = [config.load(path, overrides, type_override=guest_type) for path in paths]
    usages: list[tuple[str, UsageSink]] = []
    for path, domain in zip(paths, domains, strict=True):
        name = column_name(path, domain, {taken for taken, _ in usages})
        found = survey(domain, name, timeout_s=timeout_s, until=until)
        log.note(f"{name}: {found.how}")
        if found.usage.dropped:
            log.note(f"{name}: {found.usage.dropped} uses of more things than are remembered are left out")
        usages.append((name, found.usage))
    if as_json:
        import json

        click.echo(json.dumps(as_document(usages), indent=2))
    else:
        click.echo("\n".join(table(usages, all_rows=all_rows or len(usages) == 1)).rstrip() or "no differences")
