"""`xenpy doctor`."""

from __future__ import annotations

import click

from xenpy.exitcodes import ExitCode


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of lines.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Tell what this host can run, and what to do about what it cannot.

    Exit code 0 if guests can run here, natively or in the emulated host, else 3.
    """
    from xenpy.doctor import can_run, examine

    findings = examine()
    usable = can_run(findings)
    if as_json:
        import json

        document = {"can_run": usable, "findings": [finding.as_dict() for finding in findings]}
        click.echo(json.dumps(document, indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.status.value:8}{finding.name:14}{finding.text}")
            if finding.remedy:
                click.echo(f"{'':22}-> {finding.remedy}")
    ctx.exit(ExitCode.POWEROFF if usable else ExitCode.HOST)
