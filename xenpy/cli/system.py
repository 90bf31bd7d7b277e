"""Commands about the host: `info`, `dmesg`, `debug-keys`, `install-xl`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("field", required=False)
@click.option("-n", "--numa", expose_value=False, is_flag=True, help="Accepted for xl's sake.")
def info(field: str | None) -> None:
    """Print what is known of this host and of the Xen that guests see, or one FIELD of it."""
    from xenpy.toolstack.hostinfo import fields

    for name, value in fields():
        if field is None:
            click.echo(f"{name:<23}: {value}")
        elif name == field:
            click.echo(value)


@click.command()
@click.option("-c", "--clear", is_flag=True, help="Forget the messages once they are printed.")
def dmesg(clear: bool) -> None:
    """Print what guests have written to Xen's own console, and the answers to debug keys."""
    from xenpy.toolstack.dmesg import read_messages
    from xenpy.toolstack.registry import Registry

    click.echo(read_messages(Registry().root, clear=clear), nl=False)


@click.command("debug-keys")
@click.argument("keys")
def debug_keys(keys: str) -> None:
    """Have every domain write what the debug KEYS ask for to the messages; h tells which there are."""
    from xenpy.toolstack.looking import send_debug_keys

    send_debug_keys(keys)


@click.command("install-xl")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def install_xl(directory: Path) -> None:
    """Put these commands into DIRECTORY under the name xl, for scripts that call xl."""
    from xenpy.toolstack.installing import install

    click.echo(install(directory))
