"""The store: its tree, domains and connections, and the API for code in this process.

Ref: docs/misc/xenstore.txt
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from xenpy.abi.xs_wire import XENSTORE_PAYLOAD_MAX, MsgType
from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore import requests, tree
from xenpy.pv.xenstore.client import Client
from xenpy.pv.xenstore.connection import Connection
from xenpy.pv.xenstore.guard import Guard
from xenpy.pv.xenstore.paths import INTRODUCE_DOMAIN, RELEASE_DOMAIN, SPECIAL_PATHS, join
from xenpy.pv.xenstore.quota import Accounts, Quotas, SoftQuotas
from xenpy.pv.xenstore.transactions import LiveTree
from xenpy.pv.xenstore.tree import DOM0, DOM0_ONLY, Caller, Perms
from xenpy.pv.xenstore.watches import WatchTable
from xenpy.pv.xenstore.wire import Message, error_payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

log = logging.getLogger(__name__)


class DomainHooks(Protocol):
    """What INTRODUCE and RELEASE over the wire ask of the host, which owns guests' memory and event channels."""

    def introduce(self, domid: int, gfn: int, port: int) -> None:
        """Connect the domain's ring, or raise XenError."""

    def release(self, domid: int) -> None:
        """Disconnect the domain's ring."""


class DomainEntry:
    """A domain that the store knows of."""

    __slots__ = ("connection", "introduced", "quotas", "shut_down", "target")

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.quotas = quotas
        self.introduced = False
        self.shut_down = False
        self.connection: Connection | None = None
        self.target: int | None = None


class Xenstore(Client):
    """A xenstored without I/O, and as a Client the privileged access of code in this process.

    `lock` is shared with the caller's own, by default the store has one. `hooks` serve INTRODUCE and RELEASE over the
    wire; without them only `introduce` connects domains.
    """

    def __init__(
        self,
        *,
        lock: AbstractContextManager[object] | None = None,
        quotas: Quotas | None = None,
        hooks: DomainHooks | None = None,
    ) -> None:
        self.guard = Guard(lock)
        self.quotas = quotas or Quotas()
        self.soft_quotas = SoftQuotas()
        self.hooks = hooks
        self.accounts = Accounts()
        self.watches = WatchTable()
        self.tree = LiveTree(self.watches, self.accounts)
        self.connections: set[Connection] = set()
        self.domains: dict[int, DomainEntry] = {DOM0: DomainEntry()}
        self.domains[DOM0].introduced = True
        self.special_perms: dict[str, Perms] = dict.fromkeys(SPECIAL_PATHS, DOM0_ONLY)
        self.trace_requests = False
        self.serve: Callable[[Connection, Message], bytes] = requests.dispatch
        """Returns the payload that answers a request, or raises XenError; an attribute, for traces and faults to take its place."""
        super().__init__(self)
        self.mkdir("/tool/xenstored")

    # Connections

    def connect(
        self, domid: int = DOM0, *, privileged: bool | None = None, on_output: Callable[[], None] | None = None
    ) -> Connection:
        """Return a new connection; only dom0's are privileged unless said otherwise."""
        caller = Caller(domid, privileged=domid == DOM0 if privileged is None else privileged)
        with self.guard:
            connection = Connection(self, caller, on_output)
            self.connections.add(connection)
        return connection

    def handle(self, connection: Connection, request: Message) -> None:
        """Answer one request, then deliver the events that it caused."""
        try:
            payload = self.serve(connection, request)
            if len(payload) > XENSTORE_PAYLOAD_MAX:
                raise XenError(Errno.E2BIG, "reply")
        except XenError as error:
            if self.trace_requests:
                log.info("dom%d %s: %s", connection.caller.domid, request, error)
            connection.reply(MsgType.XS_ERROR, request, error_payload(error.errno))
        else:
            if self.trace_requests:
                log.info("dom%d %s: %s", connection.caller.domid, request, payload)
            connection.reply(request.type, request, payload)
        self.watches.deliver()

    def memory_exhausted(self, caller: Caller) -> bool:
        """Say whether an unprivileged domain is at its limit; warn once at the soft limit."""
        if caller.privileged:
            return False
        usage = self.accounts.of(caller.domid)
        if not usage.warned and self.soft_quotas.memory and usage.memory > self.soft_quotas.memory:
            usage.warned = True
            log.warning("dom%d uses %d bytes of xenstore, above its soft quota", caller.domid, usage.memory)
        limit = self.quotas_of(caller.domid).memory
        return bool(limit) and usage.memory >= limit

    # Domains

    def add_domain(self, domid: int, quotas: Quotas | None = None) -> None:
        """Make a domain known, so that permissions may name it, before `introduce`; `quotas` are its own, if any."""
        with self.guard:
            self.domains.setdefault(domid, DomainEntry()).quotas = quotas

    def quotas_of(self, domid: int) -> Quotas:
        """Return the quotas that a domain is held to."""
        entry = self.domains.get(domid)
        return self.quotas if entry is None or entry.quotas is None else entry.quotas

    def introduce(self, domid: int, connection: Connection | None = None) -> None:
        """Connect a domain and fire @introduceDomain; one that is connected only loses its watches and transactions."""
        with self.guard:
            entry = self.domains.setdefault(domid, DomainEntry())
            known, entry.introduced = entry.introduced, True
            if entry.connection is not None:
                if entry.connection is connection:
                    entry.connection.restart()
                else:
                    entry.connection.close()
            entry.connection = connection
            if connection is not None:
                connection.caller.target = entry.target
            if not known:
                self._fire_special(INTRODUCE_DOMAIN, domid)

    def set_target(self, domid: int, target: int) -> None:
        """Give a domain the rights of another, whose device model it is."""
        with self.guard:
            entry = self.domains[domid]
            entry.target = target
            if entry.connection is not None:
                entry.connection.caller.target = target

    def domain_shutdown(self, domid: int) -> None:
        """Fire @releaseDomain for a domain that shut down or crashed, once until `resume`."""
        with self.guard:
            entry = self.domains.get(domid)
            if entry is not None and entry.introduced and not entry.shut_down:
                entry.shut_down = True
                self._fire_special(RELEASE_DOMAIN, domid)

    def resume(self, domid: int) -> None:
        """Let the next shutdown fire @releaseDomain again."""
        with self.guard:
            self.domains[domid].shut_down = False

    def forget(self, domid: int) -> None:
        """Release a domain that no longer exists, so that permissions cannot name it any more."""
        with self.guard:
            self.release(domid)
            self.domains.pop(domid, None)

    def release(self, domid: int) -> None:
        """Disconnect a domain, drop its nodes with all below them and its permissions, fire @releaseDomain."""
        with self.guard:
            entry = self.domains.get(domid)
            if entry is None:
                return
            introduced, entry.introduced = entry.introduced, False
            entry.shut_down = False
            entry.target = None
            if entry.connection is not None:
                entry.connection.close()
                entry.connection = None
            self._remove_nodes_of(domid)
            for other in self.domains.values():
                if other.target == domid:
                    other.target = None
                    if other.connection is not None:
                        other.connection.caller.target = None
            self.accounts.forget(domid)
            if introduced:
                self._fire_special(RELEASE_DOMAIN, domid)

    def _fire_special(self, name: str, domid: int) -> None:
        self.watches.fire_special(name, domid, self.special_perms[name])
        self.watches.deliver()

    def _remove_nodes_of(self, domid: int) -> None:
        """Remove what a domain owns, but the root, and make its other permission entries stale."""
        owner, *others = self.tree.nodes["/"].perms
        if owner.domid == domid:
            self.set_perms("/", (owner._replace(domid=DOM0), *others))
        stack = ["/"]
        while stack:
            path = stack.pop()
            node = self.tree.nodes[path]
            if node.perms[0].domid == domid:
                tree.remove_subtree(self.tree, path, node)
                continue
            if any(perm.domid == domid for perm in node.perms):
                self.tree.unshared(path, node).perms = _without(node.perms, domid)
            stack += [join(path, name) for name in reversed(node.children)]
        for name, perms in self.special_perms.items():
            self.special_perms[name] = _without(perms, domid)


def _without(perms: Perms, domid: int) -> Perms:
    return tuple(perm._replace(stale=True) if perm.domid == domid else perm for perm in perms)
