"""What each message type does: payload in, payload out.

Ref: docs/misc/xenstore.txt
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenpy.abi.xs_wire import XENSTORE_PAYLOAD_MAX, MsgType
from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore import control, tree
from xenpy.pv.xenstore.paths import SPECIAL_PATHS, atoi, domain_path
from xenpy.pv.xenstore.tree import DOM0, Access, Caller, Perm, Perms
from xenpy.pv.xenstore.wire import Message, split_strings

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.xenstore.connection import Connection
    from xenpy.pv.xenstore.transactions import LiveTree, Transaction

OK = b"OK\0"
UINT32 = 1 << 32
DOMID_SPACE = 1 << 16


class Request(NamedTuple):
    """One request with the view of the tree that its tx_id selects."""

    connection: Connection
    message: Message
    view: LiveTree | Transaction

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return self.connection.caller

    def strings(self, minimum: int, maximum: int | None = None) -> list[bytes]:
        """Return the payload's NUL-terminated strings; EINVAL if they are too few, too many or unfinished."""
        payload = self.message.payload
        parts = split_strings(payload)
        if not payload.endswith(b"\0") or len(parts) < minimum or (maximum is not None and len(parts) > maximum):
            raise XenError(Errno.EINVAL, "number of arguments")
        return parts

    def path(self) -> str:
        """Return the path that is the whole payload."""
        return self.connection.path(self.strings(1, 1)[0])

    def path_and_rest(self) -> tuple[bytes, bytes]:
        """Return the payload's first string, still relative, and the bytes behind its NUL."""
        path, nul, rest = self.message.payload.partition(b"\0")
        if not nul:
            raise XenError(Errno.EINVAL, "no path")
        return path, rest


class Handler(NamedTuple):
    """How a message type is served."""

    call: Callable[[Request], bytes]
    privileged: bool
    transactional: bool


HANDLERS: dict[int, Handler] = {}


def handles(
    kind: MsgType, *, privileged: bool = False, transactional: bool = True
) -> Callable[[Callable[[Request], bytes]], Callable[[Request], bytes]]:
    """Register a handler; `transactional` ones refuse an unknown tx_id, the others ignore it."""

    def register(call: Callable[[Request], bytes]) -> Callable[[Request], bytes]:
        if kind in HANDLERS:
            raise ValueError(f"{kind.name} has a handler already")
        HANDLERS[kind] = Handler(call, privileged, transactional)
        return call

    return register


def dispatch(connection: Connection, message: Message) -> bytes:
    """Run the handler of a message's type and return the reply's payload, or raise XenError."""
    handler = HANDLERS.get(message.type)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"message type {message.type}")
    if handler.privileged and not connection.caller.privileged:
        raise XenError(Errno.EACCES, f"message type {message.type}")
    view = connection.view(message.tx_id if handler.transactional else 0)
    return handler.call(Request(connection, message, view))


def _allocating(request: Request) -> None:
    if request.connection.store.memory_exhausted(request.caller):
        raise XenError(Errno.ENOMEM, "quota: memory")


# Nodes


@handles(MsgType.XS_DIRECTORY)
def directory(request: Request) -> bytes:
    """List a node's children."""
    node = tree.find(request.view, request.caller, request.path(), Access.READ)
    return _names(node)


@handles(MsgType.XS_DIRECTORY_PART)
def directory_part(request: Request) -> bytes:
    """Return the node's generation and a part of its list of children; a final empty string marks the end."""
    path, offset_text = request.strings(2, 2)
    node = tree.find(request.view, request.caller, request.connection.path(path), Access.READ)
    offset = atoi(offset_text) % UINT32
    generation = b"%d\0" % node.generation
    names = _names(node)[offset:]
    room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
    if len(names) <= room:
        return generation + names + b"\0"
    return generation + names[: names.rindex(b"\0", 0, room) + 1]


@handles(MsgType.XS_READ)
def read(request: Request) -> bytes:
    """Return a node's value."""
    return tree.find(request.view, request.caller, request.path(), Access.READ).value


@handles(MsgType.XS_WRITE)
def write(request: Request) -> bytes:
    """Set a node's value."""
    path, value = request.path_and_rest()
    _allocating(request)
    connection = request.connection
    tree.write(request.view, request.caller, connection.path(path), value, connection.quotas.limits())
    return OK


@handles(MsgType.XS_MKDIR)
def mkdir(request: Request) -> bytes:
    """Create a node unless it exists."""
    _allocating(request)
    tree.mkdir(request.view, request.caller, request.path(), request.connection.quotas.limits())
    return OK


@handles(MsgType.XS_RM)
def rm(request: Request) -> bytes:
    """Remove a node and all below it."""
    tree.remove(request.view, request.caller, request.path())
    return OK


@handles(MsgType.XS_GET_PERMS)
def get_perms(request: Request) -> bytes:
    """Return a node's permissions."""
    node = tree.find(request.view, request.caller, request.path(), Access.READ)
    return b"".join(f"{perm}\0".encode() for perm in node.perms)


@handles(MsgType.XS_SET_PERMS)
def set_perms(request: Request) -> bytes:
    """Replace a node's permissions, or those of a special watch path."""
    path, rest = request.path_and_rest()
    *texts, _ = rest.split(b"\0")
    if not texts:
        raise XenError(Errno.EINVAL, "no permissions")
    store = request.connection.store
    tree.check_count(request.caller, len(texts), request.connection.quotas.limits())
    perms: Perms = tuple(Perm.parse(text) for text in texts)
    name = path.decode("latin-1")
    if name in SPECIAL_PATHS:
        if not request.caller.access(store.special_perms[name]) & Access.OWNER:
            raise XenError(Errno.EINVAL, name)
        _all_exist(request, perms)
        store.special_perms[name] = perms
        return OK
    _allocating(request)
    absolute = request.connection.path(path)
    _all_exist(request, perms)
    tree.set_perms(request.view, request.caller, absolute, perms, request.connection.quotas.limits())
    return OK


def _all_exist(request: Request, perms: Perms) -> None:
    domains = request.connection.store.domains
    for perm in perms:
        if perm.domid not in domains:
            raise XenError(Errno.ENOENT, f"no domain {perm.domid}")


def _names(node: tree.Node) -> bytes:
    return ("\0".join(node.children) + "\0").encode("latin-1") if node.children else b""


# Watches and transactions


@handles(MsgType.XS_WATCH, transactional=False)
def watch(request: Request) -> bytes:
    """Add a watch."""
    path, token, *depth = request.strings(2, 3)
    _allocating(request)
    if depth and not depth[0].isdigit():
        raise XenError(Errno.EINVAL, "depth")
    request.connection.watch(path, token, int(depth[0][:9]) if depth else None)
    return OK


@handles(MsgType.XS_UNWATCH, transactional=False)
def unwatch(request: Request) -> bytes:
    """Remove a watch."""
    path, token = request.strings(2, 2)
    request.connection.unwatch(path, token)
    return OK


@handles(MsgType.XS_RESET_WATCHES)
def reset_watches(request: Request) -> bytes:
    """Drop the caller's watches and transactions."""
    request.connection.reset()
    return OK


@handles(MsgType.XS_TRANSACTION_START)
def transaction_start(request: Request) -> bytes:
    """Open a transaction."""
    if request.message.tx_id:
        raise XenError(Errno.EBUSY, "transaction in a transaction")
    _allocating(request)
    return b"%d\0" % request.connection.start_transaction()


@handles(MsgType.XS_TRANSACTION_END)
def transaction_end(request: Request) -> bytes:
    """Commit or discard a transaction."""
    verdict = request.message.payload
    tx_id = request.message.tx_id
    if verdict not in (b"T\0", b"F\0"):
        raise XenError(Errno.EINVAL, "neither T nor F")
    if not tx_id:
        raise XenError(Errno.ENOENT, "no transaction")
    transaction = request.connection.transactions.pop(tx_id)
    if verdict == b"T\0":
        transaction.commit()
    return OK


# Domains


def _known(request: Request, domid: int) -> int:
    """Return the id of an introduced domain other than dom0."""
    if domid == DOM0:
        raise XenError(Errno.EINVAL, "dom0")
    entry = request.connection.store.domains.get(domid)
    if entry is None or not entry.introduced:
        raise XenError(Errno.ENOENT, f"no domain {domid}")
    return domid


@handles(MsgType.XS_INTRODUCE, privileged=True)
def introduce(request: Request) -> bytes:
    """Connect a domain's ring."""
    domid_text, gfn, port = request.strings(3, 3)
    domid = atoi(domid_text) % DOMID_SPACE
    store = request.connection.store
    if domid != DOM0:
        if store.hooks is None:
            raise XenError(Errno.ENOENT, f"no domain {domid}")
        store.hooks.introduce(domid, atoi(gfn), atoi(port) % UINT32)
    return OK


@handles(MsgType.XS_RELEASE, privileged=True)
def release(request: Request) -> bytes:
    """Disconnect a domain."""
    domid = _known(request, atoi(request.strings(1, 1)[0]) % DOMID_SPACE)
    store = request.connection.store
    if store.hooks is not None:
        store.hooks.release(domid)
    store.release(domid)
    return OK


@handles(MsgType.XS_RESUME, privileged=True)
def resume(request: Request) -> bytes:
    """Expect another shutdown of a domain."""
    domid = _known(request, atoi(request.strings(1, 1)[0]) % DOMID_SPACE)
    request.connection.store.resume(domid)
    return OK


@handles(MsgType.XS_SET_TARGET, privileged=True)
def set_target(request: Request) -> bytes:
    """Give a domain the rights of another."""
    domid, target = (atoi(text) % DOMID_SPACE for text in request.strings(2, 2))
    request.connection.store.set_target(_known(request, domid), _known(request, target))
    return OK


@handles(MsgType.XS_IS_DOMAIN_INTRODUCED, privileged=True)
def is_domain_introduced(request: Request) -> bytes:
    """Say whether a domain is connected."""
    entry = request.connection.store.domains.get(atoi(request.strings(1, 1)[0]) % DOMID_SPACE)
    return b"T\0" if entry is not None and entry.introduced else b"F\0"


@handles(MsgType.XS_GET_DOMAIN_PATH)
def get_domain_path(request: Request) -> bytes:
    """Return a domain's home; the domain need not exist."""
    return domain_path(atoi(request.strings(1, 1)[0]) % UINT32).encode() + b"\0"


@handles(MsgType.XS_CONTROL, privileged=True)
def control_command(request: Request) -> bytes:
    """Run a control command."""
    command, *arguments = request.strings(1)
    return control.run(request.connection.store, command, arguments)
