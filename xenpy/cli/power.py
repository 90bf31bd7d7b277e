"""Commands that change a domain: its life, its name, its vCPUs and memory."""

from __future__ import annotations

import click

from xenpy.toolstack import client


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command()
@click.argument("domain")
def pause(domain: str) -> None:
    """Stop the vCPUs of DOMAIN."""
    client.call(domain, "pause")


@click.command()
@click.argument("domain")
def unpause(domain: str) -> None:
    """Let the vCPUs of DOMAIN run."""
    client.call(domain, "unpause")


def _check(domains: tuple[str, ...], every: bool) -> None:
    if bool(domains) == every:
        raise click.UsageError("give either domains or -a")


@click.command()
@click.argument("domains", metavar="DOMAIN...", nargs=-1)
@click.option("-a", "every", is_flag=True, help="All domains.")
@click.option("-w", "--wait", is_flag=True, help="Wait until they have ended.")
@click.option(
    "-F",
    "fallback",
    expose_value=False,
    is_flag=True,
    help="Accepted for xl's sake: no guest here has an ACPI power button.",
)
def shutdown(domains: tuple[str, ...], every: bool, wait: bool) -> None:
    """Ask the kernels of domains to power off."""
    from xenpy.toolstack import lifecycle

    _check(domains, every)
    lifecycle.request(domains, "poweroff", every=every, wait=wait, say=_say)


@click.command()
@click.argument("domains", metavar="DOMAIN...", nargs=-1)
@click.option("-a", "every", is_flag=True, help="All domains.")
@click.option("-w", "--wait", is_flag=True, help="Wait until they have ended, to be started anew.")
@click.option(
    "-F", "fallback", expose_value=False, is_flag=True, help="Accepted for xl's sake: no guest here has an ACPI reset."
)
def reboot(domains: tuple[str, ...], every: bool, wait: bool) -> None:
    """Ask the kernels of domains to reboot; each gets a new domid, as with xl."""
    from xenpy.toolstack import lifecycle

    _check(domains, every)
    lifecycle.request(domains, "reboot", every=every, wait=wait, say=_say)


@click.command()
@click.argument("domain")
@click.option("-f", "force", expose_value=False, is_flag=True, help="Accepted for xl's sake.")
def destroy(domain: str) -> None:
    """End DOMAIN at once; nothing of it is left when this returns."""
    from xenpy.toolstack import lifecycle

    lifecycle.destroy(domain)


@click.command()
@click.argument("domain")
@click.argument("name")
def rename(domain: str, name: str) -> None:
    """Give DOMAIN another name."""
    client.call(domain, "rename", name=name)


@click.command()
@click.argument("domain")
@click.argument("letter")
def sysrq(domain: str, letter: str) -> None:
    """Send the magic SysRq key LETTER to the kernel of DOMAIN."""
    client.call(domain, "sysrq", key=letter)


@click.command("vcpu-set")
@click.argument("domain")
@click.argument("count", type=int)
@click.option("-i", "--ignore-host", is_flag=True, help="Allow more vCPUs than the host has processors.")
def vcpu_set(domain: str, count: int, ignore_host: bool) -> None:
    """Ask the kernel of DOMAIN to have COUNT vCPUs online."""
    from xenpy.toolstack import lifecycle

    if not ignore_host:
        lifecycle.check_overcommitment(count)
    client.call(domain, "set_vcpus", count=count)


@click.command("mem-set")
@click.argument("domain")
@click.argument("size", metavar="MEM")
def mem_set(domain: str, size: str) -> None:
    """Ask the balloon driver of DOMAIN for a size: MEM is in MiB, or has a suffix of b, k, m, g, t."""
    from xenpy.toolstack import lifecycle

    client.call(domain, "set_memory", kib=lifecycle.parse_kib(size))


@click.command()
@click.argument("domain")
@click.argument("directory", metavar="DIR", type=click.Path(resolve_path=True))
@click.option("-c", "running", is_flag=True, help="Leave the domain running.")
@click.option("-p", "paused", is_flag=True, help="Leave the domain paused.")
def save(domain: str, directory: str, running: bool, paused: bool) -> None:
    """Save DOMAIN into a new directory DIR, from which `restore` goes on, and end it, unless told otherwise."""
    if running and paused:
        raise click.UsageError("give either -c or -p")
    with client.connect(domain) as connection:
        connection.send("save", path=directory, after="run" if running else "pause" if paused else "destroy")
        connection.answer(None)


@click.command("dump-core")
@click.argument("domain")
@click.argument("file", type=click.Path(dir_okay=False, resolve_path=True))
def dump_core(domain: str, file: str) -> None:
    """Write the memory and vCPUs of DOMAIN to FILE, in Xen's dump-core format, while it stands still."""
    with client.connect(domain) as connection:
        connection.send("dump_core", path=file)
        connection.answer(None)
