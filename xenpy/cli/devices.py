"""`block-attach`, `block-detach`, `block-resize`, `block-list`, `cd-insert`, `cd-eject`, the same of network interfaces, and screens."""

from __future__ import annotations

import click

from xenpy.errors import HostError


@click.command("block-attach")
@click.argument("domain")
@click.argument("spec", metavar="SPEC...", nargs=-1, required=True)
def block_attach(domain: str, spec: tuple[str, ...]) -> None:
    """Add a disk to DOMAIN; SPEC is as in disk=, its parts may be arguments of their own."""
    from xenpy.toolstack import hotplug

    hotplug.attach(domain, "vbd", spec)


@click.command("block-detach")
@click.argument("domain")
@click.argument("device")
@click.option("--force", is_flag=True, help="Take the disk away without asking the guest.")
def block_detach(domain: str, device: str, force: bool) -> None:
    """Ask DOMAIN to give up the disk DEVICE, a name such as xvdb or a number, and wait until it has."""
    from xenpy.toolstack import hotplug

    hotplug.detach(domain, "vbd", device, force=force)


@click.command("block-resize")
@click.argument("domain")
@click.argument("device")
@click.argument("size", required=False)
def block_resize(domain: str, device: str, size: str | None) -> None:
    """Have DOMAIN see the size that the image of its disk DEVICE, a name such as xvdb or a number, has by now; print it in bytes.

    With SIZE, in MiB or with a suffix of b, k, m, g, t, the image is made that large before.
    """
    from xenpy.toolstack import client, lifecycle

    wanted = None if size is None else lifecycle.parse_kib(size) << 10
    click.echo(client.call(domain, "block_resize", device=device, size=wanted))


@click.command("cd-insert")
@click.argument("domain")
@click.argument("device")
@click.argument("target")
def cd_insert(domain: str, device: str, target: str) -> None:
    """Put the image or block device TARGET into DEVICE, a CD drive of DOMAIN, in place of what is in it.

    DEVICE is a name such as xvdc or a number; the drive is there already, with devtype=cdrom in disk= or by block-attach.
    """
    from xenpy.toolstack import hotplug

    if not target:
        raise click.BadParameter(
            "an image or a block device is wanted; cd-eject takes out what is there", param_hint="TARGET"
        )
    hotplug.insert(domain, device, target)


@click.command("cd-eject")
@click.argument("domain")
@click.argument("device")
def cd_eject(domain: str, device: str) -> None:
    """Take out what is in DEVICE, a CD drive of DOMAIN, a name such as xvdc or a number. The guest is not asked."""
    from xenpy.toolstack import hotplug

    hotplug.insert(domain, device, "")


@click.command("block-list")
@click.argument("domains", metavar="DOMAIN...", nargs=-1, required=True)
def block_list(domains: tuple[str, ...]) -> None:
    """List the disks of domains."""
    from xenpy.toolstack import formats, hotplug

    for line in formats.block_table(hotplug.devices(domains, "vbd")):
        click.echo(line)


@click.command("network-attach")
@click.argument("domain")
@click.argument("spec", metavar="[KEY=VALUE]...", nargs=-1)
def network_attach(domain: str, spec: tuple[str, ...]) -> None:
    """Add a network interface to DOMAIN; settings are as in vif=."""
    from xenpy.toolstack import hotplug

    hotplug.attach(domain, "vif", spec)


@click.command("network-detach")
@click.argument("domain")
@click.argument("device")
@click.option("--force", is_flag=True, help="Take the interface away without asking the guest.")
def network_detach(domain: str, device: str, force: bool) -> None:
    """Ask DOMAIN to give up the interface DEVICE, a number or a MAC address, and wait until it has."""
    from xenpy.toolstack import hotplug

    hotplug.detach(domain, "vif", device, force=force)


@click.command("network-list")
@click.argument("domains", metavar="DOMAIN...", nargs=-1, required=True)
def network_list(domains: tuple[str, ...]) -> None:
    """List the network interfaces of domains."""
    from xenpy.toolstack import formats, hotplug

    for line in formats.network_table(hotplug.devices(domains, "vif")):
        click.echo(line)


@click.command()
@click.argument("domain")
@click.argument("file", type=click.Path(dir_okay=False, resolve_path=True))
def screenshot(domain: str, file: str) -> None:
    """Write what DOMAIN shows on its framebuffer, which vfb= gives it, to the PNG file FILE."""
    from xenpy.toolstack import client

    client.call(domain, "screenshot", path=file)


@click.command()
@click.argument("domain")
def vncviewer(domain: str) -> None:
    """Start the command in $VNCVIEWER with the address of DOMAIN's screen, or print the address if that is not set."""
    import os
    import shlex

    from xenpy.config.devices import VNC_PORT
    from xenpy.toolstack import client

    host, port = client.call(domain, "vnc")
    command = shlex.split(os.environ.get("VNCVIEWER", ""))
    where = f"[{host}]" if ":" in host else host
    if not command:
        click.echo(f"{where}:{port - VNC_PORT}")
        return
    try:
        os.execvp(command[0], [*command, f"{where}:{port - VNC_PORT}"])
    except OSError as error:
        raise HostError(f"VNCVIEWER={command[0]}: {error.strerror}") from None
