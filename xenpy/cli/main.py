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
    from collections.abc import Mapping, Sequence

TOOLSTACK: Final = {
    "block-attach": ("xenpy.cli.devices", "block_attach", "Add a disk to a domain."),
    "block-resize": ("xenpy.cli.devices", "block_resize", "Have a domain see a disk's new size."),
    "block-detach": ("xenpy.cli.devices", "block_detach", "Take a disk from a domain."),
    "block-list": ("xenpy.cli.devices", "block_list", "List the disks of domains."),
    "cd-eject": ("xenpy.cli.devices", "cd_eject", "Take the medium out of a domain's CD drive."),
    "cd-insert": ("xenpy.cli.devices", "cd_insert", "Put a medium into a domain's CD drive."),
    "console": ("xenpy.cli.create", "console", "Show the console of a domain and type into it."),
    "create": ("xenpy.cli.create", "create", "Create a domain that outlives the command."),
    "debug-keys": ("xenpy.cli.system", "debug_keys", "Write what debug keys ask for to the messages."),
    "destroy": ("xenpy.cli.power", "destroy", "End a domain at once."),
    "dmesg": ("xenpy.cli.system", "dmesg", "Print what guests have written to Xen's own console."),
    "domid": ("xenpy.cli.domains", "domid", "Print the domid of a name."),
    "domname": ("xenpy.cli.domains", "domname", "Print the name of a domid."),
    "dump-core": ("xenpy.cli.power", "dump_core", "Write the memory and vCPUs of a domain to a file."),
    "info": ("xenpy.cli.system", "info", "Print what is known of this host."),
    "list": ("xenpy.cli.domains", "list_", "List the domains that run."),
    "mem-set": ("xenpy.cli.power", "mem_set", "Ask the balloon driver of a domain for a size."),
    "network-attach": ("xenpy.cli.devices", "network_attach", "Add a network interface to a domain."),
    "network-detach": ("xenpy.cli.devices", "network_detach", "Take a network interface from a domain."),
    "network-list": ("xenpy.cli.devices", "network_list", "List the network interfaces of domains."),
    "pause": ("xenpy.cli.power", "pause", "Stop the vCPUs of a domain."),
    "reboot": ("xenpy.cli.power", "reboot", "Ask domains to reboot."),
    "rename": ("xenpy.cli.power", "rename", "Give a domain another name."),
    "restore": ("xenpy.cli.create", "restore", "Create a domain that goes on where one was saved."),
    "save": ("xenpy.cli.power", "save", "Save a domain into a directory."),
    "shutdown": ("xenpy.cli.power", "shutdown", "Ask domains to power off."),
    "sysrq": ("xenpy.cli.power", "sysrq", "Send a magic SysRq key to a domain."),
    "top": ("xenpy.cli.domains", "top", "Show what domains use, again and again."),
    "unpause": ("xenpy.cli.power", "unpause", "Let the vCPUs of a domain run."),
    "uptime": ("xenpy.cli.domains", "uptime", "Tell how long domains have been running."),
    "vcpu-list": ("xenpy.cli.domains", "vcpu_list", "List the vCPUs of domains."),
    "vncviewer": ("xenpy.cli.devices", "vncviewer", "Look at a domain's screen with a VNC viewer."),
    "vcpu-set": ("xenpy.cli.power", "vcpu_set", "Ask a domain to have so many vCPUs online."),
}
"""Commands that `xl` has as well: name -> module, attribute, one line of help."""

_COMMANDS: Final = {
    **TOOLSTACK,
    "install-xl": ("xenpy.cli.system", "install_xl", "Put these commands into a directory under the name xl."),
    "abi": ("xenpy.cli.abi", "abi", "Tell what of Xen's ABI kernels use, and how they differ."),
    "image": ("xenpy.cli.image", "image", "Fetch a distribution's disk and print a configuration that boots it."),
    "screenshot": ("xenpy.cli.devices", "screenshot", "Write what a domain shows on its screen to a PNG file."),
    "run": ("xenpy.cli.run", "run", "Run a guest in the foreground, its console on this terminal."),
    "gdb": ("xenpy.cli.gdb", "gdb", "Have a domain listen for GDB."),
    "symbols": ("xenpy.cli.gdb", "symbols", "Print the symbols that a Linux kernel carries in itself."),
    "doctor": ("xenpy.cli.doctor", "doctor", "Tell what this host can run, and what to do about what it cannot."),
    "strace": ("xenpy.cli.strace", "strace", "Run a guest and show what it asks of its hypervisor."),
}


class LazyGroup(click.Group):
    """A group of the commands in `rows`, each imported when it is called."""

    def __init__(self, *args: Any, rows: Mapping[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rows = rows

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._rows)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        row = self._rows.get(cmd_name)
        if row is None:
            return None
        command: click.Command = getattr(import_module(row[0]), row[1])
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row[2]) for name, row in sorted(self._rows.items())])

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["xenpy.argv"] = list(args)
        return super().parse_args(ctx, args)


@click.group(cls=LazyGroup, rows=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
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
    sys.exit(exit_code(cli, args, "xenpy"))


def exit_code(group: click.Group, args: Sequence[str] | None, name: str) -> int:
    """Run the command line of a program of that name, say on stderr what goes wrong, and return the exit code."""
    try:
        result: Any = group.main(args=list(args) if args is not None else None, prog_name=name, standalone_mode=False)
        code = result if isinstance(result, int) else ExitCode.POWEROFF
    except click.exceptions.Abort:
        code = ExitCode.INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = ExitCode.CONFIG
    except XenpyError as error:
        click.echo(f"{name}: {error}", err=True)
        code = error.exit_code
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        code = ExitCode.FAILURE
    return code
