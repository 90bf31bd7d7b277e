"""The live tree and transactions on it.

A transaction remembers the generation of every node that it touched, also of those that did not exist, and commits
only if none of them has changed meanwhile. A generation changes with value, permissions and list of children.

Ref: docs/misc/xenstore.txt "Transactions"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore.tree import DOM0, DOM0_ONLY, Node, Perms

if TYPE_CHECKING:
    from xenpy.pv.xenstore.quota import Accounts
    from xenpy.pv.xenstore.watches import WatchTable


class LiveTree:
    """The tree that everybody sees; the View of requests outside a transaction."""

    def __init__(self, watches: WatchTable, accounts: Accounts) -> None:
        self.watches = watches
        self.accounts = accounts
        self.generation = 0
        self.nodes: dict[str, Node] = {"/": Node(b"", DOM0_ONLY)}
        accounts.charge(DOM0, 1, 0)

    def lookup(self, path: str) -> Node | None:
        """Return the node."""
        return self.nodes.get(path)

    def modify(self, path: str, node: Node) -> Node:
        """Return the node for changing, with a new generation."""
        node = self.unshared(path, node)
        self.insert(path, node)
        return node

    def unshared(self, path: str, node: Node) -> Node:
        """Return the node, or put a copy in the place of one that a transaction looks at."""
        if node.shared:
            node = self.nodes[path] = node.copy()
        return node

    def insert(self, path: str, node: Node) -> None:
        """Add a node or give it a new generation."""
        self.generation += 1
        node.generation = self.generation
        self.nodes[path] = node

    def delete(self, path: str) -> None:
        """Drop one node."""
        del self.nodes[path]

    def changed(self, path: str, old_perms: Perms, *, exact: bool = False) -> None:
        """Queue watch events."""
        self.watches.fire(self, path, old_perms, exact=exact)

    def charge(self, domid: int, nodes: int, size: int) -> None:
        """Account for nodes and bytes of a domain."""
        self.accounts.charge(domid, nodes, size)

    def nodes_of(self, domid: int) -> int:
        """Return how many nodes a domain owns."""
        return self.accounts.of(domid).nodes

    def spoil(self) -> None:
        """Do nothing: a change either succeeds or leaves the live tree as it was."""


class _Access:
    """A node as the transaction sees it, and the generation it had when first seen (None: it did not exist)."""

    __slots__ = ("event", "exact", "modified", "node", "own", "seen")

    def __init__(self, node: Node | None) -> None:
        self.seen: int | None = None
        if node is not None:
            self.seen = node.generation
            node.shared = True
        self.node = node
        self.own: Node | None = None
        self.modified = False
        self.event = False
        self.exact = False


class Transaction:
    """A View whose changes reach the live tree together or not at all.

    `max_nodes` bounds how many nodes it may touch (ENOSPC beyond), 0 is without limit.
    """

    def __init__(self, tree: LiveTree, max_nodes: int = 0) -> None:
        self._tree = tree
        self._max_nodes = max_nodes
        self._accessed: dict[str, _Access] = {}
        self._charges: dict[int, list[int]] = {}
        self._spoiled = self._outdated = False

    def outdate(self) -> None:
        """Let the commit fail as one does that somebody else's change has overtaken."""
        self._outdated = True

    def _access(self, path: str) -> _Access:
        access = self._accessed.get(path)
        if access is None:
            if self._max_nodes and len(self._accessed) >= self._max_nodes:
                self.spoil()
                raise XenError(Errno.ENOSPC, f"quota: {self._max_nodes} nodes in a transaction")
            access = self._accessed[path] = _Access(self._tree.nodes.get(path))
        return access

    def lookup(self, path: str) -> Node | None:
        """Return the node and remember that it was looked at."""
        return self._access(path).node

    def modify(self, path: str, node: Node) -> Node:
        """Return this transaction's own copy."""
        access = self._access(path)
        access.modified = True
        if access.own is None:
            access.own = access.node = node.copy()
        return access.own

    def insert(self, path: str, node: Node) -> None:
        """Add a node to this view."""
        access = self._access(path)
        access.own = access.node = node
        access.modified = True

    def delete(self, path: str) -> None:
        """Drop one node from this view."""
        access = self._access(path)
        access.own = access.node = None
        access.modified = True

    def changed(self, path: str, _old_perms: Perms, *, exact: bool = False) -> None:
        """Remember an event for the commit; of several on one node the last decides."""
        access = self._access(path)
        access.event = True
        access.exact = exact

    def charge(self, domid: int, nodes: int, size: int) -> None:
        """Account within this view."""
        charge = self._charges.setdefault(domid, [0, 0])
        charge[0] += nodes
        charge[1] += size

    def nodes_of(self, domid: int) -> int:
        """Return how many nodes a domain would own."""
        return self._tree.nodes_of(domid) + self._charges.get(domid, (0, 0))[0]

    def spoil(self) -> None:
        """Let the commit fail."""
        self._spoiled = True

    def commit(self) -> None:
        """Apply everything; raise EAGAIN if a node that was touched has changed since, ENOMEM if a change had failed."""
        if self._spoiled:
            raise XenError(Errno.ENOMEM, "a change in the transaction had failed")
        if self._outdated:
            raise XenError(Errno.EAGAIN, "the domain was saved meanwhile")
        nodes = self._tree.nodes
        for path, access in self._accessed.items():
            current = nodes.get(path)
            if (None if current is None else current.generation) != access.seen:
                raise XenError(Errno.EAGAIN, path)
        old_perms = {path: nodes[path].perms for path, access in self._accessed.items() if access.seen is not None}
        for path, access in self._accessed.items():
            if access.modified:
                if access.node is not None:
                    self._tree.insert(path, access.node)
                elif access.seen is not None:
                    self._tree.delete(path)
        for domid, (count, size) in self._charges.items():
            self._tree.charge(domid, count, size)
        for path, access in self._accessed.items():
            if access.event and access.node is not None:
                perms = old_perms.get(path, access.node.perms)
                self._tree.watches.fire(self._tree, path, perms, exact=access.exact)
            elif access.event and access.seen is not None:
                self._tree.watches.fire_removed(path, old_perms[path], exact=access.exact)
