"""The same commands under the name xl: `python -m xenpy.cli.xl`, or what `xenpy install-xl` writes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from xenpy.cli.main import TOOLSTACK, LazyGroup, exit_code

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.group(cls=LazyGroup, rows=TOOLSTACK, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-v", "verbose", expose_value=False, count=True, help="Accepted for xl's sake, as are -N, -f, -t and -T.")
@click.option("-N", "dryrun", expose_value=False, is_flag=True, hidden=True)
@click.option("-f", "force", expose_value=False, is_flag=True, hidden=True)
@click.option("-t", "carriage", expose_value=False, is_flag=True, hidden=True)
@click.option("-T", "timestamps", expose_value=False, is_flag=True, hidden=True)
def xl() -> None:
    """Create, show and end Xen guests on Linux KVM, as Xen's xl does."""


def main(args: Sequence[str] | None = None) -> None:
    """Run xl and exit as it does: 0, 1 if something went wrong, 2 for a wrong command line; `create -F` with its own codes."""
    sys.exit(exit_code(xl, args, "xl"))


if __name__ == "__main__":
    main()
