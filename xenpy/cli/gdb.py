"""`xenpy gdb` and `xenpy symbols`."""

from __future__ import annotations

from pathlib import Path

import click

from xenpy.errors import ConfigError


@click.command()
@click.argument("domain")
@click.argument("port", required=False, default=0, type=click.IntRange(0, 65535))
def gdb(domain: str, port: int) -> None:
    """Have DOMAIN listen for GDB at a TCP port of this machine, and print the address for `target remote`.

    The domain goes on until a debugger connects. Without PORT a free one is taken.
    """
    from xenpy.toolstack.client import call

    click.echo(call(domain, "gdb", port=port))


@click.command()
@click.argument("kernel", type=click.Path(path_type=Path))
@click.option(
    "-o", "output", type=click.Path(path_type=Path), metavar="FILE", help="Write an ELF file for GDB instead."
)
def symbols(kernel: Path, output: Path | None) -> None:
    """Print the symbols that a Linux kernel carries in itself (CONFIG_KALLSYMS), as System.map has them."""
    from xenpy.builder.kallsyms import find_symbols
    from xenpy.builder.kernel import load_kernel

    with load_kernel(kernel) as image:
        found = find_symbols(image)
    if output is None:
        click.echo("".join(f"{symbol.gva:016x} {symbol.type} {symbol.name}\n" for symbol in found), nl=False)
        return
    from xenpy.builder.symbol_file import symbol_file

    try:
        output.write_bytes(symbol_file(found))
    except OSError as error:
        raise ConfigError(f"{output}: {error.strerror}") from None
