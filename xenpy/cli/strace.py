"""`xenpy strace`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from xenpy import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.config import DomainConfig
    from xenpy.devices.registry import DeviceOptions
    from xenpy.testing.faults.rules import Rule
    from xenpy.testing.trace import Sink

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("config_file", metavar="CONFIG", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-p", "identifier", metavar="DOMAIN", help="Trace a guest that runs, until Ctrl-C lets it go; no CONFIG.")
@click.option("-e", "expressions", metavar="EXPR", multiple=True, help="Show only this; may be given several times.")
@click.option("-o", "output", type=_FILE, metavar="FILE", help="Write to a file instead of stderr.")
@click.option("-c", "summary", is_flag=True, help="Count and time instead of showing, and print a table at the end.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, one line for each record.")
@click.option("--perfetto", type=_FILE, metavar="FILE", help="Write a Chrome trace, for ui.perfetto.dev.")
@click.option("--timeline", type=_FILE, metavar="FILE", help="Draw what happened over time, FILE.svg or FILE.png.")
@click.option("--fault", "faults", metavar="RULE", multiple=True, help="Inject a fault; may be given several times.")
@click.option("--fault-seed", type=int, default=0, metavar="NUMBER", help="Throw other dice for faults with a chance.")
@click.option(
    "--in-guest",
    type=click.Choice(["record", "ignore", "forbid"]),
    default="record",
    show_default=True,
    help="Hypercalls that PV guests make without leaving the guest: show them, do not, or let there be none, which is slow.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End the guest after this time, or with -p let it go.",
)
@click.option(
    "--type", "guest_type", type=click.Choice(["pv", "pvh"]), help="Run the guest as this type, whatever the file says."
)
@click.pass_context
def strace(
    ctx: click.Context,
    config_file: Path | None,
    overrides: tuple[str, ...],
    identifier: str | None,
    expressions: tuple[str, ...],
    output: Path | None,
    summary: bool,
    as_json: bool,
    perfetto: Path | None,
    timeline: Path | None,
    faults: tuple[str, ...],
    fault_seed: int,
    in_guest: str,
    timeout_s: float | None,
    guest_type: str | None,
) -> None:
    """Run the guest that CONFIG (xl.cfg syntax) describes as `xenpy run` does, and show what it asks of its hypervisor.

    Each hypercall (those within multicalls indented, before it), xenstore message, event and use of a grant is a line on stderr: when, in
    seconds; domain and vCPU; names, arguments, result; how long it took. --perfetto and --timeline come instead of the lines unless -o, -c
    or --json asks for them too.

    \b
    EXPR is one of
      hypercall[=NAME,...]       such as hypercall=memory_op,grant_table_op.map_*
      xenstore[=TYPE|PATH,...]   such as xenstore=write or xenstore=device/vif
      event[=STATE|PURPOSE,...]  virq, ipi, interdomain; store, console, device/vif/0
      grant[=map,unmap,copy]
      console                    the lines of the guest's console
      status=failed|successful
      vcpu=NUMBER,...
    Kinds add up; =!NAME,... excludes.

    \b
    RULE is EXPR:ACTION[:when=N|N+|N+STEP|N..M][:chance=P], such as
      hypercall=memory_op.populate_physmap:error=ENOMEM:when=3+
      xenstore=device/vif:error=EIO    event=console:delay=20ms:chance=0.1
    ACTION is error=NAME, delay=TIME, drop, duplicate or reorder.

    Exit codes are those of `xenpy run`; with -p 0, whatever becomes of the guest.
    """
    from xenpy.testing.faults.rules import parse
    from xenpy.testing.trace.filters import Filter
    from xenpy.testing.trace.record import Kind, close

    if timeout_s is not None and not math.isfinite(timeout_s):
        raise click.BadParameter(f"{timeout_s} is not a number of seconds", param_hint="--timeout")
    if summary and as_json:
        raise click.UsageError("-c and --json cannot be used together")
    if (config_file is None) == (identifier is None):
        raise click.UsageError("either CONFIG or -p DOMAIN is needed")
    if identifier is not None and guest_type is not None:
        raise click.UsageError("--type is for a guest that is started here, not for -p")
    pictures = perfetto is not None or timeline is not None
    always = [Kind.CONSOLE] * pictures + [Kind.FAULT] * bool(faults)
    only = Filter(expressions, always=always)
    rules = parse(faults, fault_seed)
    domain = _load(config_file, overrides, guest_type) if config_file is not None else None
    sinks: list[Sink] = []
    if output is not None or summary or as_json or not pictures:
        sinks.append(_lines(output, summary=summary, as_json=as_json))
    if perfetto is not None:
        from xenpy.testing.trace.perfetto import PerfettoSink

        sinks.append(PerfettoSink(perfetto))
    if timeline is not None:
        from xenpy.testing.trace.timeline import TimelineSink

        title = f"{domain.name}: {domain.kernel.name}, {domain.type.value}" if domain is not None else str(identifier)
        sinks.append(TimelineSink(timeline, title))
    if domain is None:
        from xenpy.testing.trace.attached import follow

        try:
            follow(
                str(identifier), sinks, timeout_s=timeout_s, expressions=expressions, faults=faults, seed=fault_seed,
                always=[kind.value for kind in always], in_guest=in_guest, arguments=any(sink.arguments for sink in sinks),
            )  # fmt: skip
        finally:
            close(sinks)
        return
    from xenpy.runner import Runner
    from xenpy.testing.trace.session import InGuestCalls, Session

    session = Session(sinks, only, rules, InGuestCalls(in_guest))
    try:
        code = Runner(domain, timeout_s=timeout_s, observer=session, options=_options(rules)).run()
    finally:
        session.close()
    ctx.exit(code)


def _options(rules: Sequence[Rule]) -> DeviceOptions:
    """Return how to serve devices whose requests may be struck: not by processes of their own, which cannot ask."""
    from xenpy.devices.registry import DeviceOptions
    from xenpy.testing.trace.record import Kind

    alone = not any(rule.kind is Kind.REQUEST for rule in rules)
    return DeviceOptions(isolated_disks=alone, isolated_nets=alone)


def _load(config_file: Path, overrides: tuple[str, ...], guest_type: str | None) -> DomainConfig:
    from xenpy import config
    from xenpy.domain.supported import without_effect

    domain = config.load(config_file, overrides, type_override=guest_type)
    for warning in (*domain.warnings, *without_effect(domain)):
        log.note(f"warning: {warning}")
    return domain


def _lines(path: Path | None, *, summary: bool, as_json: bool) -> Sink:
    from xenpy.testing.trace.output import Output

    output = Output(path)
    if summary:
        from xenpy.testing.trace.summary import SummarySink

        return SummarySink(output)
    if as_json:
        from xenpy.testing.trace.json_lines import JsonSink

        return JsonSink(output)
    from xenpy.testing.trace.text import TextSink

    return TextSink(output)
