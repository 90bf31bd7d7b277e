"""`xenpy run`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from xenpy import log


@click.command(context_settings={"ignore_unknown_options": False})
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path))
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End the guest after this time.",
)
@click.option(
    "--type", "guest_type", type=click.Choice(["pv", "pvh"]), help="Run the guest as this type, whatever the file says."
)
@click.option("--events", is_flag=True, help="Print a JSON line on stderr for everything that happens to the domain.")
@click.option(
    "--snapshot", is_flag=True, help="Leave the disks' images alone: what the guest writes is dropped in the end."
)
@click.option(
    "--gdb",
    "gdb_port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Listen for GDB at this TCP port, 0 for a free one, and do not start before it has connected.",
)
@click.pass_context
def run(
    ctx: click.Context,
    config_file: Path,
    overrides: tuple[str, ...],
    timeout_s: float | None,
    guest_type: str | None,
    events: bool,
    snapshot: bool,
    gdb_port: int | None,
) -> None:
    """Run the guest that CONFIG (xl.cfg syntax) describes, in the foreground.

    The guest's console is stdin and stdout; Ctrl-] leaves and destroys the guest. KEY=VALUE settings override the file's; CONFIG may be
    /dev/null. Everything that is not the console goes to stderr.

    \b
    Exit codes: 0 power-off, 2 bad configuration, 3 host cannot run it, 4 crash, 5 timeout,
    6 reboot loop, 7 watchdog, 8 suspend, 9 reboot not followed, 130 interrupted.
    """
    from xenpy import config

    if timeout_s is not None and not math.isfinite(timeout_s):
        raise click.BadParameter(f"{timeout_s} is not a number of seconds", param_hint="--timeout")
    domain = config.load(config_file, overrides, type_override=guest_type)
    for warning in domain.warnings:
        log.note(f"warning: {warning}")
    from xenpy.domain.supported import without_effect

    for warning in without_effect(domain):
        log.note(f"warning: {warning}")
    from xenpy.devices.registry import DeviceOptions
    from xenpy.toolstack.creating import runner

    options = DeviceOptions(ephemeral_disks=snapshot)
    ctx.exit(runner(domain, timeout_s=timeout_s, events=events, options=options, gdb_port=gdb_port).run())
