"""Random request sequences, and how two systems' answers to them compare."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xenpy.abi.xs_wire import MsgType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from xs_peers import Client, System

GUESTS = (5, 6, 7)
TARGET = 6
"""The one domain that is ever another's target; it lives throughout, since xenstored keeps released targets alive."""
ACTORS = ("A", "B", "dom5", "dom6", "dom7")
NAMES = ("a", "b", "c-1", "d_2")
ROOTS = ("/", "/s", "/s/r", "/s/w", "/s/b", "/s/n", "/local/domain/5/data", "/local/domain/6/data", "/local/domain/7/x")
TOKENS = (b"t", b"u", b"token with spaces")
PERMS = ("n0", "r0", "n5", "r5", "w5", "b5", "n6", "r6", "w6", "b6", "n7", "r7", "b7")
SPECIAL = ("@introduceDomain", "@releaseDomain")
MALFORMED = (b"\0", b"/\0", b"/a b\0", b"/s//a\0", b"/s/\0", b"/s/.\0", b"s/r\0", b"\xff\0", b"//\0")
LONG = b"/s/" + b"x" * 2046


@dataclass(frozen=True)
class Op:
    """One step: a request of an actor, or an act of the hypervisor upon a domain."""

    actor: str
    kind: MsgType | str
    payload: bytes = b""
    tx: int = 0
    domid: int = 0

    def __str__(self) -> str:
        name = self.kind.name if isinstance(self.kind, MsgType) else self.kind
        return f"{self.actor}: {name} {self.payload[:100]!r} tx={self.tx} domid={self.domid}"


SETUP = (
    *(Op("A", "create", domid=domid) for domid in GUESTS),
    *(Op("A", "introduce", domid=domid) for domid in GUESTS),
    *(
        Op("A", kind, payload)
        for path, perms in (
            ("/s", "n0 r5 r6 r7"),
            ("/s/r", "r0"),
            ("/s/w", "w0 r6"),
            ("/s/b", "b0"),
            ("/s/n", "n0"),
            ("/local/domain/5", "n0 r5"),
            ("/local/domain/6", "n0 r6"),
            ("/local/domain/7", "n0 r7"),
            ("/local/domain/5/data", "n5 r6"),
            ("/local/domain/6/data", "n6"),
            ("/local/domain/7/x", "b7 n5"),
        )
        for kind, payload in (
            (MsgType.XS_MKDIR, path.encode() + b"\0"),
            (MsgType.XS_SET_PERMS, path.encode() + b"\0" + b"".join(f"{p}\0".encode() for p in perms.split())),
        )
    ),
)


@dataclass
class Generator:
    """Draws operations; keeps the transactions that were opened and not ended."""

    random: Random
    lifecycle: bool = True
    transactions: bool = True
    open: dict[str, list[int]] = field(default_factory=lambda: {actor: [] for actor in ACTORS})

    def path(self, actor: str) -> bytes:
        random = self.random
        root = random.choice(ROOTS)
        if actor.startswith("dom") and random.random() < 0.4:
            root = random.choice(("data", "x", "", "data/a"))
        names = [random.choice(NAMES) for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3)))]
        path = "/".join([root if root != "/" else "", *names]) or "/"
        return path.lstrip("/").encode() if not root else path.encode()

    def perms(self) -> bytes:
        count = self.random.choice((1, 1, 2, 2, 3, 4, 5, 6))
        return b"".join(f"{self.random.choice(PERMS)}\0".encode() for _ in range(count))

    def value(self) -> bytes:
        length = self.random.choice((0, 1, 5, 30, 30, 500, 1900, 2100))
        return bytes([self.random.choice(b"xyz\0")]) * length

    def tx(self, actor: str) -> int:
        open_here = self.open[actor]
        draw = self.random.random()
        if open_here and draw < 0.6:
            return self.random.choice(open_here)
        return 12345 if draw > 0.99 else 0

    def ops(self) -> Iterator[Op]:
        """Yield operations without end; report opened transactions through `opened`."""
        while True:
            yield self.op()

    def op(self) -> Op:
        random = self.random
        actor = random.choice(ACTORS)
        kind = random.choices(KINDS, WEIGHTS)[0]
        if self.lifecycle and random.random() < 0.02:
            return self.life()
        if random.random() < 0.01 and kind in WELL_KNOWN_REFUSALS:
            return Op(actor, kind, random.choice(MALFORMED), self.tx(actor))
        if kind == MsgType.XS_TRANSACTION_START and not self.transactions:
            kind = MsgType.XS_RM
        path = self.path(actor) + b"\0"
        tx = self.tx(actor)
        match kind:
            case MsgType.XS_WRITE:
                payload = path + self.value()
            case MsgType.XS_SET_PERMS:
                # Not for guests: the reference aborts when one that may not sets the permissions of a special path.
                special = not actor.startswith("dom") and random.random() < 0.1
                # Nor for the root, which the reference would remove with its owner.
                target = path if path != b"/\0" else b"/s\0"
                payload = (random.choice(SPECIAL).encode() + b"\0" if special else target) + self.perms()
            case MsgType.XS_DIRECTORY_PART:
                payload = path + b"%d\0" % random.choice((0, 0, 1, 2, 5, 100))
            case MsgType.XS_WATCH | MsgType.XS_UNWATCH:
                target = random.choice(SPECIAL).encode() + b"\0" if random.random() < 0.15 else path
                payload = target + random.choice(TOKENS) + b"\0"
            case MsgType.XS_TRANSACTION_START:
                return Op(actor, kind, b"\0", tx if random.random() < 0.05 else 0)
            case MsgType.XS_TRANSACTION_END:
                if tx in self.open[actor]:
                    self.open[actor].remove(tx)
                payload = b"T\0" if random.random() < 0.8 else b"F\0"
            case MsgType.XS_RESET_WATCHES:
                self.open[actor].clear()
                payload = b"\0"
            case MsgType.XS_GET_DOMAIN_PATH | MsgType.XS_IS_DOMAIN_INTRODUCED:
                payload = b"%d\0" % random.choice((0, 5, 6, 7, 8))
            case MsgType.XS_CONTROL:
                payload = b"check\0"
            case _:
                payload = path
        return Op(actor, kind, payload, tx)

    def life(self) -> Op:
        """Return an event in a domain's life."""
        random = self.random
        domid = random.choice([guest for guest in GUESTS if guest != TARGET])
        kind = random.choice(("RELEASE", "introduce", "introduce", "shutdown", "RESUME", "SET_TARGET", "recreate"))
        match kind:
            case "RELEASE" | "RESUME":
                self.open[f"dom{domid}"].clear() if kind == "RELEASE" else None
                return Op("A", MsgType[f"XS_{kind}"], b"%d\0" % domid, domid=domid)
            case "SET_TARGET":
                return Op("A", MsgType.XS_SET_TARGET, b"%d\0%d\0" % (random.choice(GUESTS), TARGET))
            case "recreate":
                self.open[f"dom{domid}"].clear()
        return Op("A", kind, domid=domid)

    def opened(self, actor: str, tx: int) -> None:
        """Note an opened transaction."""
        self.open[actor].append(tx)


# Not in the test: payloads without a final NUL, and `@` names in requests other than watches. There the reference answers with
# whatever errno an earlier request left behind, and aborts if that is 0.
WELL_KNOWN_REFUSALS = {
    MsgType.XS_READ,
    MsgType.XS_DIRECTORY,
    MsgType.XS_DIRECTORY_PART,
    MsgType.XS_GET_PERMS,
    MsgType.XS_MKDIR,
    MsgType.XS_RM,
    MsgType.XS_WRITE,
    MsgType.XS_WATCH,
    MsgType.XS_UNWATCH,
    MsgType.XS_SET_PERMS,
    MsgType.XS_CONTROL,
}
MIX = {
    MsgType.XS_READ: 8,
    MsgType.XS_DIRECTORY: 6,
    MsgType.XS_DIRECTORY_PART: 3,
    MsgType.XS_GET_PERMS: 4,
    MsgType.XS_WRITE: 18,
    MsgType.XS_MKDIR: 6,
    MsgType.XS_RM: 8,
    MsgType.XS_SET_PERMS: 8,
    MsgType.XS_WATCH: 6,
    MsgType.XS_UNWATCH: 4,
    MsgType.XS_TRANSACTION_START: 5,
    MsgType.XS_TRANSACTION_END: 6,
    MsgType.XS_RESET_WATCHES: 0.3,
    MsgType.XS_GET_DOMAIN_PATH: 0.5,
    MsgType.XS_IS_DOMAIN_INTRODUCED: 0.5,
    MsgType.XS_CONTROL: 0.2,
}
KINDS = tuple(MIX)
WEIGHTS = tuple(MIX.values())


class Runner:
    """Carries operations out on one system."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.clients: dict[str, Client] = {name: system.connect(name) for name in ("A", "B")}
        self.introduced: set[int] = set()

    def run(self, op: Op) -> tuple[int, bytes] | None:
        """Do one operation and return the reply's type and payload; None if there was nobody to ask."""
        match op.kind:
            case "create":
                self.clients[f"dom{op.domid}"] = self.system.create(op.domid)
                return None
            case "introduce":
                return self._request(
                    "A", MsgType.XS_INTRODUCE, b"%d\0000\0%d\0" % (op.domid, self.system.port(op.domid))
                )
            case "shutdown":
                self.system.shutdown(op.domid)
                return None
            case "recreate":
                self.system.destroy(op.domid)
                self._bump()
                self._refresh()
                self.clients[f"dom{op.domid}"] = self.system.create(op.domid)
                return None
        assert isinstance(op.kind, MsgType)
        if op.kind == MsgType.XS_RESUME:
            self.system.resume(op.domid)
        if op.actor.startswith("dom") and int(op.actor[3:]) not in self.introduced:
            return None
        return self._request(op.actor, op.kind, op.payload, op.tx)

    def _request(self, actor: str, kind: MsgType, payload: bytes, tx: int = 0) -> tuple[int, bytes]:
        reply = self.clients[actor].request(kind, payload, tx)
        if kind == MsgType.XS_RELEASE:
            self._bump()
        if kind in (MsgType.XS_INTRODUCE, MsgType.XS_RELEASE):
            self._refresh()
        return reply.type, reply.payload

    def _bump(self) -> None:
        """Write a node that no domain has rights to: the reference lets the node written last keep stale permissions."""
        self.clients["A"].request(MsgType.XS_WRITE, b"/tool/bump\0")

    def _refresh(self) -> None:
        """Ask who is introduced; only they have a ring that answers."""
        for domid in GUESTS:
            reply = self.clients["A"].request(MsgType.XS_IS_DOMAIN_INTRODUCED, b"%d\0" % domid)
            if reply.payload == b"T\0":
                self.introduced.add(domid)
            else:
                self.introduced.discard(domid)

    def events(self) -> dict[str, list[tuple[bytes, ...]]]:
        """Return everybody's watch events since the last call."""
        return {
            name: client.take_events()
            for name, client in self.clients.items()
            if not name.startswith("dom") or int(name[3:]) in self.introduced
        }

    def tree(self) -> dict[bytes, tuple[bytes, bytes, bytes]]:
        """Return value, permissions and children of every node."""
        client = self.clients["A"]
        found = {}
        stack = [b"/"]
        while stack:
            path = stack.pop()
            kinds = (MsgType.XS_READ, MsgType.XS_GET_PERMS, MsgType.XS_DIRECTORY)
            value, perms, children = (client.request(kind, path + b"\0") for kind in kinds)
            found[path] = (value.payload, perms.payload, children.payload)
            if children.type != MsgType.XS_ERROR:
                stack += [path.rstrip(b"/") + b"/" + name for name in children.payload.split(b"\0") if name]
        return found


class Comparison:
    """Says whether two systems answered alike; what may differ is listed here and explained in docs/xenstore.md."""

    def __init__(self) -> None:
        self._torn: set[tuple[str, int]] = set()
        self._generations: dict[tuple[str, bytes, int], tuple[bytes, bytes]] = {}

    def alike(self, op: Op, reference: tuple[int, bytes] | None, ours: tuple[int, bytes] | None) -> bool:
        """Compare the replies to one operation."""
        if op.tx and reference == (MsgType.XS_ERROR, b"EIO\0"):
            self._torn.add((op.actor, op.tx))
        if op.kind == MsgType.XS_TRANSACTION_END:
            torn = (op.actor, op.tx) in self._torn
            self._torn.discard((op.actor, op.tx))
            return reference == ours or (
                torn and reference is not None and ours is not None and reference[0] == ours[0]
            )
        if (op.actor, op.tx) in self._torn:
            return True
        if reference is None or ours is None or op.kind != MsgType.XS_DIRECTORY_PART or reference[0] != ours[0]:
            return reference == ours
        return self._same_part(op, reference[1], ours[1])

    def _same_part(self, op: Op, reference: bytes, ours: bytes) -> bool:
        """Compare lists whose generation counts have no meaning but to be equal or different from the last ones."""
        if reference == ours:
            return True
        (theirs, their_names), (mine, my_names) = (part.split(b"\0", 1) for part in (reference, ours))
        key = (op.actor, op.payload.split(b"\0")[0], op.tx)
        last = self._generations.get(key)
        self._generations[key] = theirs, mine
        return their_names == my_names and (last is None or (last[0] == theirs) == (last[1] == mine))
