"""A domain's part of the store as plain data: its nodes, its backends' halves, and its connection.

Ref: docs/misc/xenstore.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenpy.pv.xenstore.paths import domain_path, join, leaf, parent
from xenpy.pv.xenstore.transactions import Transaction
from xenpy.pv.xenstore.tree import DOM0, DOM0_ONLY, Node, Perm, weight
from xenpy.pv.xenstore.watches import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.pv.xenstore.connection import Connection
    from xenpy.pv.xenstore.server import Xenstore
    from xenpy.pv.xenstore.transactions import LiveTree


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node."""

    path: str
    value: bytes
    perms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WatchState:
    """A watch; see Watch."""

    path: str
    token: bytes
    strip: int
    depth: int | None


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """A connection. Of transactions only the ids: they cannot be committed any more.

    `output` is what the client has not fetched, each with whether it is an event; of the first, `head_sent` bytes are gone.
    """

    watches: tuple[WatchState, ...]
    transactions: tuple[int, ...]
    next_tx_id: int
    input: bytes
    output: tuple[tuple[bytes, bool], ...]
    head_sent: int
    broken: bool


@dataclass(frozen=True, slots=True)
class StoreState:
    """What the store has of a domain; nodes come before those below them."""

    nodes: tuple[NodeState, ...]
    connection: ConnectionState


def save_domain_nodes(store: Xenstore, domid: int) -> tuple[NodeState, ...]:
    """Return the nodes of a domain's home, its backends, its VM and the toolstack's record. Under the lock."""
    home = domain_path(domid)
    roots = [home, f"/libxl/{domid}"]
    vm_path = store.get(f"{home}/vm")
    if vm_path is not None and vm_path.startswith("/vm/"):
        roots.append(vm_path)
    for directory in (f"{domain_path(DOM0)}/backend", f"{domain_path(DOM0)}/error/backend"):
        kinds = store.tree.nodes.get(directory)
        if kinds is not None:
            roots += [f"{directory}/{kind}/{domid}" for kind in kinds.children]
    return tuple(node for root in roots for node in _walk(store.tree, root))


def _walk(tree: LiveTree, root: str) -> Iterator[NodeState]:
    stack = [root]
    while stack:
        path = stack.pop()
        node = tree.nodes.get(path)
        if node is None:
            continue
        yield NodeState(path, node.value, tuple(str(perm) for perm in node.perms if not perm.stale))
        stack += [join(path, name) for name in reversed(node.children)]


def load_domain_nodes(store: Xenstore, nodes: tuple[NodeState, ...]) -> None:
    """Put nodes into the store in place of those that are there; parents that are missing are dom0's. Under the lock."""
    tree = store.tree
    for state in nodes:
        missing = []
        above = parent(state.path)
        while tree.lookup(above) is None:
            missing.append(above)
            above = parent(above)
        for path in reversed(missing):
            _insert(tree, path, Node(b"", DOM0_ONLY))
        _insert(
            tree, state.path, Node(state.value, tuple(Perm.parse(perm.encode()) for perm in state.perms) or DOM0_ONLY)
        )
    store.watches.deliver()


def _insert(tree: LiveTree, path: str, node: Node) -> None:
    old = tree.lookup(path)
    if old is not None:
        node.children = old.children
        tree.charge(old.perms[0].domid, -1, -weight(path, old))
    else:
        holder = tree.lookup(parent(path))
        assert holder is not None
        tree.modify(parent(path), holder).children[leaf(path)] = None
    tree.insert(path, node)
    tree.charge(node.perms[0].domid, 1, weight(path, node))
    tree.changed(path, node.perms)


def save_connection(connection: Connection, *, broken: bool) -> ConnectionState:
    """Return a connection as plain data. Under the lock."""
    watches = sorted(connection.watches.values(), key=lambda watch: watch.order)
    return ConnectionState(
        watches=tuple(WatchState(watch.path, watch.token, watch.strip, watch.depth) for watch in watches),
        transactions=tuple(connection.transactions),
        next_tx_id=connection.next_tx_id,
        input=connection.unread_input(),
        output=tuple(connection.unfetched()),
        head_sent=connection.head_sent,
        broken=broken,
    )


def load_connection(connection: Connection, state: ConnectionState) -> None:
    """Take over what `save_connection` returned, in a new connection of the same domain; watches do not fire for it. Under the lock."""
    store = connection.store
    for saved in state.watches:
        watch = Watch(connection, saved.path, saved.token, strip=saved.strip, depth=saved.depth)
        connection.watches[saved.path, saved.token] = watch
        store.watches.enter(watch)
        usage = store.accounts.of(connection.caller.domid)
        usage.watches += 1
        usage.memory += len(saved.path) + len(saved.token)
    for tx_id in state.transactions:
        transaction = connection.transactions[tx_id] = Transaction(store.tree)
        transaction.outdate()
    connection.next_tx_id = state.next_tx_id
    connection.load_bytes(state.input, state.output, state.head_sent)
