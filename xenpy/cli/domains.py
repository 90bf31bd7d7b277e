"""Commands that show domains: `list`, `vcpu-list`, `uptime`, `top`, `domid`, `domname`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterable


@click.command("list")
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1)
@click.option("-l", "--long", "long", is_flag=True, help="Print the configurations as JSON.")
def list_(domains: tuple[str, ...], long: bool) -> None:
    """List the domains that run, and this host as Domain-0.

    States: r running, b blocked, p paused, s shut down, c crashed, d dying.
    """
    from xenpy.toolstack import formats, looking

    if long:
        import json

        click.echo(json.dumps(looking.documents(domains), indent=4))
    else:
        _print(formats.list_table(looking.rows(domains)))


@click.command("vcpu-list")
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1)
def vcpu_list(domains: tuple[str, ...]) -> None:
    """List the vCPUs of domains: where each ran last, its state and the time it has used."""
    from xenpy.toolstack import formats, looking

    _print(formats.vcpu_table(looking.rows(domains)))


@click.command()
@click.argument("domains", metavar="[DOMAIN]...", nargs=-1)
@click.option("-s", "--short", is_flag=True, help="Print one line for each domain and no title.")
def uptime(domains: tuple[str, ...], short: bool) -> None:
    """Tell how long domains have been running."""
    from xenpy.toolstack import formats, looking

    _print(formats.uptime_table(looking.rows(domains), short=short))


@click.command()
@click.option("-d", "--delay", type=click.FloatRange(0.1, 3600), default=3.0, show_default=True, metavar="SECONDS")
@click.option("-i", "--iterations", type=click.IntRange(min=1), metavar="COUNT", help="End after so many tables.")
def top(delay: float, iterations: int | None) -> None:
    """Show what domains use of the processors and the memory, again and again until Ctrl-C."""
    from xenpy.toolstack import looking

    for number, table in enumerate(looking.tops(delay), 1):
        if number > 1:
            click.clear()
        _print(table)
        if number == iterations:
            break


@click.command()
@click.argument("name")
def domid(name: str) -> None:
    """Print the domid of the domain NAME."""
    from xenpy.toolstack import looking

    click.echo(looking.domid(name))


@click.command()
@click.argument("domid", metavar="DOMID")
def domname(domid: str) -> None:
    """Print the name of the domain DOMID."""
    from xenpy.toolstack import looking

    click.echo(looking.domname(domid))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
