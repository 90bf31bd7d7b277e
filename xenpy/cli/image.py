"""`xenpy image`."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", metavar="NAME")
@click.option("--refresh", is_flag=True, help="Make the disk anew, of the newest packages.")
@click.option(
    "--type", "guest_type", type=click.Choice(["pv", "pvh"]), default="pv", help="The type of guest to configure."
)
def image(name: str, refresh: bool, guest_type: str) -> None:
    """Print a configuration that boots the distribution NAME, alpine or debian, from a disk.

    The disk is made at first use, of packages of PyPI and Debian, and kept in the cache: start the guest with --snapshot to leave it as it
    is. Root logs in on the console without a password.
    """
    from xenpy.distributions import provide_distribution

    click.echo(provide_distribution(name, refresh=refresh).config(guest_type), nl=False)
