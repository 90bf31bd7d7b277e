"""The CONTROL message: checks, accounting and quotas for the administrator.

Ref: docs/misc/xenstore.txt "Miscellaneous"
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore.paths import join
from xenpy.pv.xenstore.quota import QUOTA_HELP, SOFT_QUOTA_HELP, Quotas, SoftQuotas, quota_names

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.xenstore.server import Xenstore

log = logging.getLogger(__name__)

OK = "OK"


class Command(NamedTuple):
    """A control command and the arguments that `help` shows."""

    call: Callable[[Xenstore, list[str]], str]
    usage: str


def run(store: Xenstore, command: bytes, arguments: list[bytes]) -> bytes:
    """Run a command and return the reply's payload; EINVAL for an unknown one or wrong arguments."""
    entry = COMMANDS.get(command.decode("latin-1"))
    if entry is None:
        raise XenError(Errno.EINVAL, f"control command {command[:32]!r}")
    return entry.call(store, [argument.decode("latin-1") for argument in arguments]).encode("latin-1") + b"\0"


def _wrong(arguments: list[str]) -> XenError:
    return XenError(Errno.EINVAL, f"arguments {arguments}")


def check(store: Xenstore, arguments: list[str]) -> str:
    """Check that every node has a parent that lists it, every listed child exists and the accounts agree."""
    if arguments:
        raise _wrong(arguments)
    problems = find_problems(store)
    for problem in problems:
        log.error("xenstore check: %s", problem)
    return OK if not problems else "\n".join(problems)


def find_problems(store: Xenstore) -> list[str]:
    """Return what is inconsistent in the tree."""
    nodes = store.tree.nodes
    reachable = {"/"}
    owned: dict[int, int] = {}
    problems = []
    stack = ["/"]
    while stack:
        path = stack.pop()
        node = nodes[path]
        owned[node.perms[0].domid] = owned.get(node.perms[0].domid, 0) + 1
        for name in node.children:
            below = join(path, name)
            if below not in nodes:
                problems.append(f"{below} is listed but absent")
            else:
                reachable.add(below)
                stack.append(below)
    problems += [f"{path} is orphaned" for path in nodes.keys() - reachable]
    for domid, count in owned.items():
        accounted = store.accounts.of(domid).nodes
        if accounted != count:
            problems.append(f"domain {domid} owns {count} nodes, accounted are {accounted}")
    return problems


def trace(store: Xenstore, arguments: list[str]) -> str:
    """Switch the log of requests on or off."""
    if arguments not in (["on"], ["off"]):
        raise _wrong(arguments)
    store.trace_requests = arguments == ["on"]
    return OK


def memreport(store: Xenstore, arguments: list[str]) -> str:
    """Log what the store holds."""
    if arguments:
        raise _wrong(arguments)
    log.info("xenstore: %d nodes, %d connections", len(store.tree.nodes), len(store.connections))
    for domid in sorted(store.domains):
        log.info("xenstore: %s", _usage(store, domid).replace("\n", " "))
    return OK


def print_text(_store: Xenstore, arguments: list[str]) -> str:
    """Put a text into the log."""
    if len(arguments) != 1:
        raise _wrong(arguments)
    log.info("control: %s", arguments[0])
    return OK


def quota(store: Xenstore, arguments: list[str]) -> str:
    """Show or set quotas, or show a domain's use of them."""
    if len(arguments) == 1:
        domid = int(arguments[0]) if arguments[0].isdecimal() else -1
        if domid not in store.domains:
            raise XenError(Errno.ENOENT, f"no domain {arguments[0]}")
        return _usage(store, domid)
    return _settings(store.quotas, QUOTA_HELP, arguments)


def quota_soft(store: Xenstore, arguments: list[str]) -> str:
    """Show or set the limits that only warn."""
    return _settings(store.soft_quotas, SOFT_QUOTA_HELP, arguments)


def _settings(quotas: Quotas | SoftQuotas, texts: dict[str, str], arguments: list[str]) -> str:
    names = quota_names(quotas)
    match arguments:
        case []:
            lines = [f"{name:17}: {getattr(quotas, names[name]):8} {text}" for name, text in texts.items()]
            return "\n".join(["Quota settings:", *lines, ""])
        case ["set", name, value] if name in names and value.isdecimal():
            setattr(quotas, names[name], int(value[:9]))
            return OK
        case _:
            raise _wrong(arguments)


def _usage(store: Xenstore, domid: int) -> str:
    usage = store.accounts.of(domid)
    mine = [connection for connection in store.connections if connection.caller.domid == domid]
    rows = {
        "nodes": usage.nodes,
        "watches": usage.watches,
        "transactions": sum(len(connection.transactions) for connection in mine),
        "outstanding": sum(connection.outstanding for connection in mine),
        "memory": usage.memory,
    }
    return "\n".join([f"Domain {domid}:", *(f"{name:16}: {value:8}" for name, value in rows.items()), ""])


def help_text(_store: Xenstore, arguments: list[str]) -> str:
    """List the commands."""
    if arguments:
        raise _wrong(arguments)
    return "".join(f"{name}\t{command.usage}\n" for name, command in COMMANDS.items())


COMMANDS = {
    "check": Command(check, ""),
    "log": Command(trace, "on|off"),
    "memreport": Command(memreport, ""),
    "print": Command(print_text, "<string>"),
    "quota": Command(quota, "[set <name> <val>|<domid>]"),
    "quota-soft": Command(quota_soft, "[set <name> <val>]"),
    "help": Command(help_text, ""),
}
