"""The tree of nodes: values, permissions, generations; pure state, no connections.

Nodes live in one flat dict by absolute path, so that a look-up costs one hash whatever the depth.

Ref: docs/misc/xenstore.txt
"""

from __future__ import annotations

import re
from enum import IntFlag
from typing import NamedTuple, Protocol

from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore.paths import join, leaf, parent

DOM0 = 0

# What a permission, and a node besides its parts, count against quotas in bytes: as in xenstored 4.17.
PERM_SIZE = 8
NODE_OVERHEAD = 24

_PERM = re.compile(rb"([nrwb])([0-9]{1,10})")


class Access(IntFlag):
    """What a caller may do with a node."""

    NONE = 0
    READ = 1
    WRITE = 2
    OWNER = 4


_LETTERS = {b"n": Access.NONE, b"r": Access.READ, b"w": Access.WRITE, b"b": Access.READ | Access.WRITE}
_LETTER_OF = {access: letter.decode() for letter, access in _LETTERS.items()}
_ALL = Access.READ | Access.WRITE | Access.OWNER


class Perm(NamedTuple):
    """One permission entry; a node's first names its owner and what everybody else may do.

    `stale`: the domain it named is gone; a later domain of the same id gets nothing from it.
    """

    domid: int
    access: Access
    stale: bool = False

    @classmethod
    def parse(cls, text: bytes) -> Perm:
        """Read `n5`, `r5`, `w5` or `b5`; raise EINVAL for anything else."""
        match = _PERM.match(text)
        if match is None:
            raise XenError(Errno.EINVAL, f"malformed permission {text[:16]!r}")
        return cls(int(match[2]), _LETTERS[match[1]])

    def __str__(self) -> str:
        return f"{_LETTER_OF[self.access]}{self.domid}"


Perms = tuple[Perm, ...]
DOM0_ONLY: Perms = (Perm(DOM0, Access.NONE),)


class Caller:
    """On whose behalf an operation runs."""

    __slots__ = ("domid", "privileged", "target")

    def __init__(self, domid: int, *, privileged: bool) -> None:
        self.domid = domid
        self.privileged = privileged
        self.target: int | None = None
        """The domain that this one serves as device model; its rights are added."""

    def access(self, perms: Perms) -> Access:
        """Return what this caller may do with a node of these permissions."""
        if self.privileged:
            return _ALL
        mine = (self.domid,) if self.target is None else (self.domid, self.target)
        owner = perms[0]
        if owner.domid in mine and not owner.stale:
            return _ALL
        for perm in perms[1:]:
            if perm.domid in mine and not perm.stale:
                return perm.access
        return owner.access


class Node:
    """A value, permissions and the names of the children in the order of their creation."""

    __slots__ = ("children", "generation", "perms", "shared", "value")

    def __init__(
        self, value: bytes, perms: Perms, children: dict[str, None] | None = None, generation: int = 0
    ) -> None:
        self.value = value
        self.perms = perms
        self.children: dict[str, None] = {} if children is None else children
        self.generation = generation
        self.shared = False
        """Whether a transaction looks at it too, so that a change needs a copy."""

    def copy(self) -> Node:
        """Return an independent copy to change."""
        return Node(self.value, self.perms, self.children.copy(), self.generation)

    @property
    def size(self) -> int:
        """Bytes that count against the quota on a node's size."""
        return (
            NODE_OVERHEAD + len(self.value) + PERM_SIZE * len(self.perms) + sum(len(name) + 1 for name in self.children)
        )


class View(Protocol):
    """The live tree, or the tree as a transaction sees it."""

    def lookup(self, path: str) -> Node | None:
        """Return the node, for reading."""

    def modify(self, path: str, node: Node) -> Node:
        """Return the node, which is `node` in this view, for changing."""

    def insert(self, path: str, node: Node) -> None:
        """Add a node under an existing parent, whose list of children the caller keeps."""

    def delete(self, path: str) -> None:
        """Drop one node."""

    def changed(self, path: str, old_perms: Perms, *, exact: bool = False) -> None:
        """Fire watches, at once or upon commit; `exact`: only those set on this very path."""

    def charge(self, domid: int, nodes: int, size: int) -> None:
        """Account for nodes and bytes of a domain, either may be negative."""

    def nodes_of(self, domid: int) -> int:
        """Return how many nodes a domain owns in this view."""

    def spoil(self) -> None:
        """Note that a change failed for lack of room: a transaction of which a part is missing must not commit."""


class Limits(NamedTuple):
    """What an unprivileged caller is held to."""

    nodes: int
    node_size: int
    permissions: int


def find(view: View, caller: Caller, path: str, access: Access) -> Node:
    """Return an existing node or raise: ENOENT only to who could see that it is absent, else EACCES."""
    node = view.lookup(path)
    if node is not None:
        if caller.access(node.perms) & access != access:
            raise _denied(view, path)
        return node
    raise XenError(absence(view, caller, path, access), path)


def absence(view: View, caller: Caller, path: str, access: Access) -> Errno:
    """Return the errno for a path that does not exist: any of the rights asked for, on its nearest ancestor, will do."""
    while path != "/":
        path = parent(path)
        node = view.lookup(path)
        if node is not None:
            return Errno.ENOENT if caller.access(node.perms) & access else Errno.EACCES
    return Errno.EIO


def write(view: View, caller: Caller, path: str, value: bytes, limits: Limits) -> None:
    """Set a node's value; create it and missing parents."""
    node = view.lookup(path)
    if node is None:
        create(view, caller, path, value, limits)
        return
    if not caller.access(node.perms) & Access.WRITE:
        raise _denied(view, path)
    grown = len(value) - len(node.value)
    if not caller.privileged and node.size + grown >= limits.node_size:
        raise _no_room(view, f"{path}: node size")
    node = view.modify(path, node)
    node.value = value
    view.charge(node.perms[0].domid, 0, grown)
    view.changed(path, node.perms)


def mkdir(view: View, caller: Caller, path: str, limits: Limits) -> None:
    """Make sure that a node exists."""
    node = view.lookup(path)
    if node is None:
        create(view, caller, path, b"", limits)
    elif not caller.access(node.perms) & Access.WRITE:
        raise _denied(view, path)


def create(view: View, caller: Caller, path: str, value: bytes, limits: Limits) -> None:
    """Add a node and its missing parents; an unprivileged caller owns them and inherits the other permissions."""
    error = absence(view, caller, path, Access.WRITE)
    if error is not Errno.ENOENT:
        raise XenError(error, path)
    missing = [path]
    top = parent(path)
    while (ancestor := view.lookup(top)) is None:
        missing.append(top)
        top = parent(top)
    perms = ancestor.perms
    if not caller.privileged:
        perms = (Perm(caller.domid, perms[0].access), *perms[1:])
        size = NODE_OVERHEAD + len(value) + PERM_SIZE * len(perms)
        if size >= limits.node_size or ancestor.size + len(leaf(missing[-1])) + 1 >= limits.node_size:
            raise _no_room(view, f"{path}: node size")
        if view.nodes_of(caller.domid) + len(missing) > limits.nodes:
            raise _no_room(view, f"{path}: number of nodes")
    view.modify(top, ancestor).children[leaf(missing[-1])] = None
    for below, here in zip([None, *missing], missing, strict=False):
        children = {} if below is None else {leaf(below): None}
        node = Node(value if below is None else b"", perms, children)
        view.insert(here, node)
        view.charge(perms[0].domid, 1, weight(here, node))
    view.changed(path, perms)


def remove(view: View, caller: Caller, path: str) -> None:
    """Remove a node and all below it; an absent node is well if its parent exists."""
    node = view.lookup(path)
    if node is None:
        error = absence(view, caller, path, Access.WRITE)
        if error is Errno.ENOENT and view.lookup(parent(path)) is not None:
            return
        raise XenError(error, path)
    if not caller.access(node.perms) & Access.WRITE:
        raise _denied(view, path)
    if path == "/":
        raise XenError(Errno.EINVAL, "the root cannot be removed")
    holder = view.lookup(parent(path))
    if holder is None or leaf(path) not in holder.children:
        # A transaction that saw one of the two before somebody else's change; it will not commit.
        raise XenError(Errno.EINVAL if holder is None else Errno.EIO, f"{path}: not a child of its parent")
    remove_subtree(view, path, node)


def remove_subtree(view: View, path: str, node: Node) -> None:
    """Remove without asking; watches below the removed node fire on their own path, deepest first."""
    above = parent(path)
    holder = view.lookup(above)
    if holder is not None:
        view.modify(above, holder).children.pop(leaf(path), None)
    stack = [(path, node, iter(tuple(node.children)))]
    while stack:
        here, current, names = stack[-1]
        name = next(names, None)
        if name is None:
            stack.pop()
            view.delete(here)
            view.charge(current.perms[0].domid, -1, -weight(here, current))
            view.changed(here, current.perms, exact=bool(stack))
            continue
        below = join(here, name)
        child = view.lookup(below)
        if child is None:
            # A transaction that saw this list of children before somebody else removed one; it will not commit.
            raise XenError(Errno.EIO, f"{below}: listed but absent")
        stack.append((below, child, iter(tuple(child.children))))


def check_count(caller: Caller, count: int, limits: Limits) -> None:
    """Raise ENOSPC if these are more permissions than the caller may give a node."""
    if not caller.privileged and count > limits.permissions:
        raise XenError(Errno.ENOSPC, f"{count} permissions")


def set_perms(view: View, caller: Caller, path: str, perms: Perms, limits: Limits) -> None:
    """Replace a node's permissions; only a privileged caller may give it another owner."""
    check_count(caller, len(perms), limits)
    node = find(view, caller, path, Access.WRITE | Access.OWNER)
    if not caller.privileged and perms[0].domid != node.perms[0].domid:
        raise XenError(Errno.EPERM, f"{path}: change of owner")
    if not caller.privileged and node.size + PERM_SIZE * (len(perms) - len(node.perms)) >= limits.node_size:
        raise _no_room(view, f"{path}: node size")
    node = view.modify(path, node)
    old, before = node.perms, weight(path, node)
    node.perms = perms
    view.charge(old[0].domid, -1, -before)
    view.charge(perms[0].domid, 1, weight(path, node))
    view.changed(path, old)


def _denied(view: View, path: str) -> XenError:
    """Look at the parent too: as in xenstored, a transaction that met a refusal conflicts with changes of the parent."""
    view.lookup(parent(path))
    return XenError(Errno.EACCES, path)


def _no_room(view: View, reason: str) -> XenError:
    view.spoil()
    return XenError(Errno.ENOSPC, reason)


def weight(path: str, node: Node) -> int:
    """Return the bytes that a node costs its owner; its children pay for their own names."""
    return NODE_OVERHEAD + len(path) + len(node.value) + PERM_SIZE * len(node.perms)
