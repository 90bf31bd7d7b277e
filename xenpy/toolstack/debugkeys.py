"""What Xen's debug keys show, as far as it concerns one domain.

Ref: xl(1), debug-keys
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import EVTCHNSTAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.domain.domain import Domain


def answer(domain: Domain, key: str) -> str:
    """Return what a key shows of a domain, some lines; under the host's lock."""
    show = _KEYS.get(key)
    if show is None:
        return f"'{key}' pressed -> no such key; 'h' shows those there are"
    return f"'{key}' pressed -> {_TITLES[key]} (domain {domain.domid})\n{show(domain)}"


def _help(_domain: Domain) -> str:
    return "\n".join(f" key '{key}' => {title}" for key, title in _TITLES.items())


def _info(domain: Domain) -> str:
    state = domain.ending or ("paused" if domain.paused else "running")
    lines = [
        f"General information for domain {domain.domid}:",
        f"    name={domain.name} type={domain.config.type.value} state={state}",
        f"    nr_pages={domain.memory.ram_pages} max_pages={domain.max_pages} vm_assist={domain.vm_assist:08x}",
        f"    handle={domain.config.uuid}",
        f"VCPU information for domain {domain.domid}:",
    ]
    for vcpu in domain.vcpus:
        info = domain.shared_info.vcpu_info[vcpu.vcpu_id]
        up, pending = int(vcpu.is_up), int(info.upcall_pending)
        lines.append(f"    VCPU{vcpu.vcpu_id}: up={up} upcall_pend={pending:02x} exits={vcpu.exits}")
    return "\n".join(lines)


def _event_channels(domain: Domain) -> str:
    state = domain.evtchn.snapshot()
    lines = [f"Event channel information for domain {domain.domid} ({'FIFO' if state.fifo else '2-level'}):"]
    for port in state.ports:
        status = port.status
        kind = EVTCHNSTAT(status.status).name
        peer = f" d={status.remote_domid} p={status.remote_port}" if status.remote_domid or status.remote_port else ""
        virq = f" virq={status.virq}" if status.status == EVTCHNSTAT.virq else ""
        pending = int(domain.evtchn.is_pending(port.number))
        lines.append(f"    {port.number:4} [p={pending}]: {kind} v={status.vcpu_id}{peer}{virq}")
    return "\n".join(lines)


_TITLES: Final[Mapping[str, str]] = {
    "e": "dump evtchn info",
    "h": "show this message",
    "q": "dump domain (and guest debug) info",
}
_KEYS: Final[Mapping[str, Callable[[Domain], str]]] = {"e": _event_channels, "h": _help, "q": _info}
