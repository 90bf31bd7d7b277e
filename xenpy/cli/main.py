"""`xenpy`: the command group. Subcommands are imported when they are called, so that start-up pays for one only."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from xenpy import __version__, log
from xenpy.errors import XenpyError
from xenpy.exitcodes import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS: Final = {
    "abi": ("xenpy.cli.abi", "abi", "Tell what of Xen's ABI kernels use, and how they differ."),
    "run": ("xenpy.cli.run", "run", "Run a guest in the foreground, its console on this terminal."),
    "doctor": ("xenpy.cli.doctor", "doctor", "Tell what this host can run, and what to do about what it cannot."),
    "strace": ("xenpy.cli.strace", "strace", "Run a guest and show what it asks of its hypervisor."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = _COMMANDS.get(cmd_name)
        if row is None:
            return None
        command: click.Command = getattr(import_module(row[0]), row[1])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row[2]) for name, row in sorted(_COMMANDS.items())])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["xenpy.argv"] = list(args)
        return super().parse_args(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xenpy")
@click.option(
    "-v", "--verbose", is_flag=True, help="Say on stderr what guests do that is unusual, and their emergency output."
)
@click.option(
    "--host",
    type=click.Choice(["native", "emulated"]),
    default="native",
    show_default=True,
    help="Run the command on this machine, or in a KVM host that QEMU emulates: slow, but needs no /dev/kvm.",
)
@click.pass_context
def cli(ctx: click.Context, verbose: bool, host: str) -> None:
    """Run unmodified Xen guests on Linux KVM, without Xen.

    A guest is described by a file in xl.cfg syntax; `xenpy run guest.cfg` boots it.
    """
    log.verbose = verbose
    if host == "emulated":
        ctx.exit(_run_emulated(ctx.meta["xenpy.argv"]))


def _run_emulated(argv: Sequence[str]) -> int:
    """Run the same command inside the emulated host; return its exit code."""
    from xenpy import emulated

    inner: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word == "--host":
            skip = True
        elif not word.startswith("--host="):
            inner.append(word)
    return emulated.run([sys.executable, "-m", "xenpy", *inner])


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a documented code (`xenpy.exitcodes`)."""
    try:
        result: Any = cli.main(args=list(args) if args is not None else None, prog_name="xenpy", standalone_mode=False)
        code = result if isinstance(result, int) else ExitCode.POWEROFF
    except click.exceptions.Abort:
        code = ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = ExitCode.CONFIG
    except XenpyError as error:
        log.note(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        code = ExitCode.FAILURE
    sys.exit(code)
