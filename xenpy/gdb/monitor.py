"""`monitor` commands: what GDB itself does not know of a guest on Xen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.errors import XenError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.domain.domain import Domain
    from xenpy.pv.evtchn import EventChannels
    from xenpy.pv.gnttab import GrantTable

_MAX_LINES: Final = 200


def answer(domain: Domain, command: str) -> str:
    """Return what a command has to say, in lines."""
    name, _, rest = command.strip().partition(" ")
    row = _COMMANDS.get(name or "help")
    if row is None:
        return f"no command {name!r}: `monitor help` lists those there are\n"
    with domain.host.lock:
        lines = row[1](domain, rest.strip())
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], f"({len(lines) - _MAX_LINES} more)"]
    return "".join(f"{line}\n" for line in lines)


def _help(_domain: Domain, _rest: str) -> list[str]:
    return [f"{name:18} {text}" for name, (text, _) in _TEXTS.items()]


def _info(domain: Domain, _rest: str) -> list[str]:
    kind, pages, version = domain.config.type.value, domain.memory.ram_pages, domain.version.number
    lines = [
        f"domain {domain.domid}, {domain.name}: {kind}, {pages} pages, Xen {version >> 16}.{version & 0xFFFF}",
        f"system time {domain.clock.now() / 1e9:.6f} s, rate {domain.clock.rate:g}",
    ]
    for vcpu in domain.vcpus:
        info = domain.shared_info.vcpu_info[vcpu.vcpu_id]
        state = "up" if vcpu.is_up else "down"
        deadline = vcpu.timers.next_deadline()
        timer = "none" if deadline is None else f"in {(deadline - domain.clock.now()) / 1e6:.3f} ms"
        pending, masked = int(info.upcall_pending), int(info.upcall_mask)
        lines.append(f"vCPU {vcpu.vcpu_id}: {state}, upcall pending {pending} masked {masked}, timer {timer}")
    return lines


def _xenstore(domain: Domain, path: str) -> list[str]:
    home = f"/local/domain/{domain.domid}"
    full = path if path.startswith("/") else f"{home}/{path}".rstrip("/")
    store = domain.host.store
    try:
        value = store.read(full)
        children = store.ls(full)
    except XenError as error:
        return [f"{full}: {error.reason or error.errno.name}"]
    return [f'{full} = "{value}"', *(f"    {name}" for name in children)]


def _p2m(domain: Domain, text: str) -> list[str]:
    try:
        pfn = int(text, 0)
    except ValueError:
        return ["monitor p2m PFN: a number, such as 0x1000"]
    return [domain.describe_pfn(pfn)]


def _evtchn(domain: Domain, _rest: str) -> list[str]:
    channels: EventChannels = domain.evtchn
    return channels.describe()


def _gnttab(domain: Domain, _rest: str) -> list[str]:
    grants: GrantTable = domain.gnttab
    return grants.describe()


_TEXTS: Final[Mapping[str, tuple[str, Callable[[Domain, str], list[str]]]]] = {
    "help": ("lists these commands", _help),
    "info": ("the domain, its clock and its vCPUs", _info),
    "xenstore [PATH]": ("a node of xenstore and its children; PATH is relative to the domain's own", _xenstore),
    "evtchn": ("the event channels", _evtchn),
    "gnttab": ("the grants", _gnttab),
    "p2m PFN": ("the frame behind a frame of the guest's own counting", _p2m),
}
_COMMANDS: Final = {usage.split()[0]: row for usage, row in _TEXTS.items()}
