"""`xenpy create` and `xenpy console`."""

from __future__ import annotations

import click


@click.command()
@click.argument("settings", metavar="[CONFIG] [KEY=VALUE]...", nargs=-1)
@click.option("-f", "--defconfig", "file", metavar="FILE", help="The configuration file, if not given as CONFIG.")
@click.option("-p", "paused", is_flag=True, help="Leave the domain paused.")
@click.option("-c", "console", is_flag=True, help="Show the console from the first byte; Ctrl-] leaves it.")
@click.option("-F", "foreground", is_flag=True, help="Run the domain in this process and exit as `xenpy run` does.")
@click.option("-q", "--quiet", is_flag=True, help="Do not say what is read.")
@click.option("-n", "--dryrun", is_flag=True, help="Print the configuration as JSON and create nothing.")
@click.option(
    "--snapshot", is_flag=True, help="Leave the disks' images alone: what the guest writes is dropped in the end."
)
@click.option(
    "--gdb",
    "gdb_port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Have the domain listen for GDB at this TCP port, 0 for a free one, and not start before it has connected.",
)
@click.pass_context
def create(
    ctx: click.Context,
    settings: tuple[str, ...],
    file: str | None,
    paused: bool,
    console: bool,
    foreground: bool,
    quiet: bool,
    dryrun: bool,
    snapshot: bool,
    gdb_port: int | None,
) -> None:
    """Create a domain that outlives this command, from a file in xl.cfg syntax and settings that override it.

    Exit code 0 if it was created; with -F how it ended, see `xenpy run`.
    """
    from xenpy.toolstack import creating

    name, config = creating.load(file, settings)
    if not quiet:
        click.echo(f"Parsing config from {name}", err=dryrun)
    if dryrun:
        import json

        from xenpy.toolstack.document import document

        click.echo(json.dumps(document(config), indent=4))
        return
    from xenpy.devices.registry import DeviceOptions

    options = DeviceOptions(ephemeral_disks=snapshot)
    code = creating.create(
        config, paused=paused, console=console, foreground=foreground, options=options, gdb_port=gdb_port
    )
    ctx.exit(code)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(resolve_path=True))
@click.option("-p", "paused", is_flag=True, help="Leave the domain paused.")
@click.option("-e", "no_wait", expose_value=False, is_flag=True, help="Accepted for xl's sake: nobody waits here.")
@click.option("-d", "debug", expose_value=False, is_flag=True, help="Accepted for xl's sake.")
def restore(directory: str, paused: bool) -> None:
    """Create a domain that goes on where one was saved into DIR, which must stay as it is while the domain lives."""
    from pathlib import Path

    from xenpy.api.savefile import read_config
    from xenpy.devices.registry import DeviceOptions
    from xenpy.toolstack import creating

    options = DeviceOptions(saved_in=directory)
    creating.create(read_config(Path(directory)), paused=paused, console=False, foreground=False, options=options)


@click.command()
@click.argument("domain")
@click.option(
    "-t",
    "kind",
    expose_value=False,
    type=click.Choice(["pv"]),
    default="pv",
    help="The kind of console; guests have a PV console.",
)
@click.option(
    "-n",
    "number",
    expose_value=False,
    type=click.IntRange(0, 0),
    default=0,
    help="The console's number; guests have one.",
)
@click.option("-e", "escape", default="^]", show_default=True, metavar="CHAR", help="What leaves the console: ^X or X.")
def console(domain: str, escape: str) -> None:
    """Show the console of DOMAIN since its first byte and type into it, until the domain ends or Ctrl-] is typed."""
    from xenpy.toolstack.client import connect
    from xenpy.toolstack.viewer import attach, escape_code, view

    code = escape_code(escape)
    with connect(domain) as connection:
        attach(connection)
        view(connection, escape=code)
